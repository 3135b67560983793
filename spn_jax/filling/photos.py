"""People's photos: read with all that belongs to them, filled without touching what was known, and written. NumPy and Pillow only.

8 and 16 bits a channel, colour and grey, transparency, colour profile and EXIF data are kept; what cannot be kept is refused in words.
"""

import contextlib
import dataclasses
import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Self

import cv2
import numpy as np
from PIL import Image

from spn_jax.data.masks import hole_of
from spn_jax.errors import InputError

# Suffix of an output: Pillow's name of the format and its options; every one but JPEG keeps each pixel as it is.
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"lossless": True, "exact": True}),  # exact: colours under full transparency too
    ".tif": ("TIFF", {"compression": "tiff_lzw"}),
    ".tiff": ("TIFF", {"compression": "tiff_lzw"}),
    ".bmp": ("BMP", {}),
}
READ = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")  # Pillow's names of the formats that are read
# What each format of an output holds besides colours of 8 bits.
TRANSPARENCY = ("PNG", "WEBP", "TIFF")
PROFILES = ("PNG", "JPEG", "WEBP", "TIFF")
LONGEST = {"JPEG": 65500, "WEBP": 16383}  # side in pixels
EXIF = ("PNG", "JPEG", "WEBP")  # a TIFF's tags describe the file itself, too
# Pillow's modes that are read, and the modes that they become.
MODES = {"1": "L", "L": "L", "LA": "LA", "P": "RGB", "PA": "RGBA", "RGB": "RGB", "RGBA": "RGBA", "I;16": "I;16", "I;16B": "I;16"}
ORIENTATION = 0x0112  # EXIF tag
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R 601, as Pillow turns colours to grey
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
MOST_PIXELS = Image.MAX_IMAGE_PIXELS or 2**26  # Pillow's own limit, 89 million

# A few bytes can claim to be a picture of gigabytes. Pillow only warns up to twice its limit, which is memory enough to end a server.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


@dataclasses.dataclass(frozen=True)
class Photo:
    """A photo as its file holds it, but upright.

    pixels: uint8 or uint16 (h, w, 3), or (h, w, 1) of a grey one.
    alpha: opacity of the same type, (h, w, 1); None where the file has none.
    format: Pillow's name of the file's format, "PNG", "JPEG", ...
    icc_profile: the colour profile; pixels are in its colours.
    exif: the EXIF data without orientation and preview picture, from "Exif\\0\\0" on.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    format: str = "PNG"
    icc_profile: bytes | None = None
    exif: bytes | None = None

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
        """A photo of a Pillow image as it lies in memory, not turned. InputError, naming it, if its colours cannot be kept."""
        pixels, alpha = _arrays(image, name)
        return cls(pixels, alpha, image.format or "PNG", image.info.get("icc_profile"))

    def to_image(self) -> Image.Image:
        """As a Pillow image, with profile and EXIF data in its `info`. ValueError for 16-bit colours, which Pillow does not have."""
        if self.deep and (not self.grey or self.alpha is not None):
            raise ValueError("Pillow has no images with 16 bits a colour; take the pixels")
        channels = self.pixels if self.alpha is None else np.concatenate([self.pixels, self.alpha], -1)
        image = Image.fromarray(np.ascontiguousarray(channels[..., 0] if channels.shape[2] == 1 else channels))
        image.info |= {key: value for key, value in (("icc_profile", self.icc_profile), ("exif", self.exif)) if value}
        return image

    def rgb(self) -> np.ndarray:
        """What the network is shown, uint8 (h, w, 3): 16 bits rounded to 8, grey as three channels, transparent parts on white."""
        shallow = _shallow(self.pixels)
        colours = shallow if shallow.shape[2] == 3 else np.repeat(shallow, 3, axis=2)
        if self.alpha is None:
            return colours
        opacity = _shallow(self.alpha).astype(np.uint32)
        return ((colours * opacity + 255 * (255 - opacity) + 127) // 255).astype(np.uint8)

    def filled(self, completion: np.ndarray, mask: np.ndarray) -> Self:
        """The photo with its hole filled; each known pixel keeps every bit, colours and opacity.

        Args:
            completion: uint8 (h, w, 3), looked at in the hole alone. In 16 bits it becomes 257 times as large, in a grey photo grey.
            mask: uint8 (h, w, 1), 1 = hole. What is filled is opaque.
        """
        hole = mask[..., 0] > 0
        inside = completion[hole]
        if self.grey:
            inside = np.rint(inside @ LUMA).astype(np.uint8)[:, None]
        pixels, alpha = self.pixels.copy(), None if self.alpha is None else self.alpha.copy()
        pixels[hole] = inside * np.uint16(257) if self.deep else inside
        if alpha is not None:
            alpha[hole] = np.iinfo(alpha.dtype).max
        return dataclasses.replace(self, pixels=pixels, alpha=alpha)


def read_photo(source: Path | BinaryIO, name: str) -> Photo:
    """Reads a photo with all that belongs to it, upright by its EXIF tag.

    Args:
        source: a file's path, or an open one, which is read from its start.
        name: of the photo in error texts.

    Raises:
        InputError: it is missing, no image, damaged, too large, or has colours that could not be given back as they are.
    """
    with _opened(source, name) as file, _image(file, name) as image:
        orientation = image.getexif().get(ORIENTATION, 1)
        pixels, alpha = (None if array is None else turned(array, orientation) for array in _arrays(image, name, file))
        assert pixels is not None
        kind = "JPEG" if image.format == "MPO" else image.format or "PNG"
        return Photo(pixels, alpha, kind, image.info.get("icc_profile"), _kept_exif(image))


def read_mask(source: Path | BinaryIO, name: str, shape: tuple[int, int], invert: bool = False, dilate: int = 0) -> np.ndarray:
    """Reads a mask: white is the hole. Transparent parts are none.

    Args:
        source, name: as in `read_photo`.
        shape: height and width of the upright photo.
        invert: black is the hole.
        dilate: pixels by which the hole grows to all sides.

    Returns:
        uint8 (h, w, 1), 1 = hole; there may be none.

    Raises:
        InputError: it is missing, no image, damaged, or of another size than the photo.
    """
    with _opened(source, name) as file, _image(file, name) as image:
        hole = turned(hole_of(image, invert), image.getexif().get(ORIENTATION, 1))
    if hole.shape != shape:
        theirs, ours = (f"{width} x {height}" for height, width in (shape, hole.shape))
        raise InputError(f"{name} is {ours} pixels, the photo, upright, is {theirs}; make a mask of the photo's size")
    return grown(hole.astype(np.uint8)[..., None], dilate)


def grown(mask: np.ndarray, pixels: int) -> np.ndarray:
    """A mask (h, w, 1) with all pixels that lie no farther than so many pixels from its hole."""
    if not pixels or not mask.any():
        return mask
    distance = cv2.distanceTransform(1 - mask[..., 0], cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return (distance <= pixels).astype(np.uint8)[..., None]


def turned(array: np.ndarray, orientation: int) -> np.ndarray:
    """A stored picture (h, w, ...) upright, by the EXIF tag's value; values that the standard does not know turn nothing."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return np.ascontiguousarray(array)


def usual_suffix(photo: Photo) -> str:
    """The suffix of the photo's own format, or .png where that could not hold the result bit for bit."""
    own = next((suffix for suffix, (kind, _) in FORMATS.items() if kind == photo.format), ".png")
    return own if not photo.deep and not is_lossy(own) else ".png"


def is_lossy(suffix: str) -> bool:
    """Whether a file of this suffix changes pixels."""
    return FORMATS[suffix.lower()][0] == "JPEG"


def lossless_suffixes() -> str:
    """The suffixes of formats that keep every pixel, for the terminal."""
    *others, last = (suffix for suffix in FORMATS if not is_lossy(suffix))
    return f"{', '.join(others)} or {last}"


def check_suffix(suffix: str, name: str) -> None:
    """Raises InputError unless photos can be written with this suffix; `name` is that of the output."""
    if suffix.lower() not in FORMATS:
        raise InputError(f"{name} must name an image file: its suffix is none of {', '.join(FORMATS)}")


def check_holds(photo: Photo, suffix: str, name: str) -> None:
    """Raises InputError unless the format that the suffix tells holds all that the photo has; `name` is that of the output."""
    check_suffix(suffix, name)
    kind = FORMATS[suffix.lower()][0]
    longest, too_large = max(photo.size), LONGEST.get(kind, max(photo.size))
    lacking = {
        "16 bits a channel": photo.deep and kind != "PNG",
        "transparency": photo.alpha is not None and kind not in TRANSPARENCY,
        "a colour profile": bool(photo.icc_profile) and kind not in PROFILES,
        f"a side of {longest} pixels": longest > too_large,
    }
    for what, is_lacking in lacking.items():
        if is_lacking:
            raise InputError(f"{name}: {kind} cannot hold {what}, which the photo has; choose an output that ends in .png")


def encode_photo(photo: Photo, suffix: str) -> bytes:
    """The photo as a file of the format that the suffix tells, with profile and EXIF data.

    Raises:
        InputError: that format cannot hold it.
    """
    check_holds(photo, suffix, "the photo")
    kind, options = FORMATS[suffix.lower()]
    if photo.deep:
        return _deep_png(photo)
    meta = {"icc_profile": photo.icc_profile, "exif": photo.exif if kind in EXIF else None}
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
    """An image that has been decoded whole; whatever its decoder objects to is an InputError."""
    try:
        image = Image.open(file, formats=READ)
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format != "MPO":  # which phones write: a JPEG with a preview behind it
            raise InputError(f"{name} holds {frames} pictures; save the one that is meant as a file of its own")
        image.load()
    except InputError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise InputError(f"{name} has more than {MOST_PIXELS // 10**6} million pixels, the most that is read; make it smaller") from error
    except Image.UnidentifiedImageError as error:
        kinds = f"{', '.join(READ[:-1])} or {READ[-1]}"
        raise InputError(f"{name} cannot be read as an image (it is empty, damaged or of no known format); pass a {kinds} file") from error
    except MemoryError as error:
        raise InputError(f"{name} did not fit into the memory; make it smaller") from error
    except Exception as error:  # broken files raise OSError, SyntaxError, ValueError, struct.error, ... according to the format
        raise InputError(f"{name} cannot be read as an image ({error}); pass a whole one") from error
    with image:
        yield image


def _arrays(image: Image.Image, name: str, file: BinaryIO | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    """Colours (h, w, 1 or 3) and opacity (h, w, 1) of an image, as stored; `file` is where it was read from."""
    if image.mode not in MODES:
        raise InputError(f"{name} has colours of Pillow's mode {image.mode}, which would not come back as they are; save it as RGB or grey")
    mode = MODES[image.mode]
    if image.has_transparency_data and not mode.endswith("A"):
        mode = {"L": "LA", "RGB": "RGBA"}.get(mode, "")
    deep = file is not None and mode != "I;16" and _has_16_bits(image, file)
    if not mode or (deep and image.has_transparency_data and not image.mode.endswith("A")):
        raise InputError(f"{name} has 16 bits a channel and one transparent colour; save it with an alpha channel")
    shallow = np.asarray(image if image.mode == mode else image.convert(mode))
    if mode == "I;16":
        return shallow.astype(np.uint16)[..., None], None
    channels = shallow.reshape(*shallow.shape[:2], -1)
    if deep and file is not None:
        channels = _deep_channels(file, channels, name)
    colours = 1 if mode in ("L", "LA") else 3
    return channels[..., :colours], channels[..., colours:] if mode.endswith("A") else None


def _has_16_bits(image: Image.Image, file: BinaryIO) -> bool:
    """Whether the file has 16 bits a channel; Pillow cuts colours to 8 and says nothing."""
    if image.format == "TIFF":
        return 16 in image.tag_v2.get(258, ())  # type: ignore[attr-defined]  # BitsPerSample
    if image.format != "PNG":
        return False
    file.seek(len(PNG_SIGNATURE) + 16)  # in the header chunk, behind its length, name, width and height
    return file.read(1) == b"\x10"


def _deep_channels(file: BinaryIO, shallow: np.ndarray, name: str) -> np.ndarray:
    """A file's channels in 16 bits, uint16 (h, w, c), where Pillow read `shallow`. InputError if they are not of the same picture."""
    file.seek(0)
    deep = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_UNCHANGED)
    if deep is not None and deep.ndim == 3:
        deep = deep[..., [2, 1, 0, 3][: deep.shape[2]]]
        if shallow.shape[2] < 3:  # grey with transparency, which OpenCV reads as colours
            deep = deep[..., [0, 3][: shallow.shape[2]]]
    if deep is None or deep.dtype != np.uint16 or deep.shape != shallow.shape or np.abs(deep // 256 - shallow.astype(float)).max() > 1:
        raise InputError(f"{name} has 16 bits a channel in a form that cannot be read; save it as PNG, or with 8 bits")
    return deep


def _kept_exif(image: Image.Image) -> bytes | None:
    """EXIF data to write again: the photo is upright now, and a preview would show what was in the hole."""
    exif = image.getexif()
    if image.format == "TIFF" or not exif:
        return None
    kept = Image.Exif()
    kept.load(exif.tobytes())  # which has no preview: Pillow writes none
    kept.pop(ORIENTATION, None)
    return kept.tobytes() if kept else None


def _shallow(channels: np.ndarray) -> np.ndarray:
    """uint16 rounded to uint8."""
    if channels.dtype == np.uint8:
        return channels
    return ((channels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _deep_png(photo: Photo) -> bytes:
    """A PNG of 16 bits a channel, which Pillow cannot write in colour."""
    channels = photo.pixels
    if photo.alpha is not None:  # OpenCV has no grey with transparency
        channels = np.concatenate([np.broadcast_to(channels, (*photo.size, 3)), photo.alpha], -1)
    encoded = cv2.imencode(".png", channels[..., [2, 1, 0, 3][: channels.shape[2]]] if channels.shape[2] > 1 else channels)[1].tobytes()
    extra = b""
    if photo.icc_profile:
        extra += _png_chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(photo.icc_profile))
    if photo.exif:
        extra += _png_chunk(b"eXIf", photo.exif.removeprefix(b"Exif\0\0"))
    header = len(PNG_SIGNATURE) + 12 + 13  # the header chunk: frame and contents
    return encoded[:header] + extra + encoded[header:]


def _png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
