"""The page without a server, in a real browser: the same pixels as `spn_jax.filling.inpainter`, and
nothing leaves the tab.

Needs Chromium on the PATH, and the package onnxruntime-web, which npm fetches once into .cache.
"""

import base64
import contextlib
import functools
import http.server
import io
import re
import shutil
import struct
import tarfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms
from playwright.sync_api import Browser, Page, expect, sync_playwright

from spn_jax import export, predict
from spn_jax.errors import InputError
from spn_jax.filling.inpainter import Inpainter
from spn_jax.filling.metadata import with_chunks
from spn_jax.filling.photos import read_photo
from spn_jax.filling.windows import Canvas, choose_strategy, enlarged, plan, show
from spn_jax.onnx_files import web
from spn_jax.runtime.files import write_atomically
from tests.tiny import photo

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"
CACHE = Path(__file__).resolve().parent.parent.parent / ".cache"
INSECURE = "photos.test"  # a name of this machine to which browsers grant less than to 127.0.0.1
PATIENCE = 120_000  # milliseconds
HEIGHT, WIDTH = 61, 97
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the PATH")


@pytest.fixture(scope="module")
def folders(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of each kind of model."""
    folder = tmp_path_factory.mktemp("pages")
    package = CACHE / f"{web.PACKAGE}.tgz"
    if not package.is_file():
        try:
            write_atomically(package, web.fetched(folder).read_bytes())
        except InputError as error:
            pytest.skip(str(error))
    for kind, checkpoint in checkpoints.items():
        output = str(folder / kind)
        export.main(["--checkpoint", str(checkpoint), "--format", "web", "--output", output, "--onnxruntime-web", str(package)])
    return {kind: folder / kind for kind in checkpoints}


class Handler(http.server.SimpleHTTPRequestHandler):
    """Says nothing on the terminal."""

    def log_message(self, format: str, *values: Any) -> None:
        pass


@pytest.fixture(scope="module")
def addresses(folders: dict[str, Path]) -> Iterator[dict[str, str]]:
    """Where a server has the page of each kind of model."""
    root = folders["spn"].parent
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(root))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield {kind: f"http://127.0.0.1:{server.server_address[1]}/{folder.name}/" for kind, folder in folders.items()}
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    flags = [*FLAGS.split(), f"--host-resolver-rules=MAP {INSECURE} 127.0.0.1"]
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, headless=True, args=flags)
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(browser: Browser, address: str, replaced: Mapping[str, bytes | None] = MappingProxyType({})) -> Iterator[Page]:
    """The page, with a profile of its own, which reaches nothing but its files; what a script
    complains about fails the test, unless files are replaced: by other bytes, or by none.
    """
    complaints: list[str] = []

    def only_files(route: Any) -> None:
        request = route.request
        if not request.url.startswith(address) or request.method != "GET":
            complaints.append(f"{request.method} {request.url}")
            route.abort()
        elif (name := request.url.removeprefix(address)) in replaced:
            route.fulfill(status=404 if replaced[name] is None else 200, body=replaced[name] or b"")
        else:
            route.continue_()

    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        context.route(re.compile("^https?:"), only_files)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.goto(address)
        expect(page.locator("#error" if "page.json" in replaced else "#limits")).not_to_be_empty()  # the script has begun
        yield page
    assert replaced or not complaints


@pytest.fixture
def page(addresses: dict[str, str], browser: Browser) -> Iterator[Page]:
    with opened(browser, addresses["spn"]) as page:
        yield page


def encoded(array: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG", **options)
    return buffer.getvalue()


def hole() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH, 1), np.uint8)
    mask[20:34, 8:22] = mask[44:48, 60:90] = 1
    mask[50:, :5] = 1
    return mask


def load(page: Page, data: bytes, mask: np.ndarray | None = None, name: str = "photo.png") -> None:
    page.set_input_files("#photo-file", {"name": name, "mimeType": "image/png", "buffer": data})
    expect(page.locator("#facts")).to_contain_text(name)
    if mask is not None:
        page.set_input_files("#mask-file", {"name": "mask.png", "mimeType": "image/png", "buffer": encoded(255 * mask[..., 0])})
        expect(page.locator("#clear")).to_be_enabled()


def fill(page: Page) -> None:
    page.click("#fill")
    expect(page.locator("#status")).to_contain_text("Done", timeout=PATIENCE)


def saved(page: Page, button: str) -> tuple[str, Path]:
    with page.expect_download() as waiting:
        page.click(button)
    return waiting.value.suggested_filename, Path(waiting.value.path())


@pytest.mark.parametrize("strategy", ["auto", "original", "resize"])
def test_the_page_fills_as_the_inpainter_does(strategy: Any, page: Page, checkpoints: dict[str, Path]) -> None:
    image, mask = photo(HEIGHT, WIDTH), hole()
    load(page, encoded(image, icc_profile=PROFILE), mask)
    page.locator("#strategy").evaluate("(select, value) => { select.value = value; }", strategy)
    fill(page)
    name, path = saved(page, "#download")
    filled = read_photo(path, name)
    wanted = Inpainter.load(checkpoints["spn"])(image, mask, strategy=strategy)[0]
    assert (name, filled.icc_profile) == ("photo_filled.png", PROFILE)
    np.testing.assert_array_equal(np.where(mask, 0, filled.pixels), np.where(mask, 0, image))
    assert (filled.pixels != image)[mask[..., 0] > 0].mean() > 0.9
    assert np.abs(filled.pixels.astype(int) - wanted).max() <= 1


def test_a_painted_mask_is_saved_and_grows_as_the_command_has_it(page: Page, checkpoints: dict[str, Path]) -> None:
    image = photo(HEIGHT, WIDTH)
    load(page, encoded(image), name="two.words.png")
    box = page.locator("#paint").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.up()
    page.locator("summary", has_text="save the mask").click()
    name, path = saved(page, "#save-mask")
    assert name == "two.words_mask001.png"
    with Image.open(path) as picture:
        mask = (np.asarray(picture.convert("L")) >= 128).astype(np.uint8)[..., None]
    assert 20 < mask.sum() < 200
    page.locator("#dilate").evaluate("(input) => { input.value = 3; }")
    fill(page)
    _, path = saved(page, "#download")
    distance = cv2.distanceTransform(1 - mask[..., 0], cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    grown = (distance <= 3).astype(np.uint8)[..., None]
    wanted = Inpainter.load(checkpoints["spn"])(image, grown)[0]
    assert np.abs(read_photo(path, "filled").pixels.astype(int) - wanted).max() <= 1


def test_several_completions_of_the_probabilistic_model(addresses: dict[str, str], browser: Browser) -> None:
    image, mask = photo(40, 40), np.zeros((40, 40, 1), np.uint8)
    mask[10:30, 10:30] = 1
    with opened(browser, addresses["spn-probabilistic"]) as page:
        load(page, encoded(image), mask)
        page.fill("#samples", "2")
        fill(page)
        found = [read_photo(saved(page, "#download")[1], "filled").pixels]
        page.locator("#results button").nth(1).click()
        expect(page.locator("#download")).to_have_attribute("download", "photo_filled_2.png")
        found.append(read_photo(saved(page, "#download")[1], "filled").pixels)
    for filled in found:
        np.testing.assert_array_equal(np.where(mask, 0, filled), np.where(mask, 0, image))
    assert (found[0] != found[1]).any()


def test_a_jpeg_is_upright_and_keeps_its_profile(page: Page) -> None:
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[274] = 6  # to be turned to the right
    Image.fromarray(photo(40, 64)).save(buffer, "JPEG", exif=exif, icc_profile=PROFILE, quality=95)
    mask = np.zeros((64, 40, 1), np.uint8)
    mask[20:34, 8:22] = 1
    load(page, buffer.getvalue(), mask, name="photo.jpg")
    expect(page.locator("#facts")).to_contain_text("photo.jpg, 40 × 64 pixels")
    fill(page)
    name, path = saved(page, "#download")
    filled = read_photo(path, name)
    assert (name, filled.size, filled.icc_profile) == ("photo_filled.png", (64, 40), PROFILE)


# Red and green have changed places, so that a converted pixel would be seen.
SWAPPED = PROFILE.replace(b"rXYZ", b"?XYZ").replace(b"gXYZ", b"rXYZ").replace(b"?XYZ", b"gXYZ")
GREY_PROFILE = PROFILE[:16] + b"GRAY" + PROFILE[20:]
GAMMA = {b"gAMA": struct.pack(">I", 100_000), b"pHYs": struct.pack(">IIB", 3000, 3000, 1)}


def with_gamma(png: bytes) -> bytes:
    return with_chunks(png, GAMMA)


@pytest.mark.parametrize(
    ("form", "options", "grey", "change"),
    [
        ("PNG", {"icc_profile": SWAPPED}, False, bytes),
        ("PNG", {}, False, with_gamma),
        ("PNG", {"icc_profile": GREY_PROFILE}, True, bytes),
        ("JPEG", {"icc_profile": SWAPPED, "quality": 100, "subsampling": 0}, False, bytes),
        ("JPEG", {"icc_profile": GREY_PROFILE, "quality": 100}, True, bytes),
        ("WEBP", {"icc_profile": SWAPPED, "lossless": True}, False, bytes),
    ],
    ids=["PNG", "gamma", "grey PNG", "JPEG", "grey JPEG", "WebP"],
)
def test_colours_come_back_unconverted_and_with_their_profile(form: str, options: Any, grey: bool, change: Any, page: Page) -> None:
    buffer = io.BytesIO()
    colours = cv2.resize(photo(HEIGHT // 8, WIDTH // 8), (WIDTH, HEIGHT))
    Image.fromarray(colours[..., 0] if grey else colours).save(buffer, form, **options)
    data = change(buffer.getvalue())
    given = read_photo(io.BytesIO(data), "photo")
    load(page, data, hole(), name=f"photo.{form.lower()}")
    fill(page)
    filled = read_photo(saved(page, "#download")[1], "filled")
    assert (filled.grey, filled.icc_profile, filled.chunks) == (grey, options.get("icc_profile"), given.chunks)
    np.testing.assert_array_equal(np.where(hole(), 0, filled.pixels), np.where(hole(), 0, given.pixels))
    assert (filled.pixels != given.pixels)[hole()[..., 0] > 0].mean() > 0.5


def test_grey_photos_stay_grey_and_go_on_with_a_result(page: Page) -> None:
    grey = photo(HEIGHT, WIDTH)[..., 0]
    load(page, encoded(grey), hole())
    fill(page)
    page.click("#go-on")
    expect(page.locator("#facts")).to_contain_text("photo_filled.png")
    load(page, encoded(grey), hole())
    fill(page)
    filled = read_photo(saved(page, "#download")[1], "filled").rgb()
    assert (filled == filled[..., :1]).all()
    np.testing.assert_array_equal(filled[hole()[..., 0] == 0], grey[hole()[..., 0] == 0][:, None].repeat(3, 1))


def as_file(form: str, mode: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (9, 9), (90,) * len(mode)).save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no photo", "photo.png is no PNG, JPEG or WebP, the formats that this page keeps whole"),
        (encoded(photo())[:-400], "photo.png is no image that this browser can read"),
        (encoded(np.zeros((5001, 5001), np.uint8)), "photo.png has more than 25 million pixels, the most that this page takes"),
        (as_file("GIF", "RGB"), "photo.png is no PNG, JPEG or WebP"),
        (as_file("JPEG", "CMYK"), r"photo.png has the colours of print (CMYK), which this page cannot keep"),
        (as_file("PNG", "RGB", save_all=True, append_images=[Image.new("RGB", (9, 9))]), "photo.png is animated"),
        (as_file("WEBP", "RGB", save_all=True, append_images=[Image.new("RGB", (9, 9))]), "photo.png is animated"),
        (cv2.imencode(".png", np.zeros((9, 9, 3), np.uint16))[1].tobytes(), "photo.png has 16 bits a channel, and this page keeps 8"),
        (encoded(np.full((9, 9, 4), 99, np.uint8)), "photo.png has transparent parts, which this page cannot keep"),
    ],
    ids=["no image", "cut off", "too large", "GIF", "CMYK", "animated PNG", "animated WebP", "16 bits", "transparent"],
)
def test_what_the_page_could_not_give_back_whole_is_one_sentence(data: bytes, message: str, page: Page) -> None:
    page.set_input_files("#photo-file", {"name": "photo.png", "mimeType": "image/png", "buffer": data})
    expect(page.locator("#error")).to_contain_text(message)


def test_a_mask_of_another_size_and_work_that_is_given_up(page: Page) -> None:
    load(page, encoded(photo(HEIGHT, WIDTH)), hole())
    page.set_input_files("#mask-file", {"name": "m.png", "mimeType": "image/png", "buffer": encoded(np.zeros((9, 8), np.uint8))})
    expect(page.locator("#error")).to_contain_text(f"The mask is 8 x 9 pixels, the photo, upright, is {WIDTH} x {HEIGHT}")
    page.click("#fill")
    page.click("#cancel")
    expect(page.locator("#status")).to_contain_text(re.compile("Cancelled|Done"), timeout=PATIENCE)
    fill(page)


def test_a_browser_that_changes_what_pages_read_is_one_sentence(page: Page) -> None:
    page.evaluate("""() => {
      const honest = OffscreenCanvasRenderingContext2D.prototype.getImageData;
      window.again = () => { OffscreenCanvasRenderingContext2D.prototype.getImageData = honest; };
      OffscreenCanvasRenderingContext2D.prototype.getImageData = function (...box) {
        const read = honest.apply(this, box);
        read.data[read.data.length - 4] ^= 1;
        return read;
      };
    }""")
    page.set_input_files("#photo-file", {"name": "photo.png", "mimeType": "image/png", "buffer": encoded(photo())})
    expect(page.locator("#error")).to_contain_text("This browser changes the pixels that pages read")
    page.evaluate("window.again()")
    load(page, encoded(photo()))


# --- servers ---


def test_a_server_without_https_suffices(addresses: dict[str, str], browser: Browser) -> None:
    """At such an address browsers lack what they give to secure pages alone."""
    with opened(browser, addresses["spn"].replace("127.0.0.1", INSECURE)) as page:
        assert not page.evaluate("window.isSecureContext")
        load(page, encoded(photo(HEIGHT, WIDTH)), hole())
        fill(page)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.onnx", None, "The network, model.onnx, is not there (status 404); see whether all files of the page are on the server"),
        ("model.onnx", b"<!doctype html>", "The network could not be started ("),
        ("ort/ort-wasm-simd-threaded.wasm", None, "The network could not be started ("),
        ("ort/ort.wasm.min.mjs", None, "The network could not be started (a file is missing)"),
    ],
)
def test_a_missing_or_damaged_file_is_one_sentence(
    name: str, content: bytes | None, message: str, addresses: dict[str, str], browser: Browser
) -> None:
    with opened(browser, addresses["spn"], {name: content}) as page:
        load(page, encoded(photo(HEIGHT, WIDTH)), hole())
        page.click("#fill")
        expect(page.locator("#error")).to_contain_text(message, timeout=PATIENCE)
        expect(page.locator("#fill")).to_be_enabled()
        assert "\n" not in page.locator("#error").inner_text()


def test_a_page_without_its_description_is_one_sentence(addresses: dict[str, str], browser: Browser) -> None:
    with opened(browser, addresses["spn"], {"page.json": None}) as page:
        expect(page.locator("#error")).to_have_text("The page's file page.json is not there (status 404); put all its files on the server.")


def test_opened_as_a_file_it_asks_for_a_server(folders: dict[str, Path], browser: Browser) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        page.goto((folders["spn"] / "index.html").as_uri())
        expect(page.locator("#error")).to_have_text(
            'Browsers do not run this page from a file: start a web server in its folder, for instance "python -m http.server".'
        )


# --- windows.js beside windows.py ---

RUN = """async (cases) => {
  const { chooseStrategy, plan, show, assemble } = await import("./windows.js");
  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const text = (array) => btoa(Array.from(new Uint8Array(array.buffer), (byte) => String.fromCharCode(byte)).join(""));
  return cases.map(({ width, height, strategy, trained, ...given }) => {
    const photo = { width, height, data: bytes(given.image) };
    const hole = bytes(given.hole);
    const windows = plan(hole, width, height, strategy, trained);
    const shown = windows.map((window) => show(photo, hole, window));
    const predicted = (value, i) => ((value * 7 + i * 31 + (i % 3) * 40) % 511) / 2;
    const predictions = shown.map(({ image }) => Float32Array.from(image.data, predicted));
    return {
      usual: chooseStrategy("auto", width, height, trained),
      windows: windows.map((one) => [one.top, one.left, one.height, one.width, one.limit, one.shownHeight, one.shownWidth, ...one.corner]),
      weights: windows.map(({ weights }) => text(weights)),
      images: shown.map(({ image }) => text(image.data)),
      holes: shown.map((one) => text(one.hole)),
      completion: text(assemble(photo, hole, windows, predictions).data),
    };
  });
}"""


def drawn_hole(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    for _ in range(int(random.integers(1, 5))):
        x, y, u, v = (int(n) for n in random.integers(0, [width, height, width, height]))
        cv2.circle(mask, (x, y), int(random.integers(1, 30)), 1, -1)
        cv2.line(mask, (x, y), (u, v), 1, int(random.integers(1, 6)))
    return mask[..., None]


def test_the_windows_of_the_page_are_those_of_the_command(page: Page) -> None:
    random = np.random.default_rng(0)
    cases = []
    for n in range(16):
        height, width = (int(side) for side in random.integers(20, 300, 2))
        small = random.integers(0, 256, (height // 4 + 2, width // 4 + 2, 3), np.uint8)
        image, mask = cv2.resize(small, (width, height)), drawn_hole(random, height, width)
        if n == 5:
            mask[:] = 1
        if n == 8:
            image, mask = image[:128, :128], mask[:128, :128]  # twice the trained size
        cases.append((image, mask, ("crop", "crop", "resize", "original")[n % 4], (32, 40, 64)[n % 3]))

    def text(array: np.ndarray) -> str:
        return base64.b64encode(array.tobytes()).decode()

    given = [
        {"width": i.shape[1], "height": i.shape[0], "strategy": s, "trained": t, "image": text(i), "hole": text(m)} for i, m, s, t in cases
    ]
    for (image, mask, strategy, trained), found in zip(cases, page.evaluate(RUN, given), strict=True):
        assert found["usual"] == choose_strategy("auto", image.shape[:2], trained)
        windows = plan(mask, strategy, trained)
        shown = [show(image, mask, window) for window in windows]
        assert found["windows"] == [[w.top, w.left, w.height, w.width, w.limit, *w.shown_size, *w.corner] for w in windows]
        for name, arrays in (
            ("weights", [w.weights for w in windows]),
            ("images", [s.image for s in shown]),
            ("holes", [s.mask for s in shown]),
        ):
            assert found[name] == [text(array) for array in arrays], name
        predictions = []
        for one in shown:
            i = np.arange(one.image.size)
            predictions.append(
                (((one.image.ravel().astype(int) * 7 + i * 31 + i % 3 * 40) % 511) / 2).astype(np.float32).reshape(one.image.shape)
            )
        completion = np.frombuffer(base64.b64decode(found["completion"]), np.uint8).reshape(image.shape)
        canvas, wanted = Canvas(mask), image.copy()
        for window, prediction in zip(windows, predictions, strict=True):
            canvas.add(window, enlarged(prediction, image, mask, window))
        wanted[mask[..., 0] > 0] = np.rint(canvas.colours())
        np.testing.assert_array_equal(np.where(mask, 0, completion), np.where(mask, 0, image))
        assert np.abs(completion.astype(int) - wanted).max() <= 1
        assert (completion != wanted).mean() < 0.01


# --- the command ---


def test_the_folder_holds_all_that_the_page_needs_and_no_more(folders: dict[str, Path]) -> None:
    names = {str(path.relative_to(folders["spn"])) for path in folders["spn"].rglob("*") if path.is_file()}
    scripts = {"page.js", "mask.js", "server.js", "windows.js", "pictures.js", "worker.js"}
    assert names == {"index.html", "style.css", "icon.svg", "model.onnx", "page.json", *scripts, *(f"ort/{name}" for name in web.RUNTIME)}
    assert "static/" not in (folders["spn"] / "index.html").read_text() + (folders["spn"] / "page.js").read_text()
    assert not [path for path in folders["spn"].parent.iterdir() if path.name.startswith(".")]


def test_the_command_fills_with_the_pages_model(folders: dict[str, Path], checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """The page's own description of the model, which lies beside it, is not taken for another's."""
    Image.fromarray(photo(HEIGHT, WIDTH)).save(tmp_path / "photo.png")
    Image.fromarray(255 * hole()[..., 0]).save(tmp_path / "hole.png")
    filled = {}
    for name, network in (
        ("page", ["--model", str(folders["spn"] / "model.onnx")]),
        ("checkpoint", ["--checkpoint", str(checkpoints["spn"])]),
    ):
        paths = ["--image", str(tmp_path / "photo.png"), "--mask", str(tmp_path / "hole.png"), "--output", str(tmp_path / f"{name}.png")]
        assert predict.main([*network, *paths]) == 0
        filled[name] = read_photo(tmp_path / f"{name}.png", name).pixels
    np.testing.assert_array_equal(np.where(hole(), 0, filled["page"]), np.where(hole(), 0, photo(HEIGHT, WIDTH)))
    assert np.abs(filled["page"].astype(int) - filled["checkpoint"]).max() <= 1
    assert (filled["page"] != photo(HEIGHT, WIDTH))[hole()[..., 0] > 0].mean() > 0.9


def test_wrong_input_is_one_sentence(checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--checkpoint", str(checkpoints["spn"]), "--format", "web", "--output", str(tmp_path / "page")]
    with pytest.raises(InputError, match="empty lacks ort.wasm.min.mjs, .*; pass the folder or .tgz of npm's package onnxruntime-web@"):
        export.main([*arguments, "--onnxruntime-web", str(tmp_path / "empty")])
    with tarfile.open(tmp_path / "other.tgz", "w:gz"):
        pass
    with pytest.raises(InputError, match="other.tgz is no whole archive of npm's package onnxruntime-web@"):
        export.main([*arguments, "--onnxruntime-web", str(tmp_path / "other.tgz")])
    monkeypatch.setattr(web.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="npm, which would fetch it, is not installed: pass --onnxruntime-web DIR"):
        export.main(arguments)
    monkeypatch.setattr(web.shutil, "which", lambda name: "false")
    with pytest.raises(InputError, match=r"npm could not fetch onnxruntime-web@\S+ \(it said nothing\): pass"):
        export.main(arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["other.tgz"]
    with pytest.raises(InputError, match="already holds something; choose a new folder"):
        export.main([*arguments[:-1], str(tmp_path)])
