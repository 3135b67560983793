"""Photos and masks in files that neither Pillow nor OpenCV reads or writes, but for the writing of
WebP: what known pixels are, and where a person sees the hole, is known from elsewhere.
"""

import io
import struct
import zlib
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from PIL import Image

ORIENTATION = 274  # tag of EXIF data and of TIFFs

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


def upright(stored: np.ndarray, orientation: int) -> np.ndarray:
    """What a person sees of a stored picture (h, w, ...) with this tag."""
    return UPRIGHT[orientation](stored)


def lying(seen: np.ndarray, orientation: int) -> np.ndarray:
    """What must be stored with this tag, so that a person sees a picture (h, w, ...)."""
    return np.ascontiguousarray(UPRIGHT[{6: 8, 8: 6}.get(orientation, orientation)](seen))


def exif_of(orientation: int) -> bytes:
    """EXIF data of one tag, from "Exif\\0\\0" on."""
    return b"Exif\0\0II*\0" + struct.pack("<IHHHIHHI", 8, 1, ORIENTATION, 3, 1, orientation, 0, 0)


def plain_array(pixels: np.ndarray) -> np.ndarray:
    """Pixels (h, w, c) as the encoders want them: of one channel (h, w), and with usual strides."""
    return np.array(pixels[..., 0] if pixels.shape[2] == 1 else pixels, order="C")


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def with_png_chunk(png: bytes, name: bytes, data: bytes) -> bytes:
    """A PNG with another chunk behind its header."""
    header = 8 + 12 + 13
    return png[:header] + png_chunk(name, data) + png[header:]


def tiff(pixels: np.ndarray, orientation: int = 1, order: str = "<", compression: str = "none") -> bytes:
    """A TIFF of pixels (h, w, 1 to 4); a second or fourth channel is opacity."""
    channels = pixels.shape[2]
    options: dict[str, Any] = {} if compression == "none" else {"compression": compression}
    options |= {} if channels % 2 else {"extrasamples": ["unassalpha"]}
    file = io.BytesIO()
    tifffile.imwrite(
        file,
        plain_array(pixels),
        byteorder=order,
        photometric="rgb" if channels > 2 else "minisblack",
        metadata=None,
        extratags=[(ORIENTATION, "H", 1, orientation, True)],
        **options,
    )
    return file.getvalue()


def png(pixels: np.ndarray, orientation: int = 1) -> bytes:
    """A PNG of pixels (h, w, 1 to 4), of 8 or 16 bits."""
    plain = bytes(imagecodecs.png_encode(plain_array(pixels)))
    return with_png_chunk(plain, b"eXIf", exif_of(orientation).removeprefix(b"Exif\0\0"))


def png_with_a_transparent_colour(pixels: np.ndarray, orientation: int = 1) -> tuple[bytes, np.ndarray]:
    """A PNG of pixels uint8 (h, w, 1 or 3) whose first pixel's colour is transparent, and its
    channels with opacity.
    """
    colour = pixels[0, 0]
    opacity = 255 * (pixels != colour).any(-1, keepdims=True).astype(np.uint8)
    key = b"".join(struct.pack(">H", value) for value in colour)
    plain = bytes(imagecodecs.png_encode(plain_array(pixels)))
    data = with_png_chunk(with_png_chunk(plain, b"tRNS", key), b"eXIf", exif_of(orientation).removeprefix(b"Exif\0\0"))
    return data, np.concatenate([pixels, opacity], -1)


def packed_png(numbers: np.ndarray, bits: int, colour_type: int, chunks: dict[bytes, bytes], orientation: int) -> bytes:
    """A PNG of numbers uint8 (h, w) of 1, 2, 4 or 8 bits, with chunks before them."""
    height, width = numbers.shape
    each = (numbers[..., None] >> np.arange(bits)[::-1]) & 1
    rows = np.packbits(each.reshape(height, width * bits), axis=1)
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0),
        b"eXIf": exif_of(orientation).removeprefix(b"Exif\0\0"),
        **chunks,
        b"IDAT": zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(name, content) for name, content in chunks.items())


def png_with_palette(
    random: np.random.Generator, size: tuple[int, int], bits: int, transparent: bool, orientation: int = 1
) -> tuple[bytes, np.ndarray]:
    """A PNG whose pixels are numbers of 1, 2, 4 or 8 bits of colours, and these colours: uint8 (h,
    w, 3), or with opacity (h, w, 4).
    """
    colours, opacity = random.integers(0, 256, (2**bits, 3), np.uint8), random.integers(0, 256, (2**bits, 1), np.uint8)
    numbers = random.integers(0, 2**bits, size, np.uint8)
    chunks = {b"PLTE": colours.tobytes(), **({b"tRNS": opacity.tobytes()} if transparent else {})}
    data = packed_png(numbers, bits, 3, chunks, orientation)
    return data, (np.concatenate([colours, opacity], -1) if transparent else colours)[numbers]


def png_of_few_greys(
    random: np.random.Generator, size: tuple[int, int], bits: int, transparent: bool, orientation: int = 1
) -> tuple[bytes, np.ndarray]:
    """A PNG of greys of 1, 2, 4 or 8 bits, and these greys: uint8 (h, w, 1), or with opacity (h, w,
    2) where one of them is transparent.
    """
    numbers, top = random.integers(0, 2**bits, size, np.uint8), 2**bits - 1
    chunks = {b"tRNS": struct.pack(">H", numbers[0, 0])} if transparent else {}
    greys, opacity = numbers * np.uint8(255 // top), 255 * (numbers != numbers[0, 0]).astype(np.uint8)
    return packed_png(numbers, bits, 0, chunks, orientation), np.stack([greys, opacity] if transparent else [greys], -1)


def jpeg(pixels: np.ndarray, orientation: int = 1) -> bytes:
    """A JPEG of pixels uint8 (h, w, 1 or 3)."""
    plain, exif = bytes(imagecodecs.jpeg8_encode(plain_array(pixels), level=95)), exif_of(orientation)
    return plain[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + plain[2:]


def webp(pixels: np.ndarray, orientation: int = 1) -> bytes:
    """A lossless WebP of pixels uint8 (h, w, 3 or 4)."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", lossless=True, exact=True, exif=exif_of(orientation))
    return file.getvalue()


def bmp(pixels: np.ndarray) -> bytes:
    """A BMP of pixels uint8 (h, w, 1 or 3)."""
    return bytes(imagecodecs.bmp_encode(plain_array(pixels)))


def read_by_others(data: bytes) -> np.ndarray:
    """A file's channels as stored, (h, w, c)."""
    if data[:4] in (b"II*\0", b"MM\0*"):
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page = file.pages.first
            assert not page.extrasamples or page.extrasamples == (2,)  # opacity that colours are not multiplied by
            pixels = page.asarray()
    elif data[:2] == b"BM":
        pixels = imagecodecs.bmp_decode(data, asrgb=False)
    else:
        decode = {b"\x89PNG": imagecodecs.png_decode, b"\xff\xd8": imagecodecs.jpeg8_decode, b"RIFF": imagecodecs.webp_decode}
        pixels = next(read for start, read in decode.items() if data.startswith(start))(data)
    return pixels[..., None] if pixels.ndim == 2 else pixels
