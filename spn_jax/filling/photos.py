"""Reads photos with their metadata, puts colours into their holes, and writes them.

It uses no JAX. No known pixel changes. 8 and 16 bits a channel, colour and grey, transparency,
colour profile and EXIF data are kept. Photos whose pixels could not be kept are refused with an
explanation. Data that may show what was in the hole is left out and reported.
"""

import contextlib
import dataclasses
import io
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Self

import cv2
import numpy as np
from PIL import Image

from spn_jax.errors import InputError, enumerated
from spn_jax.filling.formats import bits_of, is_inverted, name_of, register_heic
from spn_jax.filling.holes import LUMA, ExaminedMask, MaskFrom, grown, hole_of_array, hole_of_picture, notes_on_size
from spn_jax.filling.metadata import (
    EXTRA_SAMPLES,
    MALFORMED_EXIF,
    ORIENTATION,
    PNG_SIGNATURE,
    Exif,
    changes_colours,
    other_left_out,
    quiet,
    read_chunks,
    read_exif,
    with_chunks,
)
from spn_jax.runtime.files import write_atomically

__all__ = [
    "FORMATS",
    "MALFORMED_EXIF",
    "PHOTO_SUFFIXES",
    "READ",
    "Photo",
    "Source",
    "as_mask",
    "as_photo",
    "check_holds",
    "check_suffix",
    "encode_photo",
    "examine_mask",
    "grown",
    "is_lossy",
    "lossless_suffixes",
    "photo_of_array",
    "read_mask",
    "read_photo",
    "turned",
    "usual_suffix",
]

# {suffix of an output: (Pillow's name of the format, its options)}. All but JPEG are lossless.
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    # exact keeps the colours of fully transparent pixels too
    ".webp": ("WEBP", {"lossless": True, "exact": True}),
    ".tif": ("TIFF", {"compression": "tiff_lzw"}),
    ".tiff": ("TIFF", {"compression": "tiff_lzw"}),
    ".bmp": ("BMP", {}),
}
# Pillow's names of the formats that are read, and the suffixes by which a folder's photos are
# found.
READ = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", *(("HEIF",) if register_heic() else ()))
PHOTO_SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".avif", ".heic", ".heif")
# The formats that hold each property besides 8-bit colours.
TRANSPARENCY = ("PNG", "WEBP", "TIFF")
PROFILES = ("PNG", "JPEG", "WEBP", "TIFF")
LONGEST = {"JPEG": 65500, "WEBP": 16383}  # longest side in pixels
EXIF = ("PNG", "JPEG", "WEBP")  # not TIFF, whose tags also describe the file itself
RESOLUTION = ("JPEG", "TIFF", "BMP")  # stored in pixels an inch; PNG has it a metre
# {Pillow's mode that is read: mode that it becomes}. "I;16" in any byte order is read as well.
MODES = {"1": "L", "L": "L", "LA": "LA", "P": "RGB", "PA": "RGBA", "RGB": "RGB", "RGBA": "RGBA"}
# people's words for Pillow's other modes
OTHER_MODES = {"F": "of floating-point numbers", "I": "of 32-bit numbers"}
MOST_PIXELS = Image.MAX_IMAGE_PIXELS or 2**26  # Pillow's own limit, 89 million
GREY_STEPS = {"L;2": 85, "L;4": 17}  # Pillow's names of how a PNG's greys of 2 and 4 bits are stored
# tags of a TIFF
BITS_PER_SAMPLE = 258
SAMPLE_FORMAT = 339
# rows of a 16-bit photo processed at a time, since whole copies would take a multiple of its memory
STRIP = 256


@dataclasses.dataclass(frozen=True)
class Photo:
    """A photo as its file holds it, but upright.

    pixels: uint8 or uint16 (h, w, 3), or (h, w, 1) of a grey one.
    alpha: opacity of the same type, (h, w, 1); None where the file has none.
    format: Pillow's name of the file's format, "PNG", "JPEG", ...
    icc_profile: the colour profile; pixels are in its colours.
    exif: the EXIF data without orientation and previews, from "Exif\\0\\0" on.
    chunks: the chunks of a PNG that define colours and print size (see `metadata.CHUNKS`).
    resolution: pixels an inch, across and down; None if the file has none.
    left_out: names of data in the file that the photo lacks, because it may show what was in the
        hole.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    format: str = "PNG"
    icc_profile: bytes | None = None
    exif: bytes | None = None
    chunks: Mapping[bytes, bytes] = dataclasses.field(default_factory=dict)
    resolution: tuple[float, float] | None = None
    left_out: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.pixels.shape[0], self.pixels.shape[1]

    @property
    def deep(self) -> bool:
        """Whether it has 16 bits a channel."""
        return self.pixels.dtype == np.uint16

    @property
    def grey(self) -> bool:
        return self.pixels.shape[2] == 1

    @classmethod
    def from_image(cls, image: Image.Image, name: str = "the image") -> Self:
        """Makes a photo of a Pillow image, upright by its EXIF tag. Raises InputError, which names
        it, if its colours cannot be kept.
        """
        with _decoding(name):
            _load(image)
        return cls._of(image, name, None)

    @classmethod
    def _of(cls, image: Image.Image, name: str, file: BinaryIO | None) -> Self:
        """Makes a photo of a decoded image; `file` is where it was read from."""
        exif = read_exif(image)
        pixels, alpha = _arrays(image, name, file)
        return cls(
            turned(pixels, exif.orientation),
            None if alpha is None else turned(alpha, exif.orientation),
            "JPEG" if image.format == "MPO" else image.format or "PNG",
            image.info.get("icc_profile"),
            exif.kept,
            read_chunks(file) if file is not None and image.format == "PNG" else {},
            _resolution(image, exif),
            tuple(dict.fromkeys([*exif.left_out, *other_left_out(image)])),
        )

    def to_image(self) -> Image.Image:
        """Returns a Pillow image with profile and EXIF data in its `info`. Raises ValueError for
        16-bit colours, which Pillow does not support.
        """
        if self.deep and (not self.grey or self.alpha is not None):
            raise ValueError("Pillow has no images with 16 bits a colour; take the pixels")
        channels = self.pixels if self.alpha is None else np.concatenate([self.pixels, self.alpha], -1)
        image = Image.fromarray(np.ascontiguousarray(channels[..., 0] if channels.shape[2] == 1 else channels))
        image.info |= {key: value for key, value in (("icc_profile", self.icc_profile), ("exif", self.exif)) if value}
        return image

    def rgb(self) -> np.ndarray:
        """Returns the photo as the network sees it, uint8 (h, w, 3): 16 bits rounded to 8, grey as
        three channels, transparent parts on white.
        """
        shown = np.empty((*self.size, 3), np.uint8)
        for rows in _strips(self.size[0]):
            colours = _shallow(self.pixels[rows])
            if self.alpha is not None:
                opacity = _shallow(self.alpha[rows]).astype(np.uint32)
                colours = (colours * opacity + 255 * (255 - opacity) + 127) // 255
            shown[rows] = colours
        return shown

    def with_colours_in_hole(self, colours: np.ndarray, mask: np.ndarray) -> Self:
        """Returns the photo with these colours in its hole. Each known pixel keeps every bit,
        colours and opacity.

        Args:
            colours: (n, 3), of any type, from 0 to 255, of the hole's n pixels row by row. They are
                rounded to the photo's own depth, so that fractions count in 16 bits; in a grey
                photo they become grey.
            mask: uint8 (h, w, 1), 1 = hole. What is filled is opaque.
        """
        hole = mask[..., 0] > 0
        inside = (colours @ LUMA)[:, None] if self.grey else colours.astype(np.float32)
        pixels, alpha = self.pixels.copy(), None if self.alpha is None else self.alpha.copy()
        pixels[hole] = np.rint(inside * (257 if self.deep else 1)).astype(pixels.dtype)
        if alpha is not None:
            alpha[hole] = np.iinfo(alpha.dtype).max
        return dataclasses.replace(self, pixels=pixels, alpha=alpha)

    def save(self, path: str | Path) -> None:
        """Writes the photo in the format of the suffix. Raises InputError if the format cannot hold
        it, or the file cannot be written.
        """
        check_holds(self, Path(path).suffix, str(path))
        write_atomically(Path(path), encode_photo(self, Path(path).suffix))


Source = str | Path | bytes | BinaryIO | Image.Image | np.ndarray | Photo


def as_photo(source: Source, name: str = "the photo") -> Photo:
    """Converts any source to a photo. All but arrays, which have no EXIF data, come upright by
    their tag.

    Args:
        source: a path, a file's bytes, an open file, a Pillow image, a `Photo`, or an array: uint8
            or uint16 (h, w), (h, w, 1 or 3), or with opacity (h, w, 2 or 4).
        name: the photo's name in error texts; for a path, the path itself.

    Raises:
        InputError: it is missing, no image, damaged, too large, or has colours that could not be
            given back as they are.
        ValueError: an array of another type or shape.
    """
    if isinstance(source, Photo):
        return source
    if isinstance(source, np.ndarray):
        return photo_of_array(source)
    if isinstance(source, Image.Image):
        return Photo.from_image(source, name)
    if isinstance(source, bytes):
        return read_photo(io.BytesIO(source), name)
    if isinstance(source, str | Path):
        return read_photo(Path(source), str(source))
    return read_photo(source, name)


def _load(image: Image.Image) -> None:
    """Decodes an image, around two faults of Pillow 13.

    It does not turn a memory-mapped TIFF that lies on its side, so the file is read without a map.
    Of a PNG's 2 or 4 bits it spreads the greys over 0 to 255, but not the one that is transparent.
    """
    stored, filename = getattr(image, "tile", None), getattr(image, "filename", None)
    step = GREY_STEPS.get(stored[0][3]) if stored else None
    if step and isinstance(image.info.get("transparency"), int):
        image.info["transparency"] *= step
    if filename:
        image.filename = ""  # type: ignore[attr-defined]
    try:
        image.load()
    finally:
        if filename:
            image.filename = filename  # type: ignore[attr-defined]


def photo_of_array(image: np.ndarray) -> Photo:
    """Makes a photo of an array. Raises ValueError unless it is a picture."""
    channels = image[..., None] if image.ndim == 2 else image
    if channels.dtype not in (np.uint8, np.uint16) or channels.ndim != 3 or channels.shape[2] not in (1, 2, 3, 4) or not channels.size:
        raise ValueError(f"the photo must be uint8 or uint16, (h, w) or (h, w, 1 to 4), not {image.dtype} {image.shape}")
    colours = 1 if channels.shape[2] < 3 else 3
    return Photo(channels[..., :colours], channels[..., colours:] if channels.shape[2] in (2, 4) else None)


def read_photo(source: Path | BinaryIO, name: str) -> Photo:
    """Reads a photo with all that belongs to it, upright by its EXIF tag.

    Args:
        source: a file's path, or an open one, which is read from its start.
        name: the photo's name in error texts.

    Raises:
        InputError: it is missing, no image, damaged, too large, or has colours that could not be
            given back as they are.
    """
    with _opened(source, name) as file, _image(file, name) as image:
        return Photo._of(image, name, file)


def read_mask(
    source: Path | BinaryIO, name: str, shape: tuple[int, int], invert: bool = False, dilate: int = 0, mask_from: MaskFrom = "white"
) -> np.ndarray:
    """Reads a mask's file as `examine_mask` does: uint8 (h, w, 1), 1 = hole, possibly without any.
    Raises InputError as there.
    """
    return examine_mask(source, name, shape, invert, dilate, mask_from).mask


def as_mask(
    source: Source, shape: tuple[int, int], invert: bool = False, dilate: int = 0, mask_from: MaskFrom = "white", name: str = "the mask"
) -> np.ndarray:
    """Converts any source to a mask, uint8 (h, w, 1), 1 = hole. Arguments and errors are those of
    `examine_mask`.
    """
    return examine_mask(source, str(source) if isinstance(source, str | Path) else name, shape, invert, dilate, mask_from).mask


def examine_mask(
    source: Source, name: str, shape: tuple[int, int], invert: bool = False, dilate: int = 0, mask_from: MaskFrom = "white"
) -> ExaminedMask:
    """Reads a mask and notes what looks mistaken about it. Values from half of the range on are
    white, so soft borders become hard.

    Args:
        source: as for `as_photo`, and also arrays of booleans, of 0 and 1, or of floating-point
            numbers from 0 to 1. All but arrays come upright by their EXIF tag.
        name: the mask's name in error texts.
        shape: height and width of the upright photo.
        invert: black is the hole, or with "alpha" the opaque part.
        dilate: pixels by which the hole grows on all sides.
        mask_from: "white": white is the hole, and transparent parts are not; "alpha": transparent
            parts are the hole.

    Raises:
        InputError: it is missing, no image, damaged or of another size than the photo, or marks its
            hole in another way.
        ValueError: an array has another type or shape, or values outside its range.
    """
    if isinstance(source, Photo):
        source = source.pixels if source.alpha is None else np.concatenate([source.pixels, source.alpha], -1)
    if isinstance(source, np.ndarray):
        hole, notes = hole_of_array(source, name, invert, mask_from)
    else:
        with _decoded(source, name) as image:
            hole, notes = hole_of_picture(image, name, invert, mask_from)
            hole = turned(hole, read_exif(image).orientation)
    if hole.shape != tuple(shape):
        theirs, ours = (f"{width} x {height}" for height, width in (shape, hole.shape))
        raise InputError(f"{name} is {ours} pixels, the photo, upright, is {theirs}; make a mask of the photo's size")
    mask = grown(hole.astype(np.uint8)[..., None], dilate)
    return ExaminedMask(mask, (*notes, *notes_on_size(mask, name, invert)))


@contextlib.contextmanager
def _decoded(source: str | Path | bytes | BinaryIO | Image.Image, name: str) -> Iterator[Image.Image]:
    """Opens a context that yields the decoded picture of any source."""
    if isinstance(source, Image.Image):
        with _decoding(name):
            _load(source)
        yield source
        return
    source = io.BytesIO(source) if isinstance(source, bytes) else Path(source) if isinstance(source, str) else source
    with _opened(source, name) as file, _image(file, name) as image:
        yield image


def turned(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turns a stored picture (h, w, ...) upright by the EXIF tag's value; unknown values turn
    nothing.
    """
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return np.ascontiguousarray(array)


def usual_suffix(photo: Photo) -> str:
    """Returns the suffix of the photo's own format, or .png if that could not hold the result bit
    for bit.
    """
    own = next((suffix for suffix, (kind, _) in FORMATS.items() if kind == photo.format), ".png")
    return own if not photo.deep and not is_lossy(own) else ".png"


def is_lossy(suffix: str) -> bool:
    """Returns whether writing a file of this suffix changes pixels."""
    return FORMATS[suffix.lower()][0] == "JPEG"


def lossless_suffixes() -> str:
    """Returns the suffixes of lossless formats, for the terminal."""
    *others, last = (suffix for suffix in FORMATS if not is_lossy(suffix))
    return f"{', '.join(others)} or {last}"


def check_suffix(suffix: str, name: str) -> None:
    """Raises InputError unless photos can be written with this suffix; `name` is the output's."""
    if suffix.lower() not in FORMATS:
        raise InputError(f"{name} must name an image file: its suffix is none of {', '.join(FORMATS)}")


def check_holds(photo: Photo, suffix: str, name: str) -> None:
    """Raises InputError unless the suffix's format holds all that the photo has; `name` is the
    output's.
    """
    check_suffix(suffix, name)
    kind = FORMATS[suffix.lower()][0]
    longest, too_large = max(photo.size), LONGEST.get(kind, max(photo.size))
    lacking = {
        "16 bits a channel": photo.deep and kind != "PNG",
        "transparency": photo.alpha is not None and kind not in TRANSPARENCY,
        "a colour profile": bool(photo.icc_profile) and kind not in PROFILES,
        "colours of a PNG's own (cICP, gAMA or cHRM)": kind != "PNG" and changes_colours(photo.chunks, bool(photo.icc_profile)),
        f"a side of {longest} pixels": longest > too_large,
    }
    for what, is_lacking in lacking.items():
        if is_lacking:
            raise InputError(f"{name}: {kind} cannot hold {what}, which the photo has; choose an output that ends in .png")


def encode_photo(photo: Photo, suffix: str) -> bytes:
    """Encodes the photo in the format of the suffix, with profile and EXIF data.

    Raises:
        InputError: that format cannot hold it.
    """
    check_holds(photo, suffix, "the photo")
    kind, options = FORMATS[suffix.lower()]
    encoded = _deep_png(photo) if photo.deep else _encoded(photo, kind, options)
    return with_chunks(encoded, _png_details(photo)) if kind == "PNG" else encoded


def _encoded(photo: Photo, kind: str, options: dict[str, Any]) -> bytes:
    """Encodes a file of 8 bits a channel."""
    meta = {
        "icc_profile": photo.icc_profile,
        "exif": photo.exif if kind in EXIF else None,
        "dpi": photo.resolution if kind in RESOLUTION else None,
    }
    buffer = io.BytesIO()
    try:
        image = Image.fromarray(photo.pixels[..., 0] if photo.grey else photo.pixels)
        if photo.alpha is not None:
            image.putalpha(Image.fromarray(photo.alpha[..., 0]))
        image.save(buffer, kind, **options, **{key: value for key, value in meta.items() if value})
    except (OSError, ValueError) as error:  # such as a Pillow that was built without WebP
        raise InputError(f"the photo cannot be written as {kind} ({error}); choose an output that ends in .png") from error
    return buffer.getvalue()


@contextlib.contextmanager
def _opened(source: Path | BinaryIO, name: str) -> Iterator[BinaryIO]:
    if not isinstance(source, Path):
        source.seek(0)
        yield source
        return
    if not source.is_file():  # a device or a pipe might never end
        raise InputError(f"{name} is not a file; pass the path of an image")
    try:
        file = source.open("rb")
    except OSError as error:
        raise InputError(f"{name} cannot be read ({error.strerror or error}); allow it, or pass another file") from error
    with file:
        yield file


@contextlib.contextmanager
def _image(file: BinaryIO, name: str) -> Iterator[Image.Image]:
    """Opens a context that yields a completely decoded image. Any objection of its decoder becomes
    an InputError.
    """
    with _decoding(name, file):
        image = Image.open(file, formats=READ)
        if image.width * image.height > MOST_PIXELS:
            raise Image.DecompressionBombError
        # The frames are not counted: that takes a walk through the whole file, which can be made to
        # last minutes. Phones write MPO: a JPEG with a preview behind it.
        if getattr(image, "is_animated", False) and image.format != "MPO":
            raise InputError(f"{name} contains several pages or frames; save the one you want as a separate file")
        _load(image)
    with image:
        yield image


@contextlib.contextmanager
def _decoding(name: str, file: BinaryIO | None = None) -> Iterator[None]:
    """Turns a decoder's errors into InputError with an explanation."""
    try:
        with quiet():
            yield
    except InputError:
        raise
    except Image.DecompressionBombError as error:  # a few bytes can claim to be a picture of gigabytes
        raise InputError(f"{name} is larger than {MOST_PIXELS // 10**6} megapixels, the limit; scale it down") from error
    except Image.UnidentifiedImageError as error:
        known = None if file is None else name_of(file)
        if known is not None:
            raise InputError(f"{name} is {known.kind}, which is not read here; {known.remedy}") from error
        kinds = enumerated(READ, "or")
        raise InputError(f"{name} cannot be read as an image (it is empty, damaged or of no known format); pass a {kinds} file") from error
    except MemoryError as error:
        raise InputError(f"not enough memory for {name}; use a smaller one") from error
    except Exception as error:  # broken files raise OSError, SyntaxError, ValueError, struct.error, ... depending on the format
        raise InputError(f"{name} cannot be decoded ({error}); the file may be truncated") from error


def _arrays(image: Image.Image, name: str, file: BinaryIO | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns colours (h, w, 1 or 3) and opacity (h, w, 1) of an image, as stored; `file` is where
    it was read from.
    """
    if file is not None and (bits := bits_of(image, file)) > 8:
        raise InputError(f"{name} is {image.format} of {bits} bits a channel, which cannot be preserved; convert it to a PNG of 16 bits")
    tags = getattr(image, "tag_v2", {})
    if 2 in tags.get(SAMPLE_FORMAT, ()) and 32 not in tags.get(BITS_PER_SAMPLE, ()):
        raise InputError(f"{name} is of signed numbers, which cannot be preserved; convert it to RGB or greyscale")
    if image.mode.startswith("I;16"):
        return _sixteen_bit_grey(image, name), None
    if image.mode not in MODES:
        raise InputError(f"{name} is {OTHER_MODES.get(image.mode, image.mode)}, which cannot be preserved; convert it to RGB or greyscale")
    mode = MODES[image.mode]
    if image.has_transparency_data and not mode.endswith("A"):
        mode = f"{mode}A"
    deep = file is not None and _has_16_bits(image, file)
    if deep and image.has_transparency_data and not image.mode.endswith("A"):
        raise InputError(f"{name} has 16 bits a channel and one transparent colour; save it with an alpha channel")
    shallow = np.asarray(image if image.mode == mode else image.convert(mode))
    channels = shallow.reshape(*shallow.shape[:2], -1)
    # Pillow reads grey with opacity as colours
    if deep and file is not None and mode == "RGBA" and _is_grey_png(image, file):
        mode, channels = "LA", channels[..., 2:]
    if deep and file is not None:
        channels = _deep_channels(file, channels, name)
    colours = 1 if mode in ("L", "LA") else 3
    if not mode.endswith("A"):
        return channels, None
    alpha = channels[..., colours:]
    # Pillow divides such colours by their opacity, which rounds them unless that is none or full.
    if 1 in tags.get(EXTRA_SAMPLES, ()) and ((alpha > 0) & (alpha < 255)).any():
        raise InputError(f"{name} has colours multiplied by their opacity (associated alpha), which cannot be preserved; save it as PNG")
    return channels[..., :colours], alpha


def _sixteen_bit_grey(image: Image.Image, name: str) -> np.ndarray:
    """Returns uint16 (h, w, 1). NumPy handles the byte order; Pillow's own conversions clip
    big-endian values at 255.
    """
    if image.has_transparency_data:
        raise InputError(f"{name} has 16 bits a channel and one transparent colour; save it with an alpha channel")
    tags = getattr(image, "tag_v2", {})
    if tags.get(BITS_PER_SAMPLE, (16,)) != (16,):
        raise InputError(f"{name} has {tags[BITS_PER_SAMPLE][0]} bits a channel, which cannot be preserved; save it with 8 or 16")
    grey = np.asarray(image).astype(np.uint16)[..., None]
    return 65535 - grey if is_inverted(image) else grey


def _has_16_bits(image: Image.Image, file: BinaryIO) -> bool:
    """Returns whether the file has 16 bits a channel; Pillow silently reduces colours to 8."""
    if image.format == "TIFF":
        return 16 in image.tag_v2.get(BITS_PER_SAMPLE, ())  # type: ignore[attr-defined]
    if image.format != "PNG":
        return False
    # the bit depth in the header chunk, behind length, name, width and height
    file.seek(len(PNG_SIGNATURE) + 16)
    return file.read(1) == b"\x10"


def _is_grey_png(image: Image.Image, file: BinaryIO) -> bool:
    """Returns whether a PNG's colour type is grey with opacity."""
    file.seek(len(PNG_SIGNATURE) + 17)
    return image.format == "PNG" and file.read(1) == b"\x04"


def _deep_channels(file: BinaryIO, shallow: np.ndarray, name: str) -> np.ndarray:
    """Reads a file's channels in 16 bits, uint16 (h, w, c); Pillow read `shallow`. Raises
    InputError if the two differ.
    """
    file.seek(0)
    data, orientation = without_tiff_orientation(file.read())
    deep = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if deep is not None and deep.ndim == 3:
        deep = deep[..., [2, 1, 0, 3][: deep.shape[2]]]
        if shallow.shape[2] < 3:  # grey with transparency, which OpenCV expands to colours
            deep = deep[..., [0, 3][: shallow.shape[2]]]
        deep = turned(deep, orientation)
    if deep is None or deep.dtype != np.uint16 or not _agree(deep, shallow):
        raise InputError(f"{name} has 16 bits a channel in a form that cannot be read; save it as PNG, or with 8 bits")
    return deep


def without_tiff_orientation(data: bytes) -> tuple[bytes, int]:
    """Returns a TIFF with its orientation tag set to 1, and the former value. Pillow turns all
    TIFFs, OpenCV only some. Other files stay as they are.
    """
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if order is None:
        return data, 1
    with contextlib.suppress(struct.error):
        (start,) = struct.unpack_from(order + "I", data, 4)
        (count,) = struct.unpack_from(order + "H", data, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, values, value = struct.unpack_from(order + "HHIH", data, entry)
            if (tag, kind, values) == (ORIENTATION, 3, 1):  # a single 16-bit value
                return data[: entry + 8] + struct.pack(order + "H", 1) + data[entry + 10 :], value
    return data, 1


def _agree(deep: np.ndarray, shallow: np.ndarray) -> bool:
    """Returns whether a 16-bit picture equals the 8-bit one, up to one level."""
    if deep.shape != shallow.shape:
        return False
    return all(np.abs((deep[rows] >> 8).astype(np.int16) - shallow[rows]).max(initial=0) <= 1 for rows in _strips(len(deep)))


def _strips(height: int) -> Iterator[slice]:
    """Yields the rows of a photo, STRIP at a time."""
    return (slice(top, min(top + STRIP, height)) for top in range(0, height, STRIP))


def _resolution(image: Image.Image, exif: Exif) -> tuple[float, float] | None:
    """Returns pixels an inch, across and down in the upright photo."""
    try:
        across, down = (float(number) for number in image.info["dpi"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    if not (0 < across < 1e5 and 0 < down < 1e5):
        return None
    return (down, across) if exif.orientation in (5, 6, 7, 8) else (across, down)


def _shallow(channels: np.ndarray) -> np.ndarray:
    """Rounds uint16 to uint8."""
    if channels.dtype == np.uint8:
        return channels
    return ((channels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _deep_png(photo: Photo) -> bytes:
    """Encodes a PNG of 16 bits a channel with profile and EXIF data; Pillow cannot write one in
    colour.
    """
    channels = photo.pixels
    if photo.alpha is not None:  # OpenCV does not write grey with transparency
        channels = np.concatenate([np.broadcast_to(channels, (*photo.size, 3)), photo.alpha], -1)
    encoded = cv2.imencode(".png", channels[..., [2, 1, 0, 3][: channels.shape[2]]] if channels.shape[2] > 1 else channels)[1].tobytes()
    extra = {}
    if photo.icc_profile:
        extra[b"iCCP"] = b"ICC Profile\0\0" + zlib.compress(photo.icc_profile)
    if photo.exif:
        extra[b"eXIf"] = photo.exif.removeprefix(b"Exif\0\0")
    return with_chunks(encoded, extra)


def _png_details(photo: Photo) -> dict[bytes, bytes]:
    """Returns the PNG chunks that Pillow and OpenCV do not write."""
    chunks = dict(photo.chunks)
    if photo.resolution is not None and b"pHYs" not in chunks:
        # in pixels a metre
        chunks[b"pHYs"] = struct.pack(">IIB", *(round(inch / 0.0254) for inch in photo.resolution), 1)
    return chunks
