"""The page in a real browser, with the command and a checkpoint behind it, up to Ctrl-C.

Needs Chromium on the PATH; Playwright drives it and brings none of its own.
"""

import dataclasses
import io
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from playwright.sync_api import Download, Page, expect, sync_playwright

from spn_jax.checkpoints.parameters import named_arrays, with_named_arrays
from spn_jax.checkpoints.store import Checkpoints
from spn_jax.config import to_dict
from spn_jax.filling.photos import Photo, encode_photo, read_photo
from tests.tiny import CHANNELS, new_state, tiny

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"
PATIENCE = 120_000  # milliseconds: the first fill compiles
HEIGHT, WIDTH = 48, 64
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SIGMA = "prior_learner.variational.sigma.bias"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the PATH")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A probabilistic model with initial parameters, whose completions differ enough to be seen."""
    config = tiny("model.variational=true", "model.latent_channels=4", "model.discriminator=instance_norm")
    info = {"config": to_dict(config), "teacher": {"channels": {str(level): c for level, c in CHANNELS.items()}}}
    state = new_state(config)[1]
    names = named_arrays(state.model)
    names[SIGMA] = names[SIGMA] + 20
    folder = tmp_path_factory.mktemp("run")
    with Checkpoints(folder, 1, 0) as saved:
        saved.save(1, dataclasses.replace(state, model=with_named_arrays(state.model, names, what="spn")), info, None)
        saved.wait()
    return folder


@pytest.fixture(scope="module")
def server(checkpoint: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command and the address that it printed."""
    arguments = [sys.executable, "-m", "spn_jax.demo", "--checkpoint", str(checkpoint), "--port", "0"]
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert (found := re.search(r"http://127\.0\.0\.1:\d+/", line)), line
            yield process, found.group()
        finally:
            process.kill()


@pytest.fixture
def page(server: tuple[subprocess.Popen[str], str], tmp_path: Path) -> Iterator[Page]:
    """The page, in a browser of its own; what a script or the policy of contents complains about fails the test."""
    with sync_playwright() as driver:
        options = {"executable_path": CHROMIUM, "headless": True, "args": FLAGS.split(), "viewport": {"width": 1280, "height": 900}}
        browser = driver.chromium.launch_persistent_context(str(tmp_path / "profile"), **options)  # type: ignore[arg-type]
        complaints: list[str] = []
        refusal = "Failed to load resource"  # what the browser calls an answer of the server that is a sentence
        page = browser.pages[0]
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "console", lambda message: complaints.append(message.text) if message.type == "error" and refusal not in message.text else None
        )
        page.goto(server[1])
        expect(page.locator("#limits")).not_to_be_empty()  # the script has begun
        yield page
        browser.close()
    assert not complaints


def deep_photo() -> Photo:
    return Photo(np.random.default_rng(0).integers(0, 2**16, (HEIGHT, WIDTH, 3), np.uint16), icc_profile=PROFILE)


def load(page: Page, data: bytes, name: str = "photo.png") -> None:
    page.set_input_files("#photo-file", {"name": name, "mimeType": "", "buffer": data})
    expect(page.locator("#facts")).to_contain_text(f"{name}, {WIDTH} × {HEIGHT} pixels")


def stroke(page: Page, *points: tuple[float, float]) -> None:
    """Paints with the mouse along points in pixels of the photo."""
    box = page.locator("#paint").bounding_box()
    assert box is not None
    places = [(box["x"] + x / WIDTH * box["width"], box["y"] + y / HEIGHT * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=4)
    page.mouse.up()


def brush(page: Page, pixels: int) -> None:
    """Sets the slider, whose steps grow with the size: 32 pixels, half the photo's longer side, at its end."""
    page.locator("#size").fill(str(np.log(pixels) / np.log(WIDTH / 2)))
    expect(page.locator("#size-shown")).to_have_text(f"{pixels} pixels")


def fill(page: Page) -> None:
    page.click("#fill")
    expect(page.locator("#status")).to_contain_text("Done", timeout=PATIENCE)


def downloaded(page: Page) -> tuple[Photo, Download]:
    with page.expect_download() as waiting:
        page.click("#download")
    path = waiting.value.path()
    return read_photo(path, "the download"), waiting.value


def covered(*discs: tuple[float, float, float]) -> np.ndarray:
    """Pixels (h, w) whose centre lies in one of the discs (x, y, diameter)."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    return np.any([np.hypot(x - a, y - b) <= size / 2 for a, b, size in discs], axis=0)


def test_the_painted_mask_is_saved_beside_the_photo(page: Page) -> None:
    load(page, encode_photo(deep_photo(), ".png"), "a.photo.png")
    brush(page, 12)
    stroke(page, (12, 12), (20, 12))
    page.locator("summary", has_text="mask from a file").click()
    with page.expect_download() as waiting:
        page.click("#save-mask")
    assert waiting.value.suggested_filename == "a.photo_mask.png"
    with Image.open(waiting.value.path()) as mask:
        white = np.asarray(mask.convert("L")) >= 128
    assert white.shape == (HEIGHT, WIDTH)
    assert (
        white[covered(*((x, 12, 10.5) for x in range(12, 21)))].all() and not white[~covered(*((x, 12, 13.5) for x in range(12, 21)))].any()
    )


def test_a_hole_of_two_brushes_is_filled_and_known_pixels_come_back_bit_for_bit(page: Page) -> None:
    original = deep_photo()
    load(page, encode_photo(original, ".png"), "deep.png")
    brush(page, 12)
    stroke(page, (12, 12), (20, 12))
    brush(page, 3)
    stroke(page, (40, 30), (40, 40))
    fill(page)
    filled, file = downloaded(page)
    assert file.suggested_filename == "deep_filled_1.png"
    assert (filled.pixels.dtype, filled.icc_profile) == (np.uint16, PROFILE)
    changed = (filled.pixels != original.pixels).any(-1)
    # A pixel may lie to either side of a stroke's edge.
    inner = covered(*((x, 12, 10.5) for x in range(12, 21)), *((40, y, 1.5) for y in range(30, 41)))
    outer = covered(*((x, 12, 13.5) for x in range(12, 21)), *((40, y, 4.5) for y in range(30, 41)))
    assert not changed[~outer].any()
    assert changed[inner].mean() > 0.99  # random 16-bit values are hardly ever met by chance
    assert changed.sum() > 150

    expect(page.locator("#results button")).to_have_count(3)  # several completions, which differ
    page.click("#results li:nth-child(2) button")
    second, file = downloaded(page)
    assert file.suggested_filename == "deep_filled_2.png"
    assert (second.pixels != filled.pixels).any() and not (second.pixels != original.pixels).any(-1)[~outer].any()

    expect(page.locator("#after")).to_be_visible()
    page.locator("#compare").fill("25")
    expect(page.locator("#after")).to_have_css("clip-path", "inset(0px 0px 0px 25%)")
    page.click("#show-prior")
    expect(page.locator("#maps img")).to_have_count(3, timeout=PATIENCE)
    assert page.locator("#maps img").nth(1).evaluate("image => [image.naturalWidth, image.naturalHeight]") == [32, 24]

    page.click("#go-on")  # the result is the photo now
    expect(page.locator("#facts")).to_contain_text("deep_filled_2.png")
    brush(page, 3)
    stroke(page, (55, 5))
    page.fill("#samples", "1")
    fill(page)
    third, _ = downloaded(page)
    near = covered((55, 5, 4.5))
    assert (third.pixels != second.pixels).any() and not (third.pixels != second.pixels).any(-1)[~near].any()


def mask(page: Page) -> np.ndarray:
    """What is painted (h', w'), read from the screen's canvas, which has the photo's size here."""
    alpha = page.locator("#paint").evaluate(
        "canvas => [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data].filter((_, i) => i % 4 === 3)"
    )
    return np.array(alpha).reshape(HEIGHT, WIDTH) > 127


def test_strokes_are_undone_redone_erased_cleared_and_painted_by_keys(page: Page) -> None:
    load(page, encode_photo(deep_photo(), ".png"))
    page.click("#fill")
    expect(page.locator("#error")).to_have_text("Paint over what is to be filled first, or choose a mask.")
    brush(page, 10)
    stroke(page, (15, 15), (25, 15))
    first = mask(page)
    stroke(page, (45, 30))
    both = mask(page)
    assert first.any() and (both & ~first).any()
    page.click("#undo")
    np.testing.assert_array_equal(mask(page), first)
    page.click("#redo")
    np.testing.assert_array_equal(mask(page), both)
    page.keyboard.press("Control+z")
    np.testing.assert_array_equal(mask(page), first)
    page.click("#eraser")
    stroke(page, (15, 15))
    erased = mask(page)
    assert (first & ~erased).any() and not (erased & ~first).any()
    page.keyboard.press("Control+z")
    page.click("#clear")
    assert not mask(page).any()
    page.click("#undo")
    np.testing.assert_array_equal(mask(page), first)

    page.click("#clear")
    page.keyboard.press("b")
    page.locator("#paint").focus()
    page.keyboard.press("Space")
    assert mask(page)[HEIGHT // 2, WIDTH // 2] and mask(page).sum() < 100
    for _ in range(4):
        page.keyboard.press("Shift+ArrowLeft")
    assert mask(page)[HEIGHT // 2, WIDTH // 2 - 20]


def test_a_mask_from_a_file_is_painted_as_the_server_reads_it(page: Page) -> None:
    hole = np.zeros((HEIGHT, WIDTH), np.uint8)
    hole[10:20, 30:50] = 255
    load(page, encode_photo(deep_photo(), ".png"))
    page.click("summary:has-text('mask from a file')")
    buffer = io.BytesIO()
    Image.fromarray(hole).save(buffer, "PNG")
    page.set_input_files("#mask-file", {"name": "hole.png", "mimeType": "image/png", "buffer": buffer.getvalue()})
    expect(page.locator("#undo")).to_be_enabled()
    np.testing.assert_array_equal(mask(page), hole > 0)


def test_what_the_server_refuses_is_told_and_the_page_stays_usable(page: Page) -> None:
    page.set_input_files("#photo-file", {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no image"})
    expect(page.locator("#error")).to_contain_text("notes.txt cannot be read as an image")
    load(page, encode_photo(deep_photo(), ".png"))
    expect(page.locator("#error")).to_be_hidden()


def test_a_finger_paints_and_nothing_is_wider_than_a_phone(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    load(page, encode_photo(deep_photo(), ".png"))
    box = page.locator("#paint").bounding_box()
    assert box is not None
    touch = page.context.new_cdp_session(page)
    for kind, x in ("touchStart", 0.3), ("touchMove", 0.45), ("touchMove", 0.6), ("touchEnd", None):
        points = [] if x is None else [{"x": box["x"] + x * box["width"], "y": box["y"] + box["height"] / 2}]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    expect(page.locator("#undo")).to_be_enabled()
    assert mask(page)[HEIGHT // 2, int(0.3 * WIDTH) : int(0.6 * WIDTH)].all()
    assert page.evaluate("() => document.documentElement.scrollWidth") == 360


def test_every_control_has_a_name(page: Page) -> None:
    load(page, encode_photo(deep_photo(), ".png"))
    unnamed = page.locator("button, input, select, canvas, a").evaluate_all(
        "all => all.filter(e => !(e.ariaLabel || e.labels?.[0]?.textContent.trim() || e.textContent.trim())).map(e => e.outerHTML)"
    )
    assert unnamed == []


def test_ctrl_c_stops_the_server_in_order(server: tuple[subprocess.Popen[str], str]) -> None:
    process, _ = server
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, output) == (0, "stopped\n")
