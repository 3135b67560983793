"""Shows methods side by side with enlarged details (the paper's Fig. 4 and 5)."""

import argparse

import cv2
import numpy as np

from spn_jax.drawing import figures
from spn_jax.drawing.sheet import Cell, Row, sheet
from spn_jax.errors import InputError
from spn_jax.runtime.sharding import make_mesh
from spn_jax.views.subjects import Subject, about_all, add_arguments, chosen, open_subjects, subjects

FRAME = figures.PALETTE[5]  # colour of the frame around a detail
# by default the side of a detail is the photo's divided by this
DETAIL = 4

Window = tuple[int, int, int]  # left, top, side in pixels


def add(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    add_arguments(parser, count=4, others=True)
    parser.add_argument("--crop", metavar="X,Y,SIDE", help="the enlarged detail in pixels; chosen for each photo if not given")


def draw(options: argparse.Namespace) -> np.ndarray:
    """Draws two rows for each photo: input, every method and the photo; below, a detail of each."""
    evaluation = open_subjects(options)
    window = None if options.crop is None else parse_window(options.crop, evaluation.config.data.image_size)
    shown = subjects(evaluation, make_mesh(), chosen(options, len(evaluation.photos)))
    rows = [row for subject in shown for row in rows_of(subject, window or busiest_window(subject))]
    text = "Under each picture: PSNR of the whole photo. Second rows: the framed detail, enlarged" + (
        ".\n" if window else "; it is where the methods differ most, from each other and from the photo.\n"
    )
    return sheet(rows, ["input", *(m.name for m in evaluation.methods), "photo"], text + about_all(evaluation))


def rows_of(subject: Subject, window: Window) -> list[Row]:
    """Returns a row of a photo's pictures with a frame, and a row of the frame's contents."""
    pictures = [figures.masked_input(subject.image, subject.mask), *subject.completed.values(), subject.image]
    notes = ["", *(subject.note(method) for method in subject.completed), ""]
    whole = [Cell(framed(picture, window), note) for picture, note in zip(pictures, notes, strict=True)]
    return [Row(whole), Row([Cell(detail(picture, window)) for picture in pictures])]


def parse_window(text: str, size: int) -> Window:
    """Parses X,Y,SIDE in pixels of a photo of this size. Raises InputError if it is malformed, or
    lies outside.
    """
    try:
        left, top, side = (int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--crop {text} must be three whole numbers X,Y,SIDE, as 32,40,64") from None
    if min(left, top) < 0 or side < 1 or max(left, top) + side > size:
        raise InputError(f"--crop {text} does not lie inside the photos of {size} x {size} pixels")
    return left, top, side


def busiest_window(subject: Subject) -> Window:
    """Returns the square in which the completions differ most from the photo, summed over its
    pixels.
    """
    pictures = np.stack([*subject.completed.values(), subject.image]).astype(np.float32)
    side = max(8, len(subject.image) // DETAIL)
    sums = cv2.boxFilter(pictures.std(0).sum(-1), -1, (side, side), anchor=(0, 0), normalize=False, borderType=cv2.BORDER_CONSTANT)
    places = sums[: len(sums) - side + 1, : len(sums) - side + 1]
    top, left = np.unravel_index(int(places.argmax()), places.shape)
    return int(left), int(top), side


def framed(picture: np.ndarray, window: Window) -> np.ndarray:
    """Returns a copy of a picture (h, w, 3) with a frame around the window, one pixel thick for
    each 64 of the picture's height.
    """
    left, top, side = window
    thick = max(1, len(picture) // 64)
    copy = picture.copy()
    inside = copy[top : top + side, left : left + side].copy()
    outer = slice(max(top - thick, 0), top + side + thick), slice(max(left - thick, 0), left + side + thick)
    copy[outer] = FRAME
    copy[top : top + side, left : left + side] = inside
    return copy


def detail(picture: np.ndarray, window: Window) -> np.ndarray:
    """Cuts out the window, (side, side, 3)."""
    left, top, side = window
    return picture[top : top + side, left : left + side]
