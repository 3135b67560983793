"""Photos read, filled and written, held against independent readers: known pixels are equal in the
file that is written, the hole lies where a person sees it.

`tests.photo_files` reads and writes the files without Pillow's and OpenCV's readers.
"""

import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from spn_jax.errors import InputError
from spn_jax.filling.photos import as_mask, as_photo, encode_photo, read_mask
from tests import photo_files
from tests.photo_files import lying, read_by_others, upright


class Case(NamedTuple):
    """A photo's file and a mask. `channels` 1 to 4; `bits` 8 or 16, of a palette or few greys 1 to
    8; `order` of a TIFF's bytes.
    """

    format: str
    channels: int
    bits: int
    orientation: int
    order: str
    compression: str
    height: int
    width: int
    seed: int
    door: str
    mask_door: str
    # that of the mask's own tag
    mask_orientation: int
    # of the file that is written
    suffix: str


def possible(case: Case) -> bool:
    """Whether there are files of the kind, and whether they can be read: other ones are refused,
    which `test_photos` holds.
    """
    if case.format in ("palette", "few greys"):
        return case.bits < 16 and (case.channels > 2) == (case.format == "palette")
    if case.bits not in (8, 16):
        return False
    if case.format == "transparent colour":
        return case.bits == 8 and case.channels in (2, 4)
    if case.format == "JPEG":
        return case.bits == 8 and case.channels in (1, 3)
    if case.format == "WEBP":
        return case.bits == 8 and case.channels in (3, 4)
    if case.format == "BMP":
        return case.bits == 8 and case.channels in (1, 3) and case.orientation == 1
    return (case.format, case.channels, case.bits) != ("TIFF", 2, 16)  # which Pillow does not know


CASES = st.builds(
    Case,
    format=st.sampled_from(["PNG", "TIFF", "JPEG", "WEBP", "BMP", "palette", "few greys", "transparent colour"]),
    channels=st.integers(1, 4),
    bits=st.sampled_from([8, 16, 1, 2, 4]),
    orientation=st.integers(1, 8),
    order=st.sampled_from("<>"),
    compression=st.sampled_from(["none", "lzw", "deflate"]),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
    door=st.sampled_from(["path", "bytes", "file", "Pillow"]),
    mask_door=st.sampled_from(["path", "bytes", "file", "Pillow", "TIFF", "TIFF of Pillow", "array"]),
    mask_orientation=st.integers(1, 8),
    suffix=st.sampled_from([".png", ".tif", ".webp", ".bmp"]),
).filter(possible)


def written(case: Case, random: np.random.Generator) -> tuple[bytes, np.ndarray]:
    """The photo's file, and its channels as stored."""
    size, orientation = (case.height, case.width), case.orientation
    if case.format == "palette":
        return photo_files.png_with_palette(random, size, case.bits, case.channels == 4, orientation)
    if case.format == "few greys":
        return photo_files.png_of_few_greys(random, size, case.bits, case.channels == 2, orientation)
    dtype = np.uint8 if case.bits == 8 else np.uint16
    pixels = random.integers(0, 2**case.bits, (*size, case.channels), dtype)
    if case.format == "transparent colour":
        return photo_files.png_with_a_transparent_colour(pixels[..., :-1], orientation)
    if case.format == "TIFF":
        return photo_files.tiff(pixels, orientation, case.order, case.compression), pixels
    if case.format == "BMP":
        return photo_files.bmp(pixels), pixels
    if case.format == "JPEG":
        data = photo_files.jpeg(pixels, orientation)
        return data, read_by_others(data)
    return (photo_files.png if case.format == "PNG" else photo_files.webp)(pixels, orientation), pixels


def mask_source(case: Case, mask: np.ndarray, path: Path) -> Any:
    """A mask (h, w, 1) as it may be handed over: files with a tag of their own, or an array."""
    if case.mask_door == "array":
        kinds = mask > 0, mask, 255 * mask[..., 0], 65535 * mask.astype(np.uint16), mask.astype(np.float32), (255 * mask).repeat(3, 2)
        return kinds[case.seed % len(kinds)]
    stored = lying(255 * mask, case.mask_orientation)
    tiff = case.mask_door.startswith("TIFF")
    data = photo_files.tiff(stored, case.mask_orientation, case.order) if tiff else photo_files.png(stored, case.mask_orientation)
    path.write_bytes(data)
    sources = {"bytes": data, "file": io.BytesIO(data)}
    return Image.open(path) if "Pillow" in case.mask_door else sources.get(case.mask_door, path)


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CASES)
def test_known_pixels_are_those_that_others_read_and_the_hole_is_where_it_is_seen(tmp_path: Path, case: Case) -> None:
    random = np.random.default_rng(case.seed)
    data, stored = written(case, random)
    np.testing.assert_array_equal(read_by_others(data), stored)
    seen = upright(stored, case.orientation)
    path = tmp_path / "photo"
    path.write_bytes(data)

    if case.door == "Pillow" and case.bits == 16 and case.channels > 1:
        # Pillow's images of colours have 8 bits: what is handed over has lost the others already
        return
    source = {"path": path, "bytes": data, "file": io.BytesIO(data)}.get(case.door)
    photo = as_photo(Image.open(path) if source is None else source)

    height, width = seen.shape[:2]
    assert photo.size == (height, width)
    mask = (random.random((height, width, 1)) < 0.4).astype(np.uint8)
    mask[0, 0] = 1  # else a mask of one pixel may have no hole
    hole = as_mask(mask_source(case, mask, tmp_path / "mask"), photo.size)
    np.testing.assert_array_equal(hole, mask)

    completion = random.uniform(0, 255, (height, width, 3)).astype(np.float32)
    filled = photo.with_colours_in_hole(completion[hole[..., 0] > 0], hole)
    try:
        result = read_by_others(encode_photo(filled, case.suffix))
    except InputError as error:
        assert str(error).endswith("choose an output that ends in .png")
        result = read_by_others(encode_photo(filled, ".png"))
    known, inside = mask[..., 0] == 0, mask[..., 0] > 0
    assert result.dtype == seen.dtype and result.shape[:2] == (height, width)
    # WebP leaves out an opacity that is full everywhere.
    if result.shape[2] == 3 and seen.shape[2] % 2 == 0:
        result = np.concatenate([result, np.full_like(result[..., :1], 255)], -1)
    # some formats have no grey, or none with opacity, nor does OpenCV's writer of 16 bits
    if seen.shape[2] < 3 and result.shape[2] > 2:
        assert (np.ptp(result[..., :3], axis=2) == 0).all()
        result = result[..., [0, 3][: seen.shape[2]]]
    np.testing.assert_array_equal(result[known], seen[known])
    if seen.shape[2] > 2:
        np.testing.assert_array_equal(result[inside][:, :3], np.rint(completion[inside] * (257 if case.bits == 16 else 1)))
    if not seen.shape[2] % 2:
        assert (result[inside][:, -1] == np.iinfo(result.dtype).max).all()


def test_colours_multiplied_by_their_opacity_are_refused_where_dividing_would_round_them() -> None:
    pixels = np.full((2, 3, 4), 255, np.uint8)
    pixels[0, 0] = 0, 0, 0, 0
    for opacity in 255, 123:
        pixels[1, 1] = 100, 3, 120, opacity
        file = io.BytesIO()
        tifffile.imwrite(file, pixels, photometric="rgb", extrasamples=["assocalpha"])
        if opacity < 255:
            with pytest.raises(
                InputError, match=r"the photo has colours multiplied by their opacity \(associated alpha\), .*; save it as PNG"
            ):
                as_photo(file)
        else:
            photo = as_photo(file)
            assert photo.alpha is not None
            np.testing.assert_array_equal(np.concatenate([photo.pixels, photo.alpha], -1), pixels)


@pytest.mark.parametrize("dtype", [np.int8, np.int16])
def test_signed_numbers_are_refused(dtype: type) -> None:
    file = io.BytesIO()
    tifffile.imwrite(file, np.array([[-1, 0, 1]], dtype), photometric="minisblack")
    with pytest.raises(InputError, match="the photo is of signed numbers, which cannot be preserved; convert it to RGB or greyscale"):
        as_photo(file)


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("bits", [8, 16])
def test_grey_tiffs_of_either_order_and_either_white(bits: int, order: str, photometric: str) -> None:
    values = np.array([[0, 1, 254, 255]], np.uint8) if bits == 8 else np.array([[0, 1, 255, 256, 40000, 65535]], np.uint16)
    file = io.BytesIO()
    tifffile.imwrite(file, values, byteorder=order, photometric=photometric)
    wanted = values if photometric == "minisblack" else np.iinfo(values.dtype).max - values
    if (bits, order, photometric) == (16, ">", "miniswhite"):  # which Pillow does not know
        with pytest.raises(InputError, match="the photo is a TIFF of a rare kind or a camera's raw file, which is not read here; convert"):
            as_photo(file)
        return
    np.testing.assert_array_equal(as_photo(file).pixels[..., 0], wanted)


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_tiffs_as_masks(dtype: type, order: str, photometric: str) -> None:
    mask = (np.random.default_rng(0).random((9, 7, 1)) < 0.5).astype(np.uint8)
    white = np.iinfo(dtype).max
    values: np.ndarray = white * mask[..., 0].astype(dtype)
    file = io.BytesIO()
    tifffile.imwrite(file, values if photometric == "minisblack" else white - values, byteorder=order, photometric=photometric)
    if (dtype, order, photometric) == (np.uint16, ">", "miniswhite"):  # which Pillow does not know
        with pytest.raises(InputError, match="a TIFF of a rare kind"):
            read_mask(file, "it", (9, 7))
        return
    np.testing.assert_array_equal(read_mask(file, "it", (9, 7)), mask)
