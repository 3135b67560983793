"""Cuts fixed squares from held-out photos, as the test list for training on random crops.

A few large photos make few test images. Squares of many scales and places make more, and every run
and every method sees the same ones.
"""

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from spn_jax.data.images import PhotoSource, prepare_photo, random_square
from spn_jax.data.shards import write_bytes, write_failed

CROPS_PER_PHOTO = 6
CROP_SIZE = 256  # pixels of a saved square; none is cut smaller, so none is enlarged


def write_crops(photos: PhotoSource, folder: Path) -> int:
    """Saves CROPS_PER_PHOTO squares of every photo as PNG files of CROP_SIZE pixels. Returns their
    number.

    The photo's name alone decides its squares, so they stay the same when other photos join the
    set. A file is either complete or absent, even if the program is killed.

    Raises:
        InputError: the disk is full or fails.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_failed(folder, error) from error
    crops = dict(cut_crops(photos))
    for name, crop in crops.items():
        encoded = io.BytesIO()
        Image.fromarray(crop).save(encoded, "PNG")
        write_bytes(folder / name, encoded.getvalue())
    return len(crops)


def cut_crops(photos: PhotoSource) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the file name and the pixels, uint8 (CROP_SIZE, CROP_SIZE, 3), of every square."""
    for i, name in enumerate(photos.names):
        photo = photos.load(i)
        random = np.random.default_rng(list(hashlib.sha256(name.encode()).digest()))
        for k in range(CROPS_PER_PHOTO):
            square = random_square(random, photo, CROP_SIZE)
            yield f"{PurePosixPath(name).stem}_{k}.png", prepare_photo(square, CROP_SIZE, "none", "lanczos")
