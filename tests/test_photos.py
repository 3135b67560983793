"""People's photos: all that belongs to a file comes back, and what could not is refused."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from spn_jax.errors import InputError
from spn_jax.photos import Photo, encode_photo, read_mask, read_photo, turned, usual_suffix
from tests.inpainting import HEIGHT, WIDTH, corner, photo

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
KNOWN = corner()[..., 0] == 0
FILL = np.full((HEIGHT, WIDTH, 3), 100, np.uint8)


def filled(content: bytes, suffix: str = ".png") -> Photo:
    """A file read, filled with one value, written and read again."""
    read = read_photo(io.BytesIO(content), "photo")
    return read_photo(io.BytesIO(encode_photo(read.filled(FILL, corner()), suffix)), "result")


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_16_bits_profile_and_transparency_come_back() -> None:
    deep = np.random.default_rng(0).integers(0, 2**16, (HEIGHT, WIDTH, 4), np.uint16)
    stored = Photo(deep[..., :3], deep[..., 3:], "PNG", PROFILE)
    result = filled(encode_photo(stored, ".png"))
    assert result.alpha is not None and result.icc_profile == PROFILE
    np.testing.assert_array_equal(result.pixels[KNOWN], deep[..., :3][KNOWN])
    np.testing.assert_array_equal(result.alpha[KNOWN], deep[..., 3:][KNOWN])
    assert (result.pixels[~KNOWN] == 257 * 100).all() and (result.alpha[~KNOWN] == 2**16 - 1).all()


def test_16_bits_are_read_as_another_program_writes_them() -> None:
    deep = np.random.default_rng(0).integers(0, 2**16, (HEIGHT, WIDTH, 3), np.uint16)
    content = cv2.imencode(".png", deep[..., ::-1])[1].tobytes()
    np.testing.assert_array_equal(read_photo(io.BytesIO(content), "photo").pixels, deep)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tiff", ".bmp"])
def test_grey_stays_grey_or_is_the_same_in_three_channels(suffix: str) -> None:
    grey = photo()[..., :1]
    result = filled(saved(Image.fromarray(grey[..., 0])), suffix)
    np.testing.assert_array_equal(result.pixels[KNOWN], np.broadcast_to(grey, result.pixels.shape)[KNOWN])


def test_a_photo_lying_on_its_side_is_read_upright_and_written_without_the_tag() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"  # to be turned by 90 degrees clockwise
    content = saved(Image.fromarray(np.rot90(photo()).copy()), exif=exif)
    result = filled(content)
    np.testing.assert_array_equal(result.pixels[KNOWN], photo()[KNOWN])
    kept = Image.Exif()
    assert result.exif is not None
    kept.load(result.exif)
    assert dict(kept) == {0x010F: "maker"}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_as_pillow_turns_it(orientation: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.open(io.BytesIO(saved(Image.fromarray(photo()), exif=exif)))
    np.testing.assert_array_equal(turned(photo(), orientation), np.asarray(ImageOps.exif_transpose(image)))


def test_formats_that_could_not_hold_a_photo() -> None:
    deep = Photo(np.zeros((4, 4, 3), np.uint16))
    for one, suffix, lacking in [
        (deep, ".tiff", "TIFF cannot hold 16 bits a channel"),
        (Photo(photo(), np.ones((HEIGHT, WIDTH, 1), np.uint8)), ".jpg", "JPEG cannot hold transparency"),
        (Photo(photo(), icc_profile=PROFILE), ".bmp", "BMP cannot hold a colour profile"),
        (Photo(np.zeros((1, 16384, 3), np.uint8)), ".webp", "WEBP cannot hold a side of 16384 pixels"),
        (Photo(photo()), ".gif", "must name an image file"),
    ]:
        with pytest.raises(InputError, match=lacking):
            encode_photo(one, suffix)
    assert usual_suffix(deep) == usual_suffix(Photo(photo(), format="JPEG")) == ".png"


def broken() -> dict[str, tuple[bytes, str]]:
    whole = saved(Image.fromarray(photo()))
    frames = [Image.fromarray(photo(seed=seed)) for seed in (0, 1)]
    huge = whole[:16] + (60_000).to_bytes(4, "big") * 2 + whole[24:]
    return {
        "empty": (b"", "empty, damaged or of no known format"),
        "text": (b"no image", "empty, damaged or of no known format"),
        "cut": (whole[:-200], "cannot be read as an image"),
        "huge": (huge, "million pixels|cannot be read as an image"),
        "moving": (saved(frames[0], "GIF", save_all=True, append_images=frames[1:]), "holds 2 pictures"),
        "printed": (saved(Image.fromarray(photo()).convert("CMYK"), "TIFF"), "mode CMYK"),
    }


@pytest.mark.parametrize("name", broken())
def test_a_file_that_is_no_photo_is_one_sentence(name: str) -> None:
    content, message = broken()[name]
    with pytest.raises(InputError, match=message) as error:
        read_photo(io.BytesIO(content), "the upload")
    assert str(error.value).startswith("the upload") and "\n" not in str(error.value)


def test_a_mask_grows_by_so_many_pixels(tmp_path: Path) -> None:
    point = np.zeros((9, 9), np.uint8)
    point[4, 4] = 255
    Image.fromarray(point).save(tmp_path / "mask.png")
    rows, columns = np.mgrid[:9, :9] - 4
    grown = read_mask(tmp_path / "mask.png", "mask", (9, 9), dilate=3)
    np.testing.assert_array_equal(grown[..., 0] > 0, np.hypot(rows, columns) <= 3)
