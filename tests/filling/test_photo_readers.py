"""Photos read, filled and written, held against independent readers: known pixels are equal, the
hole lies where a person sees it.

tifffile and imagecodecs read and write the files; neither uses Pillow or OpenCV.
"""

import io
import struct
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from spn_jax.errors import InputError
from spn_jax.filling.metadata import ORIENTATION
from spn_jax.filling.photos import as_photo, encode_photo, read_mask

KINDS = {1: "grey", 2: "grey with opacity", 3: "colours", 4: "colours with opacity"}
# EXIF 2.32, table 6: which side of the stored picture is the visual top, and which the left
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


class Case(NamedTuple):
    """A photo's file. `channels` 1 to 4; `bits` 8 or 16; `order` of a TIFF's bytes."""

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
    # the mask is stored as the photo is, with its tag of orientation, and not as it is seen
    mask_lies: bool


def possible(case: Case) -> bool:
    """Whether there are files of the kind, and whether they can be read: other ones are refused,
    which `test_photos` holds.
    """
    if case.format == "JPEG":
        return case.bits == 8 and case.channels in (1, 3)
    if case.format == "WEBP":
        return case.bits == 8 and case.channels in (3, 4)
    if case.format == "BMP":
        return case.bits == 8 and case.channels in (1, 3) and case.orientation == 1
    return (case.format, case.channels, case.bits) != ("TIFF", 2, 16)  # which Pillow does not know


CASES = st.builds(
    Case,
    format=st.sampled_from(["PNG", "TIFF", "JPEG", "WEBP", "BMP"]),
    channels=st.integers(1, 4),
    bits=st.sampled_from([8, 16]),
    orientation=st.integers(1, 8),
    order=st.sampled_from("<>"),
    compression=st.sampled_from(["none", "lzw", "deflate"]),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
    door=st.sampled_from(["path", "bytes", "file", "Pillow"]),
    mask_lies=st.booleans(),
).filter(possible)


def exif_of(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif.tobytes()


def written(case: Case, pixels: np.ndarray) -> bytes:
    """The file; pixels are (h, w, c), as they are stored."""
    flat = pixels[..., 0] if case.channels == 1 else pixels
    exif = exif_of(case.orientation)
    if case.format == "TIFF":
        file = io.BytesIO()
        options: dict[str, Any] = {} if case.compression == "none" else {"compression": case.compression}
        photometric = "rgb" if case.channels > 2 else "minisblack"
        extra = {} if case.channels % 2 else {"extrasamples": ["unassalpha"]}
        tag = [(ORIENTATION, "H", 1, case.orientation, True)]
        tifffile.imwrite(file, flat, byteorder=case.order, photometric=photometric, metadata=None, extratags=tag, **options, **extra)
        return file.getvalue()
    if case.format == "PNG":
        plain = bytes(imagecodecs.png_encode(flat))
        chunk = exif.removeprefix(b"Exif\0\0")
        header = 8 + 12 + 13
        return plain[:header] + png_chunk(b"eXIf", chunk) + plain[header:]
    if case.format == "BMP":
        return bytes(imagecodecs.bmp_encode(flat))
    if case.format == "WEBP":
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "WEBP", lossless=True, exact=True, exif=exif)
        return file.getvalue()
    plain = bytes(imagecodecs.jpeg8_encode(flat, level=95))
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    return plain[:2] + segment + plain[2:]


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def read_by_others(case: Case, data: bytes) -> np.ndarray:
    """(h, w, c) as stored."""
    readers = {
        "TIFF": lambda: tifffile.imread(io.BytesIO(data)),
        "PNG": lambda: imagecodecs.png_decode(data),
        "JPEG": lambda: imagecodecs.jpeg8_decode(data),
        "WEBP": lambda: imagecodecs.webp_decode(data),
        "BMP": lambda: imagecodecs.bmp_decode(data, asrgb=False),
    }
    pixels = readers[case.format]()
    return pixels.reshape(case.height, case.width, -1)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CASES)
def test_known_pixels_are_those_that_others_read_and_the_hole_is_where_it_is_seen(tmp_path: Path, case: Case) -> None:
    random = np.random.default_rng(case.seed)
    dtype = np.uint8 if case.bits == 8 else np.uint16
    stored = random.integers(0, 2**case.bits, (case.height, case.width, case.channels), dtype)
    data = written(case, stored)
    seen = UPRIGHT[case.orientation](read_by_others(case, data))
    colours = 3 if case.channels > 2 else 1
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
    lying = io.BytesIO()
    if case.mask_lies:
        inverse = {6: 8, 8: 6}.get(case.orientation, case.orientation)
        Image.fromarray(np.ascontiguousarray(255 * UPRIGHT[inverse](mask)[..., 0])).save(lying, "PNG", exif=exif_of(case.orientation))
    else:
        Image.fromarray(255 * mask[..., 0]).save(lying, "PNG")
    hole = read_mask(lying, "the mask", photo.size)
    np.testing.assert_array_equal(hole, mask)

    completion = random.uniform(0, 255, (height, width, 3)).astype(np.float32)
    result = imagecodecs.png_decode(encode_photo(photo.with_colours_in_hole(completion[hole[..., 0] > 0], hole), ".png")).reshape(
        height, width, -1
    )
    known, inside = mask[..., 0] == 0, mask[..., 0] > 0
    assert result.dtype == dtype
    # 16 bits: written as colours, because OpenCV has no grey with opacity
    if case.channels == 2 and result.shape[2] == 4:
        assert (np.ptp(result[..., :3], axis=2) == 0).all()
        result = result[..., 2:]
    np.testing.assert_array_equal(result[known], seen[known])
    if colours == 3:
        np.testing.assert_array_equal(result[inside][:, :3], np.rint(completion[inside] * (257 if case.bits == 16 else 1)))
    if not case.channels % 2:
        assert (result[inside][:, -1] == np.iinfo(dtype).max).all()


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
