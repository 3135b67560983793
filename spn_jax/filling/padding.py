"""Pads the windows of photos to a few sizes, so that many share programs."""

import numpy as np

from spn_jax.config import Config
from spn_jax.models.spn import SMALLEST


def bucket(side: int, config: Config) -> int:
    """Returns the length that a side is padded to: a multiple of a quarter of the trained size up
    to it, of a half up to twice it, then of the whole.
    """
    size = config.data.image_size
    step = bucket_steps(config)[0 if side <= size else 1 if side <= 2 * size else 2]
    return -(-side // step) * step


def bucket_steps(config: Config) -> tuple[int, int, int]:
    """Returns a quarter, a half and the whole of the trained size, rounded up to what the network
    takes.
    """
    size, stride = config.data.image_size, config.model.stride
    quarter, half, whole = (max(-(-step // stride) * stride, SMALLEST) for step in (size // 4, size // 2, size))
    return quarter, half, whole


def pad(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pads (h, w, c) by its mirror image, to the right and below. Photo and mask are padded alike:
    if the mirrored hole counted as known, it would show what is under it.
    """
    (height, width), (wanted_height, wanted_width) = array.shape[:2], size
    return np.pad(array, ((0, wanted_height - height), (0, wanted_width - width), (0, 0)), mode="symmetric")
