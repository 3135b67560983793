"""500 files with flipped bytes, from fixed seeds: each ends in a fill that keeps every known pixel,
or in one sentence.
"""

import functools
import gc
import io
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from scripts import make_pretrained
from spn_jax import predict
from spn_jax.checkpoints.parameters import named_arrays
from spn_jax.checkpoints.store import load_discriminator, load_model, read_info, restore
from spn_jax.errors import InputError
from spn_jax.filling.inpainter import Inpainter
from spn_jax.filling.photos import Photo, encode_photo, read_mask, read_photo, turned
from spn_jax.runtime.sharding import make_mesh
from tests.tiny import corner, new_state, photo, tiny

PHOTOS, MASKS, EXIF_BLOCKS, MODEL_FILES, CHECKPOINTS = 220, 80, 80, 60, 60
assert PHOTOS + MASKS + EXIF_BLOCKS + MODEL_FILES + CHECKPOINTS == 500
HEIGHT, WIDTH = photo().shape[:2]


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def exif_block() -> bytes:
    """EXIF data of many types of values, with directories of their own."""
    exif = Image.Exif()
    exif[0x010F], exif[0x0112], exif[0x011A] = "a maker", 1, 72.0
    exif[0x8769] = {0x829A: 0.01, 0x9003: "2026:01:01 00:00:00", 0x9286: b"ASCII\0\0\0a comment", 0x9201: (1.5)}
    exif[0x8825] = {1: "N", 2: (47.0, 22.0, 30.0), 29: "2026:01:01"}
    return exif.tobytes()


@functools.cache
def photo_files() -> dict[str, bytes]:
    """Files of every format that is read, by a name with a suffix."""
    colours, grey = Image.fromarray(photo()), Image.fromarray(photo()[..., 0])
    opacity = Image.fromarray(photo(seed=1)[..., 0])
    with_alpha = colours.copy()
    with_alpha.putalpha(opacity)
    deep = np.random.default_rng(2).integers(0, 65536, (HEIGHT, WIDTH, 4), np.uint16)
    exif = exif_block()
    return {
        "rgb.png": saved(colours, "PNG", exif=exif),
        "rgba.png": saved(with_alpha, "PNG"),
        "grey.png": saved(grey, "PNG"),
        "palette.png": saved(colours.quantize(16), "PNG", transparency=3),
        "deep.png": encode_photo(Photo(deep[..., :3], deep[..., 3:]), ".png"),
        "grey_deep.png": encode_photo(Photo(deep[..., :1]), ".png"),
        "baseline.jpg": saved(colours, "JPEG", exif=exif),
        "progressive.jpg": saved(colours, "JPEG", progressive=True),
        "lossless.webp": saved(with_alpha, "WEBP", lossless=True, exif=exif),
        "lossy.webp": saved(colours, "WEBP"),
        "raw.tif": saved(colours, "TIFF", exif=exif),
        "lzw.tif": saved(with_alpha, "TIFF", compression="tiff_lzw"),
        "deflate.tif": saved(grey, "TIFF", compression="tiff_adobe_deflate"),
        "deep.tif": cv2.imencode(".tiff", deep[..., :3])[1].tobytes(),
        "photo.bmp": saved(colours, "BMP"),
        "photo.gif": saved(colours, "GIF"),
        "photo.avif": saved(colours, "AVIF"),
        "photo.heic": saved(colours, "HEIF"),
    }


def flipped(data: bytes, random: np.random.Generator, places: range | None = None) -> bytes:
    """A file with one to three other bytes; half of all files are hit near their start, where what
    describes the rest lies.
    """
    start, stop = (places.start, places.stop) if places else (0, min(len(data), 200) if random.random() < 0.5 else len(data))
    changed = bytearray(data)
    for place in random.integers(start, stop, random.integers(1, 4)):
        changed[place] ^= random.integers(1, 256)
    return bytes(changed)


@pytest.fixture
def fill(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[[str, bytes, str, bytes], Photo | str]:
    """Fills a photo's hole through the command: the result, or the sentence that says why there is
    none.
    """
    inpainter = Inpainter.load(checkpoints["spn"])
    monkeypatch.setattr(Inpainter, "load", lambda path: inpainter)

    def fill(name: str, data: bytes, mask_name: str, mask: bytes) -> Photo | str:
        folder = tmp_path / "one"
        folder.mkdir()
        (folder / name).write_bytes(data)
        (folder / f"mask_{mask_name}").write_bytes(mask)
        files = f"--image {folder / name} --mask {folder / f'mask_{mask_name}'} --output {folder / 'results'}"
        try:
            assert predict.main(f"--checkpoint any {files}".split()) == 0
            (result,) = (folder / "results").iterdir()
            return read_photo(result, "the result")
        except InputError as error:
            assert "\n" not in str(error) and 20 < len(str(error)) < 500, error
            assert not (folder / "results").exists() or not list((folder / "results").iterdir())
            return str(error)
        finally:
            written = capfd.readouterr()
            assert "Traceback" not in written.out + written.err
            shutil.rmtree(folder)

    return fill


def assert_known_pixels(result: Photo, original: Photo, mask: np.ndarray) -> None:
    known = mask[..., 0] == 0
    assert result.pixels.dtype == original.pixels.dtype and result.size == original.size
    np.testing.assert_array_equal(result.pixels[known], original.pixels[known])
    if original.alpha is not None:
        assert result.alpha is not None
        np.testing.assert_array_equal(result.alpha[known], original.alpha[known])


def hole_file(kind: str = "PNG") -> bytes:
    return saved(Image.fromarray(255 * corner()[..., 0]), kind)


@pytest.mark.long
def test_photos(fill: Callable[[str, bytes, str, bytes], Photo | str]) -> None:
    random, files, ended = np.random.default_rng(17), list(photo_files().items()), Counter[str]()
    for number in range(PHOTOS):
        name, whole = files[number % len(files)]
        data = flipped(whole, random)
        result = fill(name, data, "hole.png", hole_file())
        if isinstance(result, Photo):
            assert_known_pixels(result, read_photo(io.BytesIO(data), name), corner())
        ended[type(result).__name__] += 1
    assert min(ended["Photo"], ended["str"]) > PHOTOS / 5, ended


@pytest.mark.long
def test_masks(fill: Callable[[str, bytes, str, bytes], Photo | str]) -> None:
    random, ended = np.random.default_rng(18), Counter[str]()
    suffixes = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "TIFF": "tif", "BMP": "bmp", "GIF": "gif"}
    whole = Photo(photo())
    for number in range(MASKS):
        kind = list(suffixes)[number % len(suffixes)]
        data = flipped(hole_file(kind), random)
        result = fill("photo.png", encode_photo(whole, ".png"), f"hole.{suffixes[kind]}", data)
        if isinstance(result, Photo):
            assert_known_pixels(result, whole, read_mask(io.BytesIO(data), "the mask", (HEIGHT, WIDTH)))
        ended[type(result).__name__] += 1
    assert min(ended["Photo"], ended["str"]) > MASKS / 8, ended


@pytest.mark.long
def test_exif_blocks_turn_a_photo_at_most(fill: Callable[[str, bytes, str, bytes], Photo | str]) -> None:
    random, block = np.random.default_rng(19), exif_block().removeprefix(b"Exif\0\0")
    files = {name: data for name, data in photo_files().items() if block in data}
    assert {Path(name).suffix for name in files} >= {".png", ".jpg", ".webp"}
    # A PNG whose checksum does not fit is damaged as a whole; another photo may come to lie on its
    # side, where the mask does not fit.
    on_its_side = "make a mask of the photo's size"
    allowed = {".png": ("cannot be decoded", "cannot be read as an image"), ".jpg": (on_its_side,), ".webp": (on_its_side,)}
    ended = Counter[str]()
    for number in range(EXIF_BLOCKS):
        name = list(files)[number % len(files)]
        start = files[name].index(block)
        result = fill(name, flipped(files[name], random, range(start, start + len(block))), "hole.png", hole_file())
        if isinstance(result, str):
            assert any(said in result for said in allowed[Path(name).suffix]), result
        else:
            pixels, known = read_photo(io.BytesIO(files[name]), name).pixels, corner()[..., 0] == 0
            upright = [turned(pixels, orientation)[known] for orientation in (1, 2, 3, 4)]
            assert any(np.array_equal(result.pixels[known], one) for one in upright)
        ended[type(result).__name__] += 1
    assert ended["Photo"] > EXIF_BLOCKS / 3, ended


def same_arrays(model: object, original: object) -> bool:
    ours, theirs = named_arrays(model), named_arrays(original)
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.long
def test_model_files(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Every entry has a checksum: what loads is the model as it was."""
    path, random, ended = tmp_path / "model.npz", np.random.default_rng(20), Counter[str]()
    make_pretrained.pack(checkpoints["spn"], path, "float16")
    whole, original = path.read_bytes(), load_model(path)
    # of the archive: offsets, sizes and ways of compression
    directory = range(whole.index(b"PK\1\2"), len(whole))
    for number in range(MODEL_FILES):
        path.write_bytes(flipped(whole, random, directory if number % 2 else None))
        try:
            assert same_arrays(load_model(path).model, original.model)
            ended["model"] += 1
        except InputError as error:
            assert "\n" not in str(error) and str(path) in str(error)
            ended["sentence"] += 1
    assert ended["sentence"] > MODEL_FILES / 2, ended


@pytest.mark.long
# Orbax leaves coroutines behind where it fails
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_checkpoints(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """What loads, for prediction or to train on, is what was saved."""
    original, (whole,) = load_model(checkpoints["spn"]), (checkpoints["spn"] / "checkpoints").iterdir()
    _, state = new_state(tiny())
    before = restore(whole, state, make_mesh(1))
    names = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file() and path.stat().st_size)
    random, ended = np.random.default_rng(21), Counter[str]()
    readers: dict[str, Callable[[Path], bool]] = {
        "model": lambda folder: same_arrays(load_model(folder).model, original.model),
        "state": lambda folder: same_arrays(restore(folder, state, make_mesh(1)), before),
        "discriminator": lambda folder: load_discriminator(folder) is not None,
        "info": lambda folder: isinstance(read_info(folder)["config"], dict),
    }
    for number in range(CHECKPOINTS):
        name, folder = names[number % len(names)], tmp_path / whole.name
        shutil.copytree(whole, folder)
        (folder / name).write_bytes(flipped((folder / name).read_bytes(), random))
        for what, read in readers.items():
            try:
                assert read(folder), (name, what)
                ended[what] += 1
            except InputError as error:
                assert "\n" not in str(error) and len(str(error)) < 800, error
                ended["sentence"] += 1
        shutil.rmtree(folder)
        gc.collect()
    assert min(ended.values()) > CHECKPOINTS / 5, ended
