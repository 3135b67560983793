"""Registers formats beyond those Pillow reads by itself, and recognises files that are not read."""

import importlib.util
from typing import BinaryIO, NamedTuple

from PIL import Image

CONVERT = "convert it to PNG or TIFF"
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")


class Unread(NamedTuple):
    """A known kind of file that is not read, and what to do about it."""

    kind: str
    remedy: str = CONVERT


# The first bytes by which files are recognised.
SIGNATURES = {
    b"P1": Unread("a PBM file"),
    b"P2": Unread("a PGM file"),
    b"P3": Unread("a PPM file"),
    b"P4": Unread("a PBM file"),
    b"P5": Unread("a PGM file"),
    b"P6": Unread("a PPM file"),
    b"\0\0\0\x0cjP  ": Unread("a JPEG 2000 file"),
    b"\xff\x4f\xff\x51": Unread("a JPEG 2000 file"),
    b"\0\0\0\x0cJXL ": Unread("a JPEG XL file"),
    b"\xff\x0a": Unread("a JPEG XL file"),
    b"8BPS": Unread("a Photoshop file"),
    b"v/1\x01": Unread("an OpenEXR file"),
    b"\0\0\1\0": Unread("an icon"),
    b"%PDF": Unread("a PDF"),
    b"<svg": Unread("an SVG drawing", "export it as PNG"),
    b"II*\0": Unread("a TIFF of a rare kind or a camera's raw file"),
    b"MM\0*": Unread("a TIFF of a rare kind or a camera's raw file"),
}


def register_heic() -> bool:
    """Makes Pillow read HEIC if pillow-heif is installed. Returns whether it is."""
    if importlib.util.find_spec("pillow_heif") is None:
        return False
    import pillow_heif

    pillow_heif.register_heif_opener(thumbnails=False)
    return True


def name_of(file: BinaryIO) -> Unread | None:
    """Identifies a file that Pillow does not know; None if it is not known here either. Only
    damaged files have fewer than 16 bytes.
    """
    file.seek(0)
    head = file.read(16)
    if len(head) < 16:
        return None
    if head[4:8] == b"ftyp" and head[8:12] in HEIC_BRANDS:
        return Unread("a HEIC photo", "install pillow-heif (pip install -e '.[heic]'), or convert it to PNG")
    if head[4:12] == b"ftypcrx ":
        return Unread("a camera's raw file")
    return next((unread for start, unread in SIGNATURES.items() if head.startswith(start)), None)


def bits_of(image: Image.Image, file: BinaryIO) -> int:
    """Returns the bits a channel of an AVIF or HEIC file, of which Pillow's image has 8. Returns 8
    for other formats, which are examined elsewhere.
    """
    if image.format == "HEIF":
        return int(image.info.get("bit_depth", 8))
    if image.format != "AVIF":
        return 8
    file.seek(0)
    data, depths, at = file.read(), [8], 0
    # the codec's settings come once for colours and once for opacity
    while (at := data.find(b"av1C", at)) >= 0 and at + 6 < len(data):
        at += 4
        high, twelve = data[at + 2] & 0x40, data[at + 2] & 0x20
        # checks marker and version, since compressed pixels may contain av1C by chance
        if data[at] == 0x81:
            depths.append(12 if high and twelve else 10 if high else 8)
    return max(depths)


def is_inverted(image: Image.Image) -> bool:
    """Returns whether zero is white in a 16-bit TIFF. Pillow inverts such TIFFs of 8 bits itself,
    but not those of 16.
    """
    photometric = getattr(image, "tag_v2", {}).get(262)
    return image.mode.startswith("I;16") and photometric == 0
