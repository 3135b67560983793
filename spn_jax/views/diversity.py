"""Shows where a probabilistic model's completions differ: the standard deviation of each pixel."""

import argparse

import numpy as np

from spn_jax.drawing import figures
from spn_jax.drawing.colours import heat
from spn_jax.drawing.sheet import Cell, Key, Row, sheet
from spn_jax.views.inside import several_completions
from spn_jax.views.subjects import about_all, add_arguments

SHOWN = 4  # number of completions beside the map


def add(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    add_arguments(parser, count=4)
    parser.add_argument("--samples", type=int, metavar="N", help="completions of each photo: eval.samples")


def draw(options: argparse.Namespace) -> np.ndarray:
    """Draws a row for each photo: input, map of the standard deviation, some of the completions."""
    evaluation, _, images, masks, inside = several_completions(options)
    spreads = deviations(inside.completed)
    largest = float(spreads.max())
    rows = [
        Row(
            [
                Cell(figures.masked_input(image, mask)),
                Cell(heat(spread, largest), f"{_mean_in(spread, mask):.3f} in the hole"),
                *map(Cell, completions[:SHOWN]),
            ]
        )
        for image, mask, completions, spread in zip(images, masks, inside.completed, spreads, strict=True)
    ]
    samples = inside.completed.shape[1]
    headings = ["input", "deviation", *(f"sample {i + 1}" for i in range(min(SHOWN, samples)))]
    text = (
        f"Standard deviation of each pixel over {samples} completions, of values in [0, 1], root mean square over the "
        "three colours; one scale for all rows. It is 0 outside the holes, where every completion has the photo's own pixels.\n"
    )
    return sheet(rows, headings, text + about_all(evaluation), [Key(bar(), f"0 to {largest:.3f}")])


def deviations(completions: np.ndarray) -> np.ndarray:
    """Returns the standard deviation over the samples of completions uint8 (n, s, h, w, 3), (n, h,
    w), in [0, 1].
    """
    return np.sqrt(completions.astype(np.float64).var(axis=1).mean(-1)) / 255


def bar() -> np.ndarray:
    """Draws the colours of the scale, from the left."""
    return heat(np.broadcast_to(np.linspace(0, 1, 160), (14, 160)), 1)


def _mean_in(values: np.ndarray, mask: np.ndarray) -> float:
    hole = mask[..., 0] > 0
    return float(values[hole].mean()) if hole.any() else 0.0
