"""Photos as people have them: what is kept to the bit, what a filled one is, and which files are refused, each in one sentence."""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from spn_jax.errors import InputError
from spn_jax.filling import photos
from spn_jax.filling.photos import Photo, check_holds, encode_photo, grown, read_mask, read_photo, usual_suffix

HEIGHT, WIDTH = 20, 30
PROFILE = bytes(range(200)) * 3
EXIF = Image.Exif()
EXIF[0x010E] = "words"


def channels(count: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, (HEIGHT, WIDTH, count), dtype)


def hole() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH, 1), np.uint8)
    mask[5:12, 10:] = 1
    return mask


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> io.BytesIO:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer


def reread(photo: Photo, suffix: str = ".png") -> Photo:
    return read_photo(io.BytesIO(encode_photo(photo, suffix)), "it")


def assert_same(a: np.ndarray | None, b: np.ndarray | None) -> None:
    assert (a is None) == (b is None)
    if a is not None and b is not None:
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA"])
def test_every_bit_of_a_photo_and_its_profile_come_back(mode: str, suffix: str) -> None:
    image = Image.fromarray(channels(4)).convert(mode)
    photo = read_photo(saved(image, icc_profile=PROFILE, exif=EXIF), "it")
    assert photo.grey == mode.startswith("L") and (photo.alpha is not None) == mode.endswith("A")
    np.testing.assert_array_equal(np.asarray(photo.to_image()), np.asarray(image))
    back = reread(photo, suffix)
    grey_as_colours = photo.grey and suffix == ".webp"  # which has no grey
    assert_same(back.pixels, np.repeat(photo.pixels, 3, 2) if grey_as_colours else photo.pixels)
    assert_same(back.alpha, photo.alpha)
    assert back.icc_profile == PROFILE
    assert back.exif == (None if suffix == ".tif" else photo.exif)
    assert b"words" in (photo.exif or b"")


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_sixteen_bits_come_back_with_profile_and_exif(count: int) -> None:
    given = channels(count, np.uint16)
    colours = 1 if count < 3 else 3
    photo = Photo(given[..., :colours], given[..., colours:] if count in (2, 4) else None, "PNG", PROFILE, b"Exif\0\0" + EXIF.tobytes()[6:])
    back = reread(photo)
    assert_same(back.pixels[..., :colours], photo.pixels)
    assert_same(back.alpha, photo.alpha)
    assert back.icc_profile == PROFILE and b"words" in (back.exif or b"")
    np.testing.assert_allclose(
        photo.rgb()[..., :colours] if photo.alpha is None else 0, photo.pixels / 257 if photo.alpha is None else 0, atol=0.51
    )


@pytest.mark.parametrize("count", [1, 3])
def test_sixteen_bits_of_a_tiff_are_read_and_written_as_png(count: int) -> None:
    given = channels(count, np.uint16)
    photo = read_photo(io.BytesIO(cv2.imencode(".tiff", given[..., ::-1])[1].tobytes()), "it")
    assert_same(photo.pixels, given)
    assert photo.format == "TIFF" and usual_suffix(photo) == ".png"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_photos_are_upright_and_say_so(orientation: int, dtype: type) -> None:
    exif = Image.Exif()
    exif[photos.ORIENTATION] = orientation
    exif[0x010E] = "words"
    given = Photo(channels(3, dtype), exif=exif.tobytes())
    photo = reread(given)
    lying = Image.fromarray((given.pixels // 257).astype(np.uint8) if dtype == np.uint16 else given.pixels)
    lying.getexif()[photos.ORIENTATION] = orientation
    upright = np.asarray(ImageOps.exif_transpose(lying))
    np.testing.assert_array_equal(photo.pixels // 257 if dtype == np.uint16 else photo.pixels, upright)
    kept = Image.Exif()
    kept.load(photo.exif or b"")
    assert photos.ORIENTATION not in kept and kept[0x010E] == "words"


def test_the_preview_in_exif_data_which_shows_the_hole_is_gone() -> None:
    preview = saved(Image.new("RGB", (8, 8)), "JPEG").getvalue()
    # Little endian: a directory of one entry (a description), then a second one (offset and length of the preview).
    first, second = 8, 8 + 2 + 12 + 4
    at = second + 2 + 24 + 4
    data = b"II*\0" + struct.pack("<I", first) + struct.pack("<HHHI4sI", 1, 0x010E, 2, 3, b"ab\0\0", second)
    data += struct.pack("<H", 2) + struct.pack("<HHII", 0x0201, 4, 1, at) + struct.pack("<HHII", 0x0202, 4, 1, len(preview)) + b"\0" * 4
    source = saved(Image.fromarray(channels(3)), "JPEG", exif=b"Exif\0\0" + data + preview)
    assert preview in source.getvalue()
    photo = read_photo(source, "it")
    assert photo.exif and b"ab" in photo.exif
    assert preview[:4] not in photo.exif and preview not in encode_photo(photo, ".jpg")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_filling_changes_the_hole_alone(count: int, dtype: type) -> None:
    given, colours = channels(count, dtype), 1 if count < 3 else 3
    photo = Photo(given[..., :colours], given[..., colours:] if count in (2, 4) else None)
    completion = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    filled, inside = photo.filled(completion, hole()), hole()[..., 0] > 0
    assert_same(filled.pixels[~inside], photo.pixels[~inside])
    wanted = completion if colours == 3 else np.asarray(Image.fromarray(completion).convert("L"))[..., None]
    np.testing.assert_allclose(filled.pixels[inside] / np.iinfo(dtype).max, wanted[inside] / 255, atol=1.01 / 255 if colours == 1 else 0)
    if photo.alpha is not None and filled.alpha is not None:
        assert_same(filled.alpha[~inside], photo.alpha[~inside])
        assert (filled.alpha[inside] == np.iinfo(dtype).max).all()


def test_the_network_is_shown_transparent_parts_on_white() -> None:
    alpha = np.zeros((HEIGHT, WIDTH, 1), np.uint8)
    alpha[:, :9] = 255
    shown = Photo(channels(3), alpha).rgb()
    np.testing.assert_array_equal(shown[:, :9], channels(3)[:, :9])
    assert (shown[:, 9:] == 255).all()


def test_palettes_and_bilevel_photos_are_read_as_colours_and_grey() -> None:
    image = Image.fromarray(channels(3))
    palette = image.convert("P")
    np.testing.assert_array_equal(read_photo(saved(palette), "it").pixels, np.asarray(palette.convert("RGB")))
    bilevel = image.convert("1")
    np.testing.assert_array_equal(read_photo(saved(bilevel), "it").pixels[..., 0], np.asarray(bilevel.convert("L")))


@pytest.mark.parametrize(
    ("photo", "suffix", "message"),
    [
        (
            Photo(channels(3, np.uint16)),
            ".tif",
            "out: TIFF cannot hold 16 bits a channel, which the photo has; choose an output that ends in .png",
        ),
        (Photo(channels(3, np.uint16)), ".jpg", "JPEG cannot hold 16 bits"),
        (Photo(channels(3), channels(1)), ".jpg", "JPEG cannot hold transparency"),
        (Photo(channels(3), channels(1)), ".bmp", "BMP cannot hold transparency"),
        (Photo(channels(3), icc_profile=PROFILE), ".bmp", "BMP cannot hold a colour profile"),
        (Photo(np.zeros((1, 16384, 3), np.uint8)), ".webp", "WEBP cannot hold a side of 16384 pixels"),
        (Photo(channels(3)), ".gif", "out must name an image file: its suffix is none of .png"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(photo: Photo, suffix: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_holds(photo, suffix, "out")


@pytest.mark.parametrize(("kind", "suffix"), [("PNG", ".png"), ("JPEG", ".png"), ("WEBP", ".webp"), ("TIFF", ".tif"), ("GIF", ".png")])
def test_the_format_is_kept_where_it_keeps_pixels(kind: str, suffix: str) -> None:
    assert usual_suffix(Photo(channels(3), format=kind)) == suffix
    assert usual_suffix(Photo(channels(3, np.uint16), format=kind)) == ".png"


# --- masks ---


def test_masks_of_all_kinds() -> None:
    mask = hole()[..., 0]
    shape = (HEIGHT, WIDTH)
    white = Image.fromarray(255 * mask)
    soft = Image.fromarray(np.where(hole() > 0, 128, 127).astype(np.uint8).repeat(3, 2))
    for image in white, white.convert("1"), soft, Image.merge("LA", (Image.new("L", white.size, 255), white)):
        np.testing.assert_array_equal(read_mask(saved(image), "it", shape), hole())
    np.testing.assert_array_equal(read_mask(saved(ImageOps.invert(white)), "it", shape, invert=True), hole())
    assert not read_mask(saved(Image.new("L", white.size)), "it", shape, dilate=3).any()


def test_a_hole_grows_to_all_sides_by_as_many_pixels() -> None:
    mask = np.zeros((21, 21, 1), np.uint8)
    mask[10, 10] = 1
    y, x = np.mgrid[-10:11, -10:11]
    np.testing.assert_array_equal(grown(mask, 4)[..., 0], x**2 + y**2 <= 16)
    np.testing.assert_array_equal(grown(mask, 0), mask)


# --- files that are no photos ---


def png(width: int, height: int, data: bytes = b"", depth: int = 8, colour: int = 2) -> bytes:
    """A PNG that claims to be of this size."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    return photos.PNG_SIGNATURE + b"".join(photos._png_chunk(name, data) for name, data in parts)


def damaged(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


def malformed() -> Iterator[tuple[str, bytes, str]]:
    """(name, file, what is said about it)."""
    image, deep = Image.fromarray(channels(3)), encode_photo(Photo(channels(3, np.uint16)), ".png")
    files = {kind: saved(image, kind).getvalue() for kind in ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")}
    unknown = "it is empty, damaged or of no known format"
    yield "empty", b"", unknown
    yield "text", b"this is no image", unknown
    yield "HTML", b"<!DOCTYPE html><html></html>", unknown
    yield "SVG", b"<svg xmlns='http://www.w3.org/2000/svg'/>", unknown
    yield "PDF", saved(image, "PDF").getvalue(), unknown
    yield "zeros", bytes(4096), unknown
    yield "PPM, not among the formats", saved(image, "PPM").getvalue(), unknown
    yield "ICO, not among the formats", saved(image, "ICO").getvalue(), unknown
    for kind, data in files.items():
        yield f"{kind}, its first bytes alone", data[:10], "cannot be read as an image"
        yield f"{kind}, cut in the middle", data[: len(data) // 2], "cannot be read as an image"
    yield "PNG, damaged header", damaged(files["PNG"], 17), "cannot be read as an image"
    yield "PNG, damaged data", damaged(files["PNG"], 60), "cannot be read as an image"
    yield "PNG of 16 bits, cut", deep[: len(deep) // 2], "cannot be read as an image"
    yield "PNG without pixels", png(10, 10), "cannot be read as an image"
    yield "PNG, no width", png(0, 10), "cannot be read as an image"
    yield "PNG, no height", png(10, 0), "cannot be read as an image"
    yield "PNG, huge", png(100_000, 100_000), "has more than 89 million pixels"
    yield "PNG, too large", png(10_000, 10_000), "has more than 89 million pixels"
    yield "PNG, largest numbers", png(2**31 - 1, 2**31 - 1), "has more than 89 million pixels"
    yield "GIF, moving", saved(image, "GIF", save_all=True, append_images=[image.rotate(90)]).getvalue(), "holds 2 pictures"
    yield "TIFF, pages", saved(image, "TIFF", save_all=True, append_images=[image]).getvalue(), "holds 2 pictures"
    yield "TIFF, floating-point", saved(Image.new("F", (4, 4)), "TIFF").getvalue(), "colours of Pillow's mode F"
    yield "TIFF, 32 bits", saved(Image.new("I", (4, 4)), "TIFF").getvalue(), "colours of Pillow's mode I"
    yield "JPEG, CMYK", saved(image.convert("CMYK"), "JPEG").getvalue(), "colours of Pillow's mode CMYK"
    yield "TIFF, LAB", saved(Image.new("LAB", (4, 4)), "TIFF").getvalue(), "colours of Pillow's mode LAB"


MALFORMED = list(malformed())


def test_there_are_thirty_malformed_files() -> None:
    assert len(MALFORMED) >= 30


@pytest.mark.parametrize(("data", "said"), [pytest.param(data, said, id=name) for name, data, said in MALFORMED])
def test_a_malformed_file_is_one_sentence(data: bytes, said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file.png").write_bytes(data)
    for source in (tmp_path / "file.png", io.BytesIO(data)):
        with pytest.raises(InputError) as raised:
            read_photo(source, "--image file.png")
        message = str(raised.value)
        assert message.startswith("--image file.png ") and said in message and "\n" not in message and len(message) < 300
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "it is empty"),
        (png(100_000, 100_000), "more than 89 million pixels"),
        (saved(Image.new("L", (9, 8))).getvalue(), "is 9 x 8 pixels, the photo, upright, is 30 x 20; make a mask of the photo's size"),
        (saved(Image.new("L", (HEIGHT, WIDTH))).getvalue(), "is 20 x 30 pixels"),
    ],
)
def test_a_file_that_is_no_mask_is_one_sentence(data: bytes, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_mask(io.BytesIO(data), "--mask file.png", (HEIGHT, WIDTH))


@pytest.mark.parametrize("name", ["nowhere.png", "."])
def test_what_is_no_file_is_said_to_be_none(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="it is not a file; pass the path of an image"):
        read_photo(tmp_path / name, "it")


def test_a_photo_that_a_program_cannot_rely_on_reading_twice_is_left_at_no_special_place() -> None:
    source = saved(Image.fromarray(channels(3)))
    source.seek(7)
    np.testing.assert_array_equal(read_photo(source, "it").pixels, channels(3))


def test_decompression_bombs_end_without_a_warning() -> None:
    with warnings.catch_warnings(record=True) as heard:
        warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
        with pytest.raises(InputError, match="89 million"):
            read_photo(io.BytesIO(png(10_000, 10_000)), "it")
    assert not heard
