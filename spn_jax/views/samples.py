"""Shows completions of a probabilistic model and the priors that they follow (the paper's Fig.
11).
"""

import argparse

import numpy as np

from spn_jax.drawing import figures
from spn_jax.drawing.colours import colour_clusters, joint_clusters
from spn_jax.drawing.sheet import Cell, Row, sheet
from spn_jax.errors import InputError
from spn_jax.views.inside import several_completions
from spn_jax.views.subjects import about_all, add_arguments, scale_name

CLUSTERS = 8


def add(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    add_arguments(parser, count=3)
    parser.add_argument("--samples", type=int, metavar="N", help="latents drawn for each photo: eval.samples")
    parser.add_argument("--level", type=int, help="of the priors; 1, the finest, is the paper's choice")


def draw(options: argparse.Namespace) -> np.ndarray:
    """Draws two rows for each photo: its completions, and under each the prior of the same
    latent.
    """
    evaluation, method, images, masks, inside = several_completions(options)
    level = options.level or min(inside.prior)
    if level not in inside.prior:
        raise InputError(f"--level {level}: the model has priors of level {', '.join(map(str, sorted(inside.prior)))}")
    samples = inside.completed.shape[1]
    priors = inside.prior[level]
    clusters = joint_clusters(priors.reshape(-1, *priors.shape[2:]), CLUSTERS).reshape(priors.shape[:-1])
    rows = []
    for image, mask, completions, of_photo in zip(images, masks, inside.completed, clusters, strict=True):
        rows.append(Row([Cell(figures.masked_input(image, mask)), *map(Cell, completions)], "result"))
        rows.append(Row([Cell(image, "photo"), *map(Cell, colour_clusters(of_photo))], "prior"))
    text = (
        f"Each column is one latent, drawn anew (seed {method.settings.seed}): the completion, and under it the prior at "
        f"{scale_name(level)} that it follows, as k-means clusters (K = {CLUSTERS}) of all priors of this page together, "
        "so that a colour means the same everywhere.\n"
    )
    return sheet(rows, ["input", *(f"sample {i + 1}" for i in range(samples))], text + about_all(evaluation))
