"""What a photo's file holds besides its pixels: what comes back, and what is left out because it
may show what was in the hole.
"""

import contextlib
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

from PIL import ExifTags, Image

ORIENTATION = 0x0112  # EXIF tag
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

# Chunks of a PNG that say how its numbers become colours and how large it is printed, with their
# lengths in bytes.
CHUNKS = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"cICP": 4, b"mDCV": 24, b"cLLI": 8, b"pHYs": 9}
SRGB_GAMMA = struct.pack(">I", 45455)
SRGB_PRIMARIES = struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)

# EXIF tags that hold pictures of the unfilled photo, or may: makers' own data, previews, and whole
# formats within a tag.
PREVIEWS = {
    0x927C: "MakerNote",
    0xC4A5: "PrintIM",
    0xC634: "DNGPrivateData",
    0x02BC: "XMP",
    0x83BB: "IPTC",
    0x8649: "Photoshop data",
    0x501B: "a preview",
    0x014A: "a preview",
}
# Tags that say where and how pixels lie in a file.
LAYOUT = {0x0100, 0x0101, 0x0102, 0x0103, 0x0106, 0x0111, 0x0115, 0x0116, 0x0117, 0x0142, 0x0143, 0x0144, 0x0145, 0x0201, 0x0202, 0x8773}
# what a TIFF's own tags tell about the photo
DESCRIPTION = {0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x8298}
# bytes, letters or numbers of an EXIF value that is kept: longer ones may be pictures
LONGEST_VALUE = 4096
MALFORMED_EXIF = "malformed EXIF data"
JPEG_START = b"\xff\xd8\xff"
_quiet = threading.Lock()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps Pillow's warnings of large or corrupt files off the terminal: what is wrong with a
    photo is said in an error's words.

    Filters of warnings belong to the process: they are put back at once, and one thread at a time
    sets them.
    """
    with _quiet, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Exif(NamedTuple):
    """EXIF data.

    kept: what may be written again, from "Exif\\0\\0" on, without the orientation.
    orientation: the tag's value as stored; 1 is upright.
    left_out: names of what is not kept.
    """

    kept: bytes | None = None
    orientation: Any = 1
    left_out: tuple[str, ...] = ()


def read_exif(image: Image.Image) -> Exif:
    """The EXIF data of an image that has been decoded. Data that Pillow cannot write again is
    malformed and left out as a whole.
    """
    orientation = 1
    with quiet():
        try:
            exif = image.getexif()
            orientation = exif.get(ORIENTATION, 1)
            kept, left_out = _without_previews(exif, DESCRIPTION if image.format == "TIFF" else None)
        except Exception:  # struct.error, TypeError, AttributeError, ...: according to what a value was mistaken for
            return Exif(None, orientation, (MALFORMED_EXIF,))
    return Exif(kept, orientation, left_out)


def _without_previews(exif: Image.Exif, only: set[int] | None) -> tuple[bytes | None, tuple[str, ...]]:
    """EXIF data to write again, and what is left out; `only`: the tags that are kept besides the
    directories of Exif and GPS.
    """
    left_out: dict[str, None] = {}
    kept = Image.Exif()
    kept.endian = exif.endian
    for tag, value in exif.items():
        if tag in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
            directory = {}
            for inner, part in exif.get_ifd(tag).items():
                if inner != ExifTags.IFD.Interop and _is_harmless(inner, part, left_out):
                    directory[inner] = part
            if directory:
                kept[tag] = directory
        elif tag != ORIENTATION and tag not in LAYOUT and _is_harmless(tag, value, left_out) and (only is None or tag in only):
            kept[tag] = value
    if exif.get_ifd(ExifTags.IFD.IFD1):
        left_out["a preview"] = None
    if not kept:
        return None, tuple(left_out)
    written = kept.tobytes()
    Image.Exif().load(written)
    return written, tuple(left_out)


def _is_harmless(tag: int, value: Any, left_out: dict[str, None]) -> bool:
    """Whether a value holds no picture; the name of one that may goes into `left_out`."""
    if tag in PREVIEWS:
        left_out[PREVIEWS[tag]] = None
        return False
    if hasattr(value, "__len__") and (len(value) > LONGEST_VALUE or (isinstance(value, bytes) and JPEG_START in value)):
        left_out[f"EXIF tag {ExifTags.TAGS.get(tag, hex(tag))}"] = None
        return False
    return True


def other_left_out(image: Image.Image) -> tuple[str, ...]:
    """Names of what a file holds beyond pixels, profile and EXIF data. XMP, IPTC and comments are
    not kept: programs put previews, the unedited photo or the history of its edits there."""
    texts = set(getattr(image, "text", None) or {}) - {"XML:com.adobe.xmp"}
    there = {
        "XMP": any(image.info.get(key) for key in ("xmp", "XML:com.adobe.xmp")),
        "IPTC": "photoshop" in image.info,
        "a comment": "comment" in image.info or bool(texts),
        "a second picture": image.format == "MPO",
    }
    return tuple(name for name, is_there in there.items() if is_there)


def read_chunks(file: BinaryIO) -> dict[bytes, bytes]:
    """The chunks among CHUNKS of a PNG that could be decoded."""
    found: dict[bytes, bytes] = {}
    file.seek(len(PNG_SIGNATURE))
    while len(head := file.read(8)) == 8:
        length, name = struct.unpack(">I4s", head)
        if name == b"IDAT":
            break
        if CHUNKS.get(name) == length:
            found[name] = file.read(length)
        else:
            file.seek(length, 1)
        file.seek(4, 1)  # the checksum
    return found


def with_chunks(png: bytes, chunks: Mapping[bytes, bytes]) -> bytes:
    """A PNG with further chunks behind its header, which is where those that describe colours
    belong.
    """
    header = len(PNG_SIGNATURE) + 12 + 13  # the header chunk: frame and contents
    return png[:header] + b"".join(png_chunk(name, data) for name, data in chunks.items()) + png[header:]


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def changes_colours(chunks: Mapping[bytes, bytes], has_profile: bool) -> bool:
    """Whether a viewer that does not know these chunks shows other colours: all formats but PNG
    have sRGB or a profile alone.
    """
    if b"cICP" in chunks:
        return True
    if has_profile or b"sRGB" in chunks:  # which come before the other two
        return False
    return chunks.get(b"gAMA", SRGB_GAMMA) != SRGB_GAMMA or chunks.get(b"cHRM", SRGB_PRIMARIES) != SRGB_PRIMARIES
