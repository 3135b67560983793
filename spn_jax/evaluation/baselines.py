"""Completes photos without training.

A model that does not beat these methods has learnt nothing. Every method maps a photo uint8 (h, w,
3) and a mask (h, w, 1), 1 = hole, to the completed photo uint8 (h, w, 3), whose known pixels are
the photo's own.
"""

import functools
from collections.abc import Callable

import cv2
import numpy as np

from spn_jax.errors import InputError

Baseline = Callable[[np.ndarray, np.ndarray], np.ndarray]
RADIUS = 3  # radius in pixels of the neighbourhood that OpenCV's methods look at


def mean_fill(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Fills holes with the mean of the known pixels, per channel; middle grey if no pixel is
    known.
    """
    known = image[mask[..., 0] == 0]
    colour = np.rint(known.mean(axis=0)) if len(known) else np.full(3, 128)
    return np.where(mask > 0, colour.astype(np.uint8), image)


def opencv(image: np.ndarray, mask: np.ndarray, method: int) -> np.ndarray:
    """Runs OpenCV's inpainting by `method`. At borders it also reads pixels in the hole, so they
    are filled with the mean first.
    """
    holes = np.ascontiguousarray(mask[..., 0] > 0, np.uint8)
    known = np.ascontiguousarray(mean_fill(image, mask))
    return np.where(mask > 0, cv2.inpaint(known, holes, RADIUS, method), image)


BASELINES: dict[str, Baseline] = {
    "mean": mean_fill,
    # fast marching method (Telea, J. Graphics Tools 2004)
    "opencv-telea": functools.partial(opencv, method=cv2.INPAINT_TELEA),
    # Navier-Stokes (Bertalmio et al., CVPR 2001)
    "opencv-ns": functools.partial(opencv, method=cv2.INPAINT_NS),
}


def find_baseline(name: str) -> Baseline:
    """Returns the method of that name.

    Raises:
        InputError: there is none.
    """
    if name not in BASELINES:
        raise InputError(f"there is no method {name!r}; choose from {', '.join(BASELINES)}")
    return BASELINES[name]
