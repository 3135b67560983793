"""The page in a real browser, with the command and a checkpoint behind it, up to Ctrl-C.

Needs Chromium on the PATH; Playwright drives it and brings none of its own.
"""

import dataclasses
import functools
import io
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms
from playwright.sync_api import APIResponse, Browser, Download, Page, Route, expect, sync_playwright

from spn_jax.checkpoints.parameters import named_arrays, with_named_arrays
from spn_jax.checkpoints.store import Checkpoints
from spn_jax.filling.photos import READ, Photo, encode_photo, read_photo
from spn_jax.settings import to_dict
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
    arguments = [sys.executable, "-m", "spn_jax.demo", "--checkpoint", str(checkpoint), "--port", "0", "--root-path", "/spn"]
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert (found := re.search(r"http://127\.0\.0\.1:\d+/", line)), line
            yield process, found.group()
        finally:
            process.kill()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS.split())
        yield browser
        browser.close()


@pytest.fixture
def page(server: tuple[subprocess.Popen[str], str], browser: Browser) -> Iterator[Page]:
    """The page, with a profile of its own; what a script or the policy of contents complains about
    fails the test.
    """
    complaints: list[str] = []
    # what the browser calls an answer of the server that is a sentence
    refusal = "Failed to load resource"
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "console", lambda message: complaints.append(message.text) if message.type == "error" and refusal not in message.text else None
        )
        page.goto(server[1])
        expect(page.locator("#limits")).not_to_be_empty()  # the script has begun
        yield page
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
    """Sets the slider, whose steps grow with the size: 32 pixels, half the photo's longer side, at
    its end.
    """
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
    expect(page.locator("#compare")).to_have_value("0")  # the whole of it, wherever the hole is
    page.locator("#compare").fill("25")
    expect(page.locator("#after")).to_have_css("clip-path", "inset(0px 0px 0px 25%)")
    told = page.locator("#status").text_content()
    page.click("#show-prior")
    expect(page.locator("#maps img")).to_have_count(3, timeout=PATIENCE)
    expect(page.locator("#prior-status")).to_contain_text("Done in")
    expect(page.locator("#status")).to_have_text(told or "the fill's time")
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
    expect(page.locator("#error")).to_have_text("Paint over the area to fill first, or load a mask.")
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
    page.click("summary:has-text('Load or save the mask')")
    buffer = io.BytesIO()
    Image.fromarray(hole).save(buffer, "PNG")
    page.set_input_files("#mask-file", {"name": "hole.png", "mimeType": "image/png", "buffer": buffer.getvalue()})
    expect(page.locator("#undo")).to_be_enabled()
    np.testing.assert_array_equal(mask(page), hole > 0)
    # and comes back as a file by which a program fills the same photo
    with page.expect_download() as waiting:
        page.click("#save-mask")
    assert waiting.value.suggested_filename == "photo_mask001.png"
    with Image.open(waiting.value.path()) as saved:
        np.testing.assert_array_equal(np.asarray(saved.convert("L")), hole)


def test_what_the_server_refuses_is_told_and_the_page_stays_usable(page: Page) -> None:
    page.set_input_files("#photo-file", {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no image"})
    expect(page.locator("#error")).to_contain_text("notes.txt cannot be read as an image")
    kinds = f"{', '.join(READ[:-1])} or {READ[-1]}"
    expect(page.locator("#error")).to_contain_text(f"pass a {kinds} file")
    expect(page.locator("#limits")).to_have_text(f"{kinds}, up to 64 MB and 24 megapixels.")
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


class Held:
    """Answers of the server to requests for a path, which arrive when they are let go."""

    def __init__(self, page: Page, path: str):
        self.page, self.path, self.holds = page, re.compile(path), True
        self.waiting: list[tuple[Route, APIResponse]] = []
        page.route(self.path, self._hold)

    def _hold(self, route: Route) -> None:
        if self.holds and route.request.method != "DELETE":
            self.waiting.append((route, route.fetch()))
        else:
            route.fallback()

    def wait(self) -> None:
        for _ in range(600):
            if self.waiting:
                return
            self.page.wait_for_timeout(50)
        pytest.fail(f"nothing asked for {self.path.pattern}")

    def let_go(self) -> None:
        self.holds = False
        for route, response in self.waiting:
            route.fulfill(response=response)
        self.page.wait_for_timeout(700)  # two looks of the page at a job


def check_nothing_is_of_the_photo_before(page: Page, name: str) -> None:
    expect(page.locator("#facts")).to_contain_text(name)
    for part in ("#outcome", "#results", "#after", "#maps", "#error", "#progress", "#prior-progress"):
        expect(page.locator(part)).to_be_hidden()
    expect(page.locator("#paint")).to_be_visible()
    expect(page.locator("#compare-mode")).to_be_disabled()
    expect(page.locator("#fill")).to_be_enabled()
    expect(page.locator("#status")).to_have_text("")
    expect(page.locator("#prior-status")).to_have_text("")


@pytest.mark.parametrize("path", [r"/api/photos/.*/fill$", r"/api/jobs/[^/]+$", r"/api/jobs/.*/1/view$"])
def test_another_photo_loaded_while_one_is_filled_gets_no_result_of_it(page: Page, path: str) -> None:
    """Whatever is on its way then: the answer that a job began, a look at it, or its result."""
    load(page, encode_photo(deep_photo(), ".png"), "first.png")
    stroke(page, (12, 12), (20, 12))
    held = Held(page, path)
    page.click("#fill")
    held.wait()
    load(page, encode_photo(deep_photo(), ".png"), "second.png")
    held.let_go()
    check_nothing_is_of_the_photo_before(page, "second.png")
    stroke(page, (12, 12), (20, 12))
    page.fill("#samples", "1")
    fill(page)
    assert downloaded(page)[1].suggested_filename == "second_filled.png"


def answer(page: Page, **changes: Any) -> None:
    """Has the server say this of every job, and nothing else of it."""

    def change(route: Route) -> None:
        response = route.fetch()
        route.fulfill(response=response, json=response.json() | changes)

    page.route(re.compile(r"/api/photos/.*/fill$"), change)
    page.route(re.compile(r"/api/jobs/[^/]+$"), lambda route: change(route) if route.request.method == "GET" else route.continue_())


@pytest.mark.parametrize(("before", "words"), [(1, "1 job ahead of you ("), (2, "2 jobs ahead of you (")])
def test_who_waits_is_told_how_many_come_first(page: Page, before: int, words: str) -> None:
    load(page, encode_photo(deep_photo(), ".png"))
    stroke(page, (12, 12), (20, 12))
    answer(page, state="waiting", before=before)
    page.click("#fill")
    expect(page.locator("#status")).to_contain_text(words)


def test_the_bar_tells_how_many_passes_are_made(page: Page) -> None:
    load(page, encode_photo(deep_photo(), ".png"))
    stroke(page, (12, 12), (20, 12))
    answer(page, state="running", results=[], before=0, done=3, total=12)
    page.click("#fill")
    expect(page.locator("#progress")).to_be_visible()
    expect(page.locator("#progress")).to_have_js_property("position", 0.25)
    expect(page.locator("#cancel")).to_be_visible()


def test_a_job_that_was_given_up_shows_nothing_more(page: Page) -> None:
    load(page, encode_photo(deep_photo(), ".png"))
    stroke(page, (12, 12), (20, 12))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if request.url.endswith("/view") else None)
    answer(page, state="cancelled", results=[{"name": "a.png", "file": "api/jobs/k/1", "view": "api/jobs/k/1/view"}])
    page.click("#fill")
    expect(page.locator("#status")).to_have_text("Cancelled.")
    expect(page.locator("#fill")).to_be_enabled()
    expect(page.locator("#outcome")).to_be_hidden()
    assert not asked


def test_another_photo_gets_no_map_and_no_mask_of_the_one_before(page: Page) -> None:
    load(page, encode_photo(deep_photo(), ".png"), "first.png")
    stroke(page, (12, 12), (20, 12))
    held = Held(page, r"/api/jobs/.*/\d/view$")
    page.click("#show-prior")
    held.wait()
    load(page, encode_photo(deep_photo(), ".png"), "second.png")
    held.let_go()
    check_nothing_is_of_the_photo_before(page, "second.png")
    held = Held(page, r"/api/photos/.*/mask$")
    buffer = io.BytesIO()
    Image.new("L", (WIDTH, HEIGHT), 255).save(buffer, "PNG")
    page.set_input_files("#mask-file", {"name": "hole.png", "mimeType": "image/png", "buffer": buffer.getvalue()})
    held.wait()
    load(page, encode_photo(deep_photo(), ".png"), "third.png")
    held.let_go()
    check_nothing_is_of_the_photo_before(page, "third.png")
    assert not mask(page).any()


def test_of_two_photos_the_one_chosen_last_is_shown(page: Page) -> None:
    held = Held(page, "/api/photos$")
    page.set_input_files("#photo-file", {"name": "first.png", "mimeType": "", "buffer": encode_photo(deep_photo(), ".png")})
    held.wait()
    held.holds = False
    load(page, encode_photo(deep_photo(), ".png"), "second.png")
    held.let_go()
    check_nothing_is_of_the_photo_before(page, "second.png")


def test_pictures_that_are_no_longer_shown_are_let_go(page: Page) -> None:
    page.evaluate(
        """() => {
            window.alive = new Set();
            const [create, revoke] = [URL.createObjectURL, URL.revokeObjectURL];
            URL.createObjectURL = (blob) => { const url = create.call(URL, blob); window.alive.add(url); return url; };
            URL.revokeObjectURL = (url) => { window.alive.delete(url); revoke.call(URL, url); };
        }"""
    )
    load(page, encode_photo(deep_photo(), ".png"))
    stroke(page, (12, 12), (20, 12))
    for _ in range(2):
        fill(page)
        expect(page.locator("#results button")).to_have_count(3)
        assert page.evaluate("() => window.alive.size") == 1 + 3
        page.evaluate("() => { document.getElementById('status').textContent = ''; }")
    load(page, encode_photo(deep_photo(), ".png"), "second.png")
    assert page.evaluate("() => window.alive.size") == 1


def test_the_page_works_below_a_prefix(page: Page, server: tuple[subprocess.Popen[str], str]) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{server[1]}spn/")
    expect(page.locator("#limits")).not_to_be_empty()
    load(page, encode_photo(deep_photo(), ".png"))
    stroke(page, (12, 12), (20, 12))
    page.fill("#samples", "1")
    fill(page)
    assert downloaded(page)[1].suggested_filename == "photo_filled.png"
    assert asked and all(url.startswith((f"{server[1]}spn/", "blob:")) for url in asked)


def test_large_photos_are_not_offered_at_full_size(page: Page) -> None:
    """Twice the 32 pixels of the model are the most."""
    assert page.evaluate("() => fetch('api/model').then((answer) => answer.json())")["original"] == 64
    load(page, encode_photo(deep_photo(), ".png"))
    page.locator("summary", has_text="More settings").click()
    page.locator("#strategy").select_option("original")
    buffer = io.BytesIO()
    Image.new("RGB", (65, 10)).save(buffer, "PNG")
    page.set_input_files("#photo-file", {"name": "long.png", "mimeType": "", "buffer": buffer.getvalue()})
    expect(page.locator("#name")).to_have_text("long.png")
    expect(page.locator("#strategy [value=original]")).to_be_disabled()
    expect(page.locator("#strategy")).to_have_value("auto")


def test_a_name_is_shown_as_it_is_and_starts_nothing(page: Page) -> None:
    name = "&lt;img src=x onerror=alert(1)&gt;<i>.png"
    page.set_input_files("#photo-file", {"name": name, "mimeType": "", "buffer": encode_photo(deep_photo(), ".png")})
    expect(page.locator("#name")).to_have_text("&lt;img src=x onerror=alert(1)&gt;i.png")
    assert page.locator("#facts *").evaluate_all("all => all.map((e) => e.tagName)") == ["SPAN"] * 3


def test_the_photo_is_as_large_as_the_window_allows(page: Page) -> None:
    """All of it is seen at once, with what stands above and under it, before and after it is
    filled.
    """
    page.set_viewport_size({"width": 1920, "height": 1000})
    load(page, encode_photo(deep_photo(), ".png"))
    sizes = [page.locator("#frame").bounding_box()]
    stroke(page, (12, 12), (20, 12))
    fill(page)
    sizes.append(page.locator("#frame").bounding_box())
    assert sizes[0] is not None and sizes[0]["height"] > 800 and sizes[0] == sizes[1]
    assert page.evaluate("() => document.documentElement.scrollHeight") <= 1000
    page.set_viewport_size({"width": 1000, "height": 1000})
    box = page.locator("#easel").bounding_box()
    assert box is not None and page.locator("#frame").evaluate("frame => frame.offsetWidth") == round(box["width"]) - 2


def test_on_a_phone_nothing_stands_alone_or_far_away(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    load(page, encode_photo(deep_photo(), ".png"), "a rather long name of a photo that somebody took.png")
    stroke(page, (12, 12), (20, 12))
    page.click("#show-prior")
    expect(page.locator("#maps img")).to_have_count(3, timeout=PATIENCE)
    page.fill("#samples", "2")
    fill(page)
    expect(page.locator("#results button")).to_have_count(2)

    def top(selector: str) -> float:
        return float(page.locator(selector).evaluate("e => e.getBoundingClientRect().top + scrollY"))

    def height(selector: str) -> float:
        return float(page.locator(selector).evaluate("e => e.getBoundingClientRect().height"))

    assert abs(top("#facts") + height("#facts") / 2 - top("#bar .choose") - height("#bar .choose") / 2) < 2
    assert top("#frame") < top("#results") < top("#fill") < top("#maps")
    lines = page.locator("#maps figcaption span").evaluate_all("all => all.map((e) => e.getClientRects().length)")
    assert lines == [1] * 6
    frame = page.locator("#frame").bounding_box()
    # the result is seen
    assert frame is not None and frame["y"] >= 0 and frame["y"] + frame["height"] <= 844
    assert page.evaluate("() => document.documentElement.scrollWidth") == 390


def test_every_control_has_a_name(page: Page) -> None:
    load(page, encode_photo(deep_photo(), ".png"))
    unnamed = page.locator("button, input, select, canvas, a").evaluate_all(
        "all => all.filter(e => !(e.ariaLabel || e.labels?.[0]?.textContent.trim() || e.textContent.trim())).map(e => e.outerHTML)"
    )
    assert unnamed == []


def test_a_server_that_does_not_answer_is_told_and_the_page_stays_usable(page: Page) -> None:
    page.route("**/api/photos", lambda route: route.abort())
    page.set_input_files("#photo-file", {"name": "photo.png", "mimeType": "", "buffer": encode_photo(deep_photo(), ".png")})
    expect(page.locator("#error")).to_have_text("Cannot reach the server. Is it still running?")
    page.unroute("**/api/photos")
    load(page, encode_photo(deep_photo(), ".png"))
    expect(page.locator("#error")).to_be_hidden()


def test_a_photo_is_filled_and_saved_by_the_words_on_the_page(page: Page) -> None:
    button = functools.partial(page.get_by_role, "button", exact=True)
    with page.expect_file_chooser() as asked:
        button(name="Open a photo").click()
    asked.value.set_files({"name": "photo.png", "mimeType": "", "buffer": encode_photo(deep_photo(), ".png")})
    expect(button(name="Open another photo")).to_be_visible()
    expect(button(name="Eraser")).to_be_visible()
    stroke(page, (20, 20))
    for name in ("Undo", "Redo", "Clear", "Undo"):
        button(name=name).click()
    page.get_by_text("Load or save the mask", exact=True).click()
    expect(page.get_by_text("White is the hole, unless the box is ticked.")).to_be_visible()
    page.get_by_label("Black is the hole", exact=True).check()
    page.get_by_label("Black is the hole", exact=True).uncheck()
    for name in ("Load mask", "Save mask"):
        expect(button(name=name)).to_be_enabled()
    page.get_by_text("More settings", exact=True).click()
    page.get_by_label("Expand the mask by (px)", exact=True).fill("1")
    page.get_by_label("Processing size").select_option(label="crops around each hole")
    page.get_by_label("Seed of the completions", exact=True).fill("3")
    page.get_by_label("Completions", exact=True).fill("1")
    button(name="Fill").click()
    expect(page.get_by_role("status").filter(has_text="Done")).to_be_visible(timeout=PATIENCE)
    expect(page.get_by_role("group", name="3. Save", exact=True)).to_be_visible()
    expect(page.get_by_text("PNG. Everything outside the hole, including the colour profile, is unchanged.", exact=True)).to_be_visible()
    with page.expect_download():
        page.get_by_role("link", name="Download", exact=True).click()
    button(name="Continue editing").click()
    expect(button(name="Show semantic prior")).to_be_enabled()


def test_ctrl_c_stops_the_server_in_order(server: tuple[subprocess.Popen[str], str]) -> None:
    process, _ = server
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, output) == (0, "stopped\n")
