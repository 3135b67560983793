"""Finds the hole in a picture that is used as a mask, and notes what looks like a mistake."""

from typing import Literal, NamedTuple, get_args

import cv2
import numpy as np
from PIL import Image

from spn_jax.data.masks import levels_of
from spn_jax.errors import InputError
from spn_jax.filling.formats import is_inverted

MaskFrom = Literal["white", "alpha"]
MASK_FROM: tuple[MaskFrom, ...] = get_args(MaskFrom)
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R 601, as Pillow turns colours to grey

DARK = 1 / 16  # share of the range; an empty mask saved as JPEG has values above 0 as well
GREY = (1 / 8, 7 / 8)  # shares of the range; values between them are neither black nor white
MUCH_GREY = 1 / 4  # share of a picture's pixels; soft borders have less grey
MOSTLY_HOLE = 4 / 5  # share of a photo's pixels; a larger hole may be an inverted mask
ALPHA_HINT = 'take the hole from its transparency (--mask-from alpha, in Python mask_from="alpha")'


class ExaminedMask(NamedTuple):
    """A mask, and notes on what looks mistaken about it.

    mask: uint8 (h, w, 1), 1 = hole.
    notes: sentences for the terminal; empty for most masks.
    """

    mask: np.ndarray
    notes: tuple[str, ...] = ()


class Levels(NamedTuple):
    """A picture's brightness.

    values: (h, w), from 0 to `top`.
    white: the threshold for white, half of the range.
    opacity: uint8 (h, w); None where nothing is transparent.
    """

    values: np.ndarray
    white: float
    top: float
    opacity: np.ndarray | None = None


def hole_of_picture(image: Image.Image, name: str, invert: bool, mask_from: MaskFrom) -> tuple[np.ndarray, tuple[str, ...]]:
    """Finds the hole of a decoded image, bool (h, w), as stored, with notes. Raises InputError as
    `hole_of_levels` does.
    """
    opacity = np.asarray(image.convert("RGBA").getchannel("A")) if image.has_transparency_data else None
    if opacity is not None and opacity.min(initial=255) == 255:
        opacity = None
    values, white, top = levels_of(image, background=255 if invert else 0)
    values = 65535 - values if is_inverted(image) else values
    return hole_of_levels(Levels(values, white, top, opacity), name, invert, mask_from)


def hole_of_array(array: np.ndarray, name: str, invert: bool, mask_from: MaskFrom) -> tuple[np.ndarray, tuple[str, ...]]:
    """Finds the hole of an array (h, w) or (h, w, 1 to 4), bool (h, w), with notes.

    The array holds booleans, whole numbers of 0 and 1 or of 8 or 16 bits, or floating-point numbers
    from 0 to 1. A second or fourth channel is opacity.

    Raises:
        ValueError: the array has another type or shape, or values outside the range.
        InputError: see `hole_of_levels`.
    """
    channels = array[..., None] if array.ndim == 2 else array
    if channels.ndim != 3 or channels.shape[2] not in (1, 2, 3, 4) or not channels.size or channels.dtype.kind not in "buif":
        raise ValueError(f"{name} must be an array of numbers, (h, w) or (h, w, 1 to 4), not {array.dtype} {array.shape}")
    least, most = channels.min(), channels.max()
    top = _top(channels.dtype, most)
    if not (least >= 0 and most <= top):  # also true if one of them is NaN
        raise ValueError(f"{name} must have values from 0 to {top:g}, not from {least:g} to {most:g}")
    colours, opacity = channels[..., : 3 if channels.shape[2] > 2 else 1], None
    if channels.shape[2] in (2, 4):
        opacity = np.rint(channels[..., -1] * (255 / top)).astype(np.uint8)
    values = colours @ LUMA if colours.shape[2] == 3 else colours[..., 0].astype(np.float64)
    # equal channels must give exactly that grey
    values = np.round(values, 6 if channels.dtype.kind == "f" else 0)
    if opacity is not None:
        share = opacity / 255
        values = values * share + (top if invert else 0) * (1 - share)
        opacity = None if opacity.min() == 255 else opacity
    return hole_of_levels(Levels(values, 0.5 if top == 1 else (top + 1) / 2, top, opacity), name, invert, mask_from)


def _top(dtype: np.dtype, most: float) -> float:
    """Returns the value of white in an array of this type."""
    if dtype.kind in "bf" or most <= 1:
        return 1
    return 255 if dtype == np.uint8 or (dtype != np.uint16 and most <= 255) else 65535


def hole_of_levels(levels: Levels, name: str, invert: bool, mask_from: MaskFrom) -> tuple[np.ndarray, tuple[str, ...]]:
    """Finds the hole, bool (h, w), with notes about possible mistakes.

    Raises:
        InputError: the picture has no hole although it is not empty, so that its hole is marked in
            another way; or transparency is asked for and it has none; or it looks like a photo
            whose transparent part is the hole.
    """
    if mask_from == "alpha":
        if levels.opacity is None:
            raise InputError(f"{name} has no transparent part; pass a picture that has one, or a mask that is white in the hole")
        return (levels.opacity < 128) != invert, ()
    white = levels.values >= levels.white
    share_grey = _share_grey(levels)
    if not white.any():
        _check_empty(levels, name)
    if levels.opacity is not None and share_grey > MUCH_GREY:
        raise InputError(f"{name} looks like a photo whose transparent part is the hole; {ALPHA_HINT}, or pass a black and white mask")
    notes = []
    if share_grey > MUCH_GREY:
        notes.append(f"{share_grey:.0%} of {name} is neither black nor white; the brighter half of the range counts as white")
    return white != invert, tuple(notes)


def _share_grey(levels: Levels) -> float:
    """Returns the share of the opaque pixels that are neither black nor white."""
    values = levels.values if levels.opacity is None else levels.values[levels.opacity == 255]
    low, high = (share * levels.top for share in GREY)
    return float(np.mean((values > low) & (values < high))) if values.size else 0.0


def _check_empty(levels: Levels, name: str) -> None:
    """Raises InputError for a picture without white whose hole seems to be marked in
    another way.
    """
    brightest = levels.values.max(initial=0)
    # values that are white in masks of other kinds
    telling = (1,) if levels.top == 255 else (1, 255)
    if levels.opacity is None and brightest <= levels.top * DARK and brightest not in telling:
        return
    if levels.opacity is not None:
        hint = f"{ALPHA_HINT} if the hole is what is transparent, inverted if it is what is opaque"
    elif brightest == 1:
        hint = f"it looks like a mask of 0 and 1, so multiply its values by {levels.top:g}"
    elif levels.top == 65535 and brightest <= 255:
        hint = "it looks like values of 8 bits in a file of 16, so multiply them by 257"
    else:
        hint = "mark the hole in white"
    raise InputError(
        f"{name} marks no hole: its brightest value is {brightest:g} of {levels.top:g}, and white begins at {levels.white:g}; {hint}"
    )


def notes_on_size(mask: np.ndarray, name: str, invert: bool) -> tuple[str, ...]:
    """Returns notes on a mask uint8 (h, w, 1) whose hole is empty, or most of the photo."""
    colour, other = (
        ("black", "leave out --invert-mask if the hole is white") if invert else ("white", "use --invert-mask if the hole is black")
    )
    share = float(np.mean(mask)) if mask.size else 0.0
    if not share:
        return (f"{name} marks no hole (no {colour} pixels); copied the photo unchanged; {other}",)
    if share > MOSTLY_HOLE:
        return (f"the hole in {name} is {share:.0%} of the photo; {other}",)
    return ()


def grown(mask: np.ndarray, pixels: int) -> np.ndarray:
    """Dilates the hole of a mask (h, w, 1) by so many pixels."""
    if not pixels or not mask.any():
        return mask
    distance = cv2.distanceTransform(1 - mask[..., 0], cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return (distance <= pixels).astype(np.uint8)[..., None]
