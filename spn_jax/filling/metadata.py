"""Keeps a photo's metadata, except what may show the contents of the hole."""

import contextlib
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

from PIL import ExifTags, Image

ORIENTATION = 0x0112  # EXIF tag
EXTRA_SAMPLES = 338  # tag of a TIFF: what its channels besides colours are; 0 is anything, 1 and 2 are opacity
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

# Lengths in bytes of the PNG chunks that define colours and print size.
CHUNKS = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"cICP": 4, b"mDCV": 24, b"cLLI": 8, b"pHYs": 9}
SRGB_GAMMA = struct.pack(">I", 45455)
SRGB_PRIMARIES = struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)

# EXIF tags that hold or may hold pictures of the unfilled photo: makers' own data, previews, and
# whole formats within a tag.
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
# Tags that describe the pixels' layout in a file.
LAYOUT = {0x0100, 0x0101, 0x0102, 0x0103, 0x0106, 0x0111, 0x0115, 0x0116, 0x0117, 0x0142, 0x0143, 0x0144, 0x0145, 0x0201, 0x0202, 0x8773}
# TIFF tags that describe the photo
DESCRIPTION = {0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x8298}
# most bytes, letters or numbers of a kept EXIF value; longer ones may be pictures
LONGEST_VALUE = 4096
MALFORMED_EXIF = "malformed EXIF data"
JPEG_START = b"\xff\xd8\xff"
_quiet = threading.Lock()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps Pillow's warnings of large or corrupt files off the terminal, as errors explain what is
    wrong.

    Warning filters belong to the process, so they are restored at once, and one thread at a time
    sets them.
    """
    with _quiet, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Exif(NamedTuple):
    """EXIF data.

    kept: the data that may be written again, from "Exif\\0\\0" on, without the orientation.
    orientation: the tag's value as stored; 1 is upright.
    left_out: names of what is not kept.
    """

    kept: bytes | None = None
    orientation: Any = 1
    left_out: tuple[str, ...] = ()


def read_exif(image: Image.Image) -> Exif:
    """Returns the EXIF data of a decoded image. Data that Pillow cannot write again is malformed
    and left out as a whole.
    """
    orientation = 1
    with quiet():
        try:
            exif = image.getexif()
            orientation = exif.get(ORIENTATION, 1)
            kept, left_out = _without_previews(exif, DESCRIPTION if image.format == "TIFF" else None)
        except Exception:  # struct.error, TypeError, AttributeError, ..., depending on what a value was mistaken for
            return Exif(None, orientation, (MALFORMED_EXIF,))
    return Exif(kept, orientation, left_out)


def _without_previews(exif: Image.Exif, only: set[int] | None) -> tuple[bytes | None, tuple[str, ...]]:
    """Returns EXIF data to write again, and the names of what is left out. `only` lists the tags
    that are kept besides the directories of Exif and GPS.
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
    """Returns whether a value holds no picture. The name of one that may goes into `left_out`."""
    if tag in PREVIEWS:
        left_out[PREVIEWS[tag]] = None
        return False
    if hasattr(value, "__len__") and (len(value) > LONGEST_VALUE or (isinstance(value, bytes) and JPEG_START in value)):
        left_out[f"EXIF tag {ExifTags.TAGS.get(tag, hex(tag))}"] = None
        return False
    return True


def other_left_out(image: Image.Image) -> tuple[str, ...]:
    """Lists what a file holds beyond pixels, profile and EXIF data. XMP, IPTC and comments are not
    kept: programs put previews, the unedited photo or its edit history there.
    """
    texts = set(getattr(image, "text", None) or {}) - {"XML:com.adobe.xmp"}
    there = {
        "XMP": any(image.info.get(key) for key in ("xmp", "XML:com.adobe.xmp")),
        "IPTC": "photoshop" in image.info,
        "a comment": "comment" in image.info or bool(texts),
        "a second picture": image.format == "MPO",
        "a channel beside the colours": 0 in getattr(image, "tag_v2", {}).get(EXTRA_SAMPLES, ()),
    }
    return tuple(name for name, is_there in there.items() if is_there)


def read_chunks(file: BinaryIO) -> dict[bytes, bytes]:
    """Reads the chunks among CHUNKS of a PNG that could be decoded."""
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
    """Inserts chunks after a PNG's header, where chunks that describe colours belong."""
    header = len(PNG_SIGNATURE) + 12 + 13  # the header chunk: frame and contents
    return png[:header] + b"".join(png_chunk(name, data) for name, data in chunks.items()) + png[header:]


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def changes_colours(chunks: Mapping[bytes, bytes], has_profile: bool) -> bool:
    """Returns whether a viewer that ignores these chunks shows other colours. All formats but PNG
    have sRGB or a profile alone.
    """
    if b"cICP" in chunks:
        return True
    if has_profile or b"sRGB" in chunks:  # these take precedence over the other two
        return False
    return chunks.get(b"gAMA", SRGB_GAMMA) != SRGB_GAMMA or chunks.get(b"cHRM", SRGB_PRIMARIES) != SRGB_PRIMARIES
