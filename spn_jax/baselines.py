"""Completions that need no training; a model that does not beat them has learnt nothing.

Every method maps a photo uint8 (h, w, 3) and a mask (h, w, 1), 1 = hole, to the completed photo uint8 (h, w, 3), whose known
pixels are the photo's own.
"""

from collections.abc import Callable

import cv2
import numpy as np

from spn_jax.errors import InputError

Baseline = Callable[[np.ndarray, np.ndarray], np.ndarray]


def mean_fill(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Holes take the mean of the known pixels, per channel; middle grey where no pixel is known."""
    known = image[mask[..., 0] == 0]
    colour = np.rint(known.mean(axis=0)) if len(known) else np.full(3, 128)
    return np.where(mask > 0, colour.astype(np.uint8), image)


def opencv_telea(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """OpenCV's fast marching method (Telea 2004), radius 3 pixels."""
    holes = np.ascontiguousarray(mask[..., 0] > 0, np.uint8)
    completed = cv2.inpaint(np.ascontiguousarray(image), holes, 3, cv2.INPAINT_TELEA)
    return np.where(mask > 0, completed, image)


BASELINES: dict[str, Baseline] = {"mean": mean_fill, "opencv-telea": opencv_telea}


def find_baseline(name: str) -> Baseline:
    """The method of that name.

    Raises:
        InputError: there is none.
    """
    if name not in BASELINES:
        raise InputError(f"there is no baseline {name!r}; choose from {', '.join(BASELINES)}")
    return BASELINES[name]
