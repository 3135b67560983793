"""Draws the pictures of evaluations: the trainer's grid, and the comparison of several methods."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from spn_jax.config import Config
from spn_jax.drawing import figures
from spn_jax.evaluation.scoring import Arrays, Detail, scored_batches

# smallest height in pixels of a picture in a comparison; small photos are enlarged
GRID_CELL = 128
Rows = dict[str, list[np.ndarray]]


def sample_grid(model: Callable[..., Any], batches: Iterable[Mapping[str, Any]], mesh: Mesh, config: Config) -> np.ndarray:
    """Draws a labelled grid (h, w, 3) of all valid pictures of the batches: input, k-means map of
    the coarsest prior, result, truth.

    With several completions, the first SAMPLES_SHOWN replace the result, and the prior is that of
    the best.
    """
    rows: Rows = {}
    for part in scored_batches(model, batches, mesh, config, Detail.GRID):
        for row in np.flatnonzero(part["valid"]):
            add_column(rows, part["image"][row], part["mask"][row], {"": {name: part[name][row] for name in SHOWN if name in part}})
    return figures.image_grid(rows)


SHOWN = ("prior", "completed", "samples")  # entries of a scored batch, with Detail.GRID


def add_column(rows: Rows, image: np.ndarray, mask: np.ndarray, methods: Mapping[str, Arrays]) -> None:
    """Adds a photo to the rows of a grid: input, each method's entries, truth.

    Args:
        image, mask: (h, w, 3) and (h, w, 1).
        methods: {name: {entries of SHOWN for this photo}}. The prior is drawn if there is only one.
            A method named "" owns the whole grid, whose rows are called prior, result, sample 1,
            ...
    """
    pictures = {"input": figures.masked_input(image, mask)}
    if sum("prior" in shown for shown in methods.values()) == 1:
        pictures["prior"] = figures.cluster_map(next(shown["prior"] for shown in methods.values() if "prior" in shown))
    for name, shown in methods.items():
        if "samples" in shown:
            pictures |= {f"{name or 'sample'} {i}": sample for i, sample in enumerate(shown["samples"], 1)}
        else:
            pictures[name or "result"] = shown["completed"]
    pictures["truth"] = image
    for label, picture in pictures.items():
        rows.setdefault(label, []).append(picture)


def comparison(rows: Mapping[str, Sequence[np.ndarray]]) -> np.ndarray:
    """Draws the rows of `add_column` as one picture, with small photos enlarged by a whole
    factor.
    """
    size = len(next(iter(rows.values()))[0])
    return figures.image_grid(rows, cell=-(-GRID_CELL // size) * size)


def spread(photos: int, count: int) -> list[int]:
    """Returns the numbers of `count` photos, evenly chosen from all."""
    return sorted(set(np.linspace(0, photos - 1, min(count, photos)).round().astype(int).tolist()))
