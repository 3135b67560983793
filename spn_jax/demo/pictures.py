"""Uploaded files to photos and masks, and what a filled photo becomes for the page: a file with
every bit and a view for the screen.
"""

import dataclasses
import io
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from spn_jax.demo.jobs import Progress, Result
from spn_jax.demo.store import new_key
from spn_jax.drawing.figures import cluster_map, png
from spn_jax.errors import InputError
from spn_jax.filling.photos import READ, Photo, encode_photo, read_mask, read_photo
from spn_jax.filling.windows import Strategy

VIEW = 2048  # longest side of a view: finer than a screen shows without zoom
LONGEST_NAME = 80  # characters of a name that is shown and given back


class Filler(Protocol):
    """What the server needs of `spn_jax.filling.inpainter.Inpainter`."""

    def fill(
        self,
        photo: Photo,
        mask: np.ndarray,
        samples: int = 1,
        seed: int = 0,
        strategy: Strategy = "auto",
        progress: Progress | None = None,
    ) -> Iterator[Photo]: ...

    def priors(self, image: np.ndarray, mask: np.ndarray) -> dict[int, np.ndarray]: ...


@dataclasses.dataclass(frozen=True)
class Upload:
    """A photo as it was sent. It is decoded when it is filled: a file is a fraction of its pixels.

    name: without folders or signs that a file system could take for something.
    shape: height and width, upright.
    """

    name: str
    data: bytes
    shape: tuple[int, int]
    view: bytes
    key: str = dataclasses.field(default_factory=new_key)

    @property
    def size(self) -> int:
        return len(self.data) + len(self.view)

    @property
    def busy(self) -> bool:
        return False

    def read(self) -> Photo:
        return read_photo(io.BytesIO(self.data), self.name)


@dataclasses.dataclass(frozen=True)
class Order:
    """How a hole is to be filled."""

    samples: int = 1
    seed: int = 0
    strategy: Strategy = "auto"


def receive_photo(data: bytes, file_name: str | None, most_pixels: int) -> Upload:
    """Decodes an uploaded photo, to know now that it can be.

    Raises:
        InputError: it is no image, damaged, has more pixels than `most_pixels`, or colours that
            could not be given back.
    """
    name = clean_name(file_name)
    check_pixels(data, name, most_pixels)
    photo = read_photo(io.BytesIO(data), name)
    return Upload(name, data, photo.size, view(photo))


def receive_mask(
    data: bytes, file_name: str | None, shape: tuple[int, int], most_pixels: int, invert: bool = False, dilate: int = 0
) -> np.ndarray:
    """A mask, uint8 (h, w, 1), for an upright photo of height and width `shape`. InputError as
    `receive_photo`, or for another size.
    """
    name = clean_name(file_name, "the mask")
    check_pixels(data, name, most_pixels)
    return read_mask(io.BytesIO(data), name, shape, invert, dilate)


def check_pixels(data: bytes, name: str, most: int) -> None:
    """Raises InputError for more pixels than `most`, before they are decoded. What is no image is
    left to those who decode.
    """
    try:
        with Image.open(io.BytesIO(data), formats=READ) as image:
            pixels = image.width * image.height
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        pixels = most + 1
    except Exception:
        return
    if pixels > most:
        raise InputError(f"{name} is larger than {most / 1e6:.3g} megapixels, the limit of this server; scale it down")


def clean_name(name: str | None, otherwise: str = "photo") -> str:
    """The last part of a path, as systems of any kind write them, without signs that mean something
    to one of them.
    """
    last = re.split(r"[/\\]", unicodedata.normalize("NFC", name or ""))[-1]
    kept = "".join(c for c in last if c.isprintable() and c not in '<>:"|?*').strip(". ")
    path = Path(kept or otherwise)
    return path.stem[: LONGEST_NAME - len(path.suffix[:8])] + path.suffix[:8]


def fill(filler: Filler, upload: Upload, mask: np.ndarray, order: Order, progress: Progress) -> Iterator[Result]:
    """The completions of a photo, one after the other. Every file is a PNG, which keeps what the
    photo holds whatever its format.

    Args:
        mask: uint8 (h, w, 1) of the photo's size, 1 = hole.
        progress: called between two passes of the network with how many are done and how many there
            are; what it raises ends the work.
    """
    stem = Path(upload.name).stem
    completions = filler.fill(upload.read(), mask, order.samples, order.seed, order.strategy, progress=progress)
    for number, filled in enumerate(completions, 1):
        name = f"{stem}_filled_{number}.png" if order.samples > 1 else f"{stem}_filled.png"
        yield Result(name, encode_photo(filled, ".png"), view(filled))


def prior_maps(filler: Filler, upload: Upload, mask: np.ndarray) -> Iterator[Result]:
    """k-means maps of the prior's levels, the finest first: what the network takes the hole and its
    surroundings for.
    """
    for level, features in sorted(filler.priors(upload.read().rgb(), mask).items()):
        picture = png(cluster_map(np.asarray(features)))
        yield Result(f"{Path(upload.name).stem}_prior_{level}.png", picture, picture)


def view(photo: Photo) -> bytes:
    """A PNG of 8 bits for the screen, in the photo's own colours, which its profile explains; large
    photos are made smaller.
    """
    picture = Image.fromarray(photo.rgb())
    picture.thumbnail((VIEW, VIEW))
    profile = photo.icc_profile
    # A grey photo's profile says nothing about the three channels of its view.
    options = {"icc_profile": profile} if profile and profile[16:20] == b"RGB " else {}
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1, **options)
    return buffer.getvalue()


def hole_picture(mask: np.ndarray) -> bytes:
    """A mask (h, w, 1) as a PNG that is white in the hole and transparent elsewhere."""
    hole = Image.fromarray(255 * mask[..., 0])
    buffer = io.BytesIO()
    Image.merge("LA", (hole, hole)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
