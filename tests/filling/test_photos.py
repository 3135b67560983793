"""Photos as people have them: what is kept to the bit, what a filled one is, and which files are
refused, each in one sentence.
"""

import io
import struct
import subprocess
import sys
import time
import tracemalloc
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import pillow_heif
import pytest
import tifffile
from PIL import ExifTags, Image, ImageOps

from spn_jax.errors import InputError
from spn_jax.filling import metadata, photos
from spn_jax.filling.holes import grown
from spn_jax.filling.photos import Photo, as_photo, check_holds, encode_photo, read_mask, read_photo, usual_suffix

ROOT = Path(__file__).resolve().parent.parent
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


def filled_with(photo: Photo, completion: np.ndarray) -> Photo:
    """The photo with the pixels of a completion (h, w, 3) in that hole."""
    return photo.with_colours_in_hole(completion[hole()[..., 0] > 0], hole())


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
    opacity = 1 if photo.alpha is None else photo.alpha / 65535
    np.testing.assert_allclose(
        photo.rgb()[..., :colours], (photo.pixels * opacity + 65535 * (1 - opacity)) / 257, atol=0.51 if photo.alpha is None else 1.51
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
    exif[metadata.ORIENTATION] = orientation
    exif[0x010E] = "words"
    given = Photo(channels(3, dtype), exif=exif.tobytes())
    photo = reread(given)
    lying = Image.fromarray((given.pixels // 257).astype(np.uint8) if dtype == np.uint16 else given.pixels)
    lying.getexif()[metadata.ORIENTATION] = orientation
    upright = np.asarray(ImageOps.exif_transpose(lying))
    np.testing.assert_array_equal(photo.pixels // 257 if dtype == np.uint16 else photo.pixels, upright)
    kept = Image.Exif()
    kept.load(photo.exif or b"")
    assert metadata.ORIENTATION not in kept and kept[0x010E] == "words"


def test_the_preview_in_exif_data_which_shows_the_hole_is_gone() -> None:
    preview = saved(Image.new("RGB", (8, 8)), "JPEG").getvalue()
    # Little endian: a directory of one entry (a description), then a second one (offset and length
    # of the preview).
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
    filled, inside = filled_with(photo, completion), hole()[..., 0] > 0
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
    return metadata.PNG_SIGNATURE + b"".join(metadata.png_chunk(name, data) for name, data in parts)


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
    yield "SVG", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing, which is not read here; export it as PNG"
    yield "PDF", saved(image, "PDF").getvalue(), "a PDF, which is not read here; convert it to PNG or TIFF"
    yield "zeros", bytes(4096), unknown
    yield "PPM, not among the formats", saved(image, "PPM").getvalue(), "a PPM file, which is not read here; convert it"
    yield "ICO, not among the formats", saved(image, "ICO").getvalue(), "an icon, which is not read here"
    for kind, data in files.items():
        yield f"{kind}, its first bytes alone", data[:10], "cannot be "
        yield f"{kind}, cut in the middle", data[: len(data) // 2], "cannot be "
    yield "PNG, damaged header", damaged(files["PNG"], 17), "cannot be "
    yield "PNG, damaged data", damaged(files["PNG"], 60), "cannot be "
    yield "PNG of 16 bits, cut", deep[: len(deep) // 2], "cannot be "
    yield "PNG without pixels", png(10, 10), "cannot be "
    yield "PNG, no width", png(0, 10), "cannot be read as an image"
    yield "PNG, no height", png(10, 0), "cannot be read as an image"
    yield "PNG, huge", png(100_000, 100_000), "is larger than 89 megapixels, the limit; scale it down"
    yield "PNG, too large", png(10_000, 10_000), "is larger than 89 megapixels, the limit; scale it down"
    yield "PNG, largest numbers", png(2**31 - 1, 2**31 - 1), "is larger than 89 megapixels, the limit; scale it down"
    yield (
        "GIF, moving",
        saved(image, "GIF", save_all=True, append_images=[image.rotate(90)]).getvalue(),
        "contains several pages or frames; save the one you want",
    )
    yield (
        "TIFF, pages",
        saved(image, "TIFF", save_all=True, append_images=[image]).getvalue(),
        "contains several pages or frames; save the one you want",
    )
    yield (
        "TIFF, floating-point",
        saved(Image.new("F", (4, 4)), "TIFF").getvalue(),
        "is of floating-point numbers, which cannot be preserved; convert it to RGB or greyscale",
    )
    yield (
        "TIFF, 32 bits",
        saved(Image.new("I", (4, 4)), "TIFF").getvalue(),
        "is of 32-bit numbers, which cannot be preserved; convert it to RGB or greyscale",
    )
    yield (
        "JPEG, CMYK",
        saved(image.convert("CMYK"), "JPEG").getvalue(),
        "is CMYK, which cannot be preserved; convert it to RGB or greyscale",
    )
    yield (
        "TIFF, LAB",
        saved(Image.new("LAB", (4, 4)), "TIFF").getvalue(),
        "is LAB, which cannot be preserved; convert it to RGB or greyscale",
    )


MALFORMED = list(malformed())


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
        (png(100_000, 100_000), "larger than 89 megapixels, the limit; scale it down"),
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
        warnings.simplefilter("always")
        with pytest.raises(InputError, match="89 megapixels"):
            read_photo(io.BytesIO(png(10_000, 10_000)), "it")
        with pytest.raises(InputError, match="89 megapixels"):
            read_mask(io.BytesIO(png(10_000, 10_000)), "it", (10_000, 10_000))
    assert not heard


def test_the_filters_of_warnings_stay_the_users() -> None:
    program = "import warnings; import spn_jax.filling.photos; assert not [f for f in warnings.filters if 'Bomb' in str(f[2])]"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


# --- what lies in a file besides pixels ---


def kept_exif(photo: Photo) -> Image.Exif:
    exif = Image.Exif()
    exif.load(photo.exif or b"")
    return exif


def test_makers_notes_and_everything_else_that_may_hold_a_preview_are_left_out_and_named() -> None:
    preview = saved(Image.new("RGB", (8, 8)), "JPEG").getvalue()
    exif = Image.Exif()
    exif[0x010E], exif[0xC4A5], exif[0x8649] = "words", b"PrintIM\0" + preview, preview
    exif[0x8769] = {0x927C: b"Nikon\0" + preview, 0x9286: b"ASCII\0\0\0" + preview, 0xA434: "a lens", 0x9003: "2026:01:01 00:00:00"}
    exif[0x8825] = {1: "N", 2: (1.0, 2.0, 3.0)}
    xmp = b"<x:xmpmeta><xmpGImg:image>abc</xmpGImg:image></x:xmpmeta>"
    source = saved(Image.fromarray(channels(3)), "JPEG", exif=exif, xmp=xmp, comment=preview)
    assert source.getvalue().count(preview) == 5
    photo = read_photo(source, "it")
    assert photo.left_out == ("PrintIM", "Photoshop data", "MakerNote", "EXIF tag UserComment", "XMP", "a comment")
    for suffix in ".png", ".jpg", ".webp", ".tif":
        written = encode_photo(photo, suffix)
        assert preview not in written and b"Nikon" not in written and xmp not in written
    kept = kept_exif(reread(photo))
    assert kept[0x010E] == "words" and kept.get_ifd(0x8769) == {0xA434: "a lens", 0x9003: "2026:01:01 00:00:00"}
    assert kept.get_ifd(0x8825) == {1: "N", 2: (1.0, 2.0, 3.0)}


def test_what_a_tiff_tells_about_the_photo_comes_back_by_its_names_in_the_standard() -> None:
    exif = Image.Exif()
    told = ("ImageDescription", "Make", "Model", "Software", "DateTime", "Artist", "Copyright")
    for name in told:
        exif[ExifTags.Base[name].value] = name
    exif[ExifTags.Base.HostComputer.value] = "not among them"
    photo = read_photo(saved(Image.fromarray(channels(3)), "TIFF", exif=exif.tobytes()), "it")
    assert dict(kept_exif(photo)) == {ExifTags.Base[name].value: name for name in told}


def test_tags_that_say_how_pixels_lay_in_another_file_are_left_out() -> None:
    exif = Image.Exif()
    layout = (
        *("ImageWidth", "ImageLength", "BitsPerSample", "Compression", "PhotometricInterpretation", "StripOffsets", "SamplesPerPixel"),
        *("RowsPerStrip", "StripByteCounts", "TileWidth", "TileLength", "TileOffsets", "TileByteCounts", "JpegIFOffset"),
        *("JpegIFByteCount", "InterColorProfile"),
    )
    for name in layout:
        exif[ExifTags.Base[name].value] = 7
    exif[ExifTags.Base.Make.value] = "kept"
    photo = read_photo(saved(Image.fromarray(channels(3)), "JPEG", exif=exif.tobytes()), "it")
    assert dict(kept_exif(photo)) == {ExifTags.Base.Make.value: "kept"}


def test_exif_data_that_cannot_be_written_again_is_left_out_and_named() -> None:
    resolution_in_words = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHI4s", 0x011A, 2, 3, b"72\0\0") + bytes(4)
    photo = read_photo(saved(Image.fromarray(channels(3)), "PNG", exif=resolution_in_words), "it")
    np.testing.assert_array_equal(photo.pixels, channels(3))
    assert photo.exif is None and photo.left_out == ("malformed EXIF data",)


def test_damaged_exif_data_never_stops_a_photo() -> None:
    exif = Image.Exif()
    exif[0x010E], exif[0x011A], exif[0x0112], exif[0x013B] = "words", 72.0, 6, "somebody"
    exif[0x8769] = {0x829A: 0.01, 0x9003: "2026:01:01 00:00:00", 0x927C: bytes(40)}
    exif[0x8825] = {1: "N", 2: (1.0, 2.0, 3.0)}
    whole, random = exif.tobytes(), np.random.default_rng(0)
    for _ in range(500):
        data = bytearray(whole)
        for place in random.integers(6, len(data), random.integers(1, 4)):
            data[place] = random.integers(256)
        for kind in "PNG", "JPEG":
            photo = read_photo(saved(Image.fromarray(channels(3)), kind, exif=bytes(data)), "it")
            assert sorted(photo.size) == [HEIGHT, WIDTH]
            encode_photo(photo, ".png")


CHUNKS = {
    b"gAMA": struct.pack(">I", 100_000),
    b"cHRM": struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6001),
    b"sRGB": b"\1",
    b"cICP": bytes([9, 16, 0, 1]),
    b"mDCV": bytes(range(24)),
    b"cLLI": bytes(range(8)),
    b"pHYs": struct.pack(">IIB", 3780, 3781, 1),
}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("name", CHUNKS)
def test_chunks_that_say_how_a_png_looks_come_back(name: bytes, dtype: type) -> None:
    plain = encode_photo(Photo(channels(3, dtype)), ".png")
    photo = read_photo(io.BytesIO(metadata.with_chunks(plain, {name: CHUNKS[name]})), "it")
    assert photo.chunks == {name: CHUNKS[name]}
    written = encode_photo(filled_with(photo, channels(3, np.uint8)), ".png")
    assert written.count(metadata.png_chunk(name, CHUNKS[name])) == 1
    assert read_photo(io.BytesIO(written), "it").chunks == photo.chunks
    if name in (b"gAMA", b"cHRM", b"cICP"):
        with pytest.raises(InputError, match=r"JPEG cannot hold .*colours of a PNG's own \(cICP, gAMA or cHRM\)|16 bits"):
            check_holds(photo, ".jpg", "out")


def test_chunks_that_describe_srgb_hinder_no_other_format() -> None:
    usual = {b"sRGB": b"\0", b"gAMA": metadata.SRGB_GAMMA, b"cHRM": metadata.SRGB_PRIMARIES}
    for chunks in usual, {b"gAMA": metadata.SRGB_GAMMA, b"cHRM": metadata.SRGB_PRIMARIES}, {b"pHYs": CHUNKS[b"pHYs"]}:
        check_holds(Photo(channels(3), chunks=chunks), ".jpg", "out")
    # the profile counts
    check_holds(Photo(channels(3), chunks={b"gAMA": CHUNKS[b"gAMA"]}, icc_profile=PROFILE), ".jpg", "out")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp"])
def test_the_resolution_in_print_comes_back(suffix: str) -> None:
    photo = read_photo(saved(Image.fromarray(channels(3)), "JPEG", dpi=(300, 150)), "it")
    assert photo.resolution == (300, 150)
    np.testing.assert_allclose(reread(photo, suffix).resolution or (0, 0), (300, 150), atol=0.02)


def test_one_transparent_colour_is_transparent() -> None:
    grey = Image.fromarray(channels(1)[..., 0])
    colours = Image.fromarray(channels(3))
    red, green, blue = (int(value) for value in channels(3)[0, 0])
    for image, transparent in (grey, int(channels(1)[0, 0, 0])), (colours, (red, green, blue)):
        photo = read_photo(saved(image, transparency=transparent), "it")
        given = np.asarray(image).reshape(HEIGHT, WIDTH, -1)
        np.testing.assert_array_equal(photo.pixels, given)
        assert photo.alpha is not None
        np.testing.assert_array_equal(photo.alpha[..., 0] == 0, (given == transparent).all(-1))
    for kind in "PNG", "GIF":
        palette = Image.fromarray(channels(1)[..., 0] // 64, "L").convert("P")
        photo = read_photo(saved(palette, kind, transparency=2), "it")
        assert photo.alpha is not None
        np.testing.assert_array_equal(photo.alpha[..., 0] == 0, channels(1)[..., 0] // 64 == 2)


def test_the_second_picture_of_a_phones_jpeg_is_left_out_and_named() -> None:
    image = Image.fromarray(channels(3))
    source = saved(image, "MPO", save_all=True, append_images=[image.rotate(180)])
    photo = read_photo(source, "it")
    with Image.open(source) as first:
        np.testing.assert_array_equal(photo.pixels, np.asarray(first.convert("RGB")))
    assert photo.format == "JPEG" and "a second picture" in photo.left_out


def test_a_channel_that_is_neither_colour_nor_opacity_is_left_out_and_named() -> None:
    file = io.BytesIO()
    tifffile.imwrite(file, channels(4), photometric="rgb", extrasamples=["unspecified"])
    photo = read_photo(file, "it")
    np.testing.assert_array_equal(photo.pixels, channels(4)[..., :3])
    assert photo.alpha is None and photo.left_out == ("a channel beside the colours",)


# --- formats ---


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_phones_other_formats_are_read_upright_and_become_png(kind: str, orientation: int) -> None:
    assert set(photos.READ) >= {"AVIF", "HEIF"}
    exif = Image.Exif()
    exif[metadata.ORIENTATION], exif[0x010E] = orientation, "words"
    # which compression leaves nearly as they are
    blocks = np.kron(channels(1)[:5, :8], np.ones((8, 8, 1), np.uint8)).repeat(3, 2)
    photo = read_photo(saved(Image.fromarray(blocks), kind, exif=exif.tobytes(), quality=95), "it")
    lying = Image.fromarray(blocks)
    lying.getexif()[metadata.ORIENTATION] = orientation
    np.testing.assert_allclose(photo.pixels.astype(int), np.asarray(ImageOps.exif_transpose(lying)), atol=12)
    assert usual_suffix(photo) == ".png" and kept_exif(photo)[0x010E] == "words" and metadata.ORIENTATION not in kept_exif(photo)


@pytest.mark.parametrize("bits", [10, 12])
def test_depths_that_would_be_cut_are_refused(bits: int) -> None:
    deep = np.kron(channels(3).astype(np.uint16) << (bits - 8), np.ones((4, 4, 1), np.uint16))
    with pytest.raises(InputError, match=f"it is AVIF of {bits} bits a channel, which cannot be preserved; convert it to a PNG of 16"):
        read_photo(io.BytesIO(imagecodecs.avif_encode(deep, bitspersample=bits)), "it")
    file = io.BytesIO()
    pillow_heif.encode("RGB;16", (WIDTH, HEIGHT), (channels(3).astype(np.uint16) * 257).tobytes(), file)
    with pytest.raises(InputError, match="it is HEIF of 10 bits a channel"):
        read_photo(file, "it")
    values = np.arange(12, dtype=np.uint16).reshape(3, 4) * 300
    packed = io.BytesIO()
    tifffile.imwrite(packed, values, bitspersample=12, compression="none", photometric="minisblack")
    with pytest.raises(InputError, match="it has 12 bits a channel, which cannot be preserved; save it with 8 or 16"):
        read_photo(packed, "it")


def test_heic_without_its_reader_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos, "READ", tuple(kind for kind in photos.READ if kind != "HEIF"))
    file = saved(Image.fromarray(channels(3)), "HEIF")
    with pytest.raises(InputError, match=r"it is a HEIC photo, .*; install pillow-heif \(pip install -e '\.\[heic\]'\)"):
        read_photo(file, "it")


# --- one way in ---


@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_sources_show_the_same_photo(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[metadata.ORIENTATION], exif[0x010E] = orientation, "words"
    file = saved(Image.fromarray(channels(3)), exif=exif)
    (tmp_path / "photo.png").write_bytes(file.getvalue())
    upright = np.asarray(ImageOps.exif_transpose(Image.open(file)))
    sources = (tmp_path / "photo.png", str(tmp_path / "photo.png"), file.getvalue(), file, Image.open(file), read_photo(file, "it"))
    for source in sources:
        photo = as_photo(source)
        np.testing.assert_array_equal(photo.pixels, upright)
        assert kept_exif(photo)[0x010E] == "words" and metadata.ORIENTATION not in kept_exif(photo)
    assert_same(as_photo(channels(4, np.uint16)).pixels, channels(4, np.uint16)[..., :3])


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L"])
def test_sixteen_bit_images_of_pillow_keep_every_value(mode: str) -> None:
    values = np.array([[0, 1, 255, 256, 40000, 65535]], "<u2")
    image = Image.frombytes(mode, (6, 1), values.astype(">u2" if mode == "I;16B" else "<u2").tobytes())
    np.testing.assert_array_equal(as_photo(image).pixels[0, :, 0], values[0])


def test_damaged_files_give_a_photo_or_one_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    image, random = Image.fromarray(channels(3)), np.random.default_rng(0)
    exif = Image.Exif()
    exif[metadata.ORIENTATION] = 6
    files = [saved(image, kind, exif=exif.tobytes()).getvalue() for kind in ("PNG", "JPEG", "WEBP", "TIFF", "AVIF", "HEIF")]
    files += [saved(image, kind).getvalue() for kind in ("BMP", "GIF")]
    files += [saved(image, "TIFF", compression="tiff_lzw").getvalue(), encode_photo(Photo(channels(4, np.uint16)[..., :3]), ".png")]
    files += [cv2.imencode(".tiff", channels(3, np.uint16))[1].tobytes()]
    ended = {"photo": 0, "sentence": 0}
    for number in range(550):
        data = bytearray(files[number % len(files)])
        for place in random.integers(0, min(len(data), 400), random.integers(1, 4)):
            data[place] ^= 1 << random.integers(8)
        for read in (lambda file: read_photo(file, "it"), lambda file: read_mask(file, "it", (HEIGHT, WIDTH))):
            try:
                read(io.BytesIO(data))
                ended["photo"] += 1
            except InputError as error:
                assert str(error).startswith(("it ", "not enough memory for it")) and len(str(error)) < 400, error
                ended["sentence"] += 1
    assert min(ended.values()) > 100
    assert capfd.readouterr().out == ""


# --- files made to take long ---


def test_the_frames_of_a_file_are_not_counted() -> None:
    count, one = 30_000, saved(Image.new("L", (1, 1)), "GIF").getvalue()
    palette_ends = 13 + 3 * 2 ** ((one[10] & 7) + 1)
    gif = one[:-1] + one[palette_ends:-1] * count + b";"
    tags = [(256, 1), (257, 1), (258, 8), (259, 1), (262, 1), (273, 8), (278, 1), (279, 1)]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    places = [12 + i * (len(directory) + 4) for i in range(count)]
    tiff = b"II*\0" + struct.pack("<I", 12) + bytes(4) + b"".join(directory + struct.pack("<I", place) for place in [*places[1:], 0])
    for file in gif, tiff:
        start = time.perf_counter()
        with pytest.raises(InputError, match="contains several pages or frames"):
            read_photo(io.BytesIO(file), "it")
        assert time.perf_counter() - start < 0.2


def test_sixteen_bits_take_a_few_times_their_own_memory() -> None:
    pixels = np.zeros((1500, 2000, 3), np.uint16)
    file = io.BytesIO(encode_photo(Photo(pixels), ".png"))
    tracemalloc.start()
    try:
        read_photo(file, "it").rgb()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3.5 * pixels.nbytes
