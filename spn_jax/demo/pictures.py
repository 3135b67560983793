"""Decodes uploaded photos and masks, and encodes filled photos as files and for the screen."""

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

VIEW = 2048  # longest side of a view in pixels; screens show no more without zoom
LONGEST_NAME = 80  # most characters of a file name that is shown and returned


class Filler(Protocol):
    """The part of `spn_jax.filling.inpainter.Inpainter` that the server needs."""

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
    """A photo as it was uploaded. It is decoded only when it is filled, since a file is much
    smaller than its pixels.

    name: without folders or characters that are special to file systems.
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
    """The options for filling a hole."""

    samples: int = 1
    seed: int = 0
    strategy: Strategy = "auto"


def receive_photo(data: bytes, file_name: str | None, most_pixels: int) -> Upload:
    """Decodes an uploaded photo, to make sure now that it can be.

    Raises:
        InputError: it is no image, is damaged, has more pixels than `most_pixels`, or colours that
            could not be kept.
    """
    name = clean_name(file_name)
    check_pixels(data, name, most_pixels)
    photo = read_photo(io.BytesIO(data), name)
    return Upload(name, data, photo.size, view(photo))


def receive_mask(
    data: bytes, file_name: str | None, shape: tuple[int, int], most_pixels: int, invert: bool = False, dilate: int = 0
) -> np.ndarray:
    """Decodes a mask, uint8 (h, w, 1), for an upright photo of height and width `shape`. Raises
    InputError as `receive_photo` does, or if the size differs.
    """
    name = clean_name(file_name, "the mask")
    check_pixels(data, name, most_pixels)
    return read_mask(io.BytesIO(data), name, shape, invert, dilate)


def check_pixels(data: bytes, name: str, most: int) -> None:
    """Raises InputError for more than `most` pixels, before they are decoded. Files that are no
    images are left to the decoder.
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
    """Returns the last part of a path of any operating system, without characters that are special
    to one of them.
    """
    last = re.split(r"[/\\]", unicodedata.normalize("NFC", name or ""))[-1]
    kept = "".join(c for c in last if c.isprintable() and c not in '<>:"|?*').strip(". ")
    path = Path(kept or otherwise)
    return path.stem[: LONGEST_NAME - len(path.suffix[:8])] + path.suffix[:8]


def fill(filler: Filler, upload: Upload, mask: np.ndarray, order: Order, progress: Progress) -> Iterator[Result]:
    """Yields the completions of a photo one by one. Every file is a PNG, which can hold all that a
    photo has.

    Args:
        mask: uint8 (h, w, 1) of the photo's size, 1 = hole.
        progress: called between two passes of the network with the numbers of finished and of all
            passes. An exception in it ends the work.
    """
    stem = Path(upload.name).stem
    completions = filler.fill(upload.read(), mask, order.samples, order.seed, order.strategy, progress=progress)
    for number, filled in enumerate(completions, 1):
        name = f"{stem}_filled_{number}.png" if order.samples > 1 else f"{stem}_filled.png"
        yield Result(name, encode_photo(filled, ".png"), view(filled))


def prior_maps(filler: Filler, upload: Upload, mask: np.ndarray) -> Iterator[Result]:
    """Yields k-means maps of the prior's levels, finest first: the network's interpretation of the
    hole and its surroundings.
    """
    for level, features in sorted(filler.priors(upload.read().rgb(), mask).items()):
        picture = png(cluster_map(np.asarray(features)))
        yield Result(f"{Path(upload.name).stem}_prior_{level}.png", picture, picture)


def view(photo: Photo) -> bytes:
    """Encodes an 8-bit PNG for the screen, with the photo's colours and profile; large photos are
    reduced.
    """
    picture = Image.fromarray(photo.rgb())
    picture.thumbnail((VIEW, VIEW))
    profile = photo.icc_profile
    # A grey photo's profile does not apply to the three channels of its view.
    options = {"icc_profile": profile} if profile and profile[16:20] == b"RGB " else {}
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1, **options)
    return buffer.getvalue()


def hole_picture(mask: np.ndarray) -> bytes:
    """Encodes a mask (h, w, 1) as a PNG that is white in the hole and transparent elsewhere."""
    hole = Image.fromarray(255 * mask[..., 0])
    buffer = io.BytesIO()
    Image.merge("LA", (hole, hole)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
