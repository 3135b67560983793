"""Shows the prior pyramid as k-means clusters, beside the edge map (the paper's Fig. 10)."""

import argparse

import cv2
import numpy as np

from spn_jax.drawing import figures
from spn_jax.drawing.colours import colour_clusters, joint_clusters, matched_clusters
from spn_jax.drawing.sheet import Cell, Key, Row, sheet, swatch
from spn_jax.views.inside import Inside, look_inside
from spn_jax.views.subjects import about_all, add_arguments, chosen, only_model, open_subjects, scale_name

CLUSTERS = 8  # the paper's K
CANNY = (100, 200)  # OpenCV's lower and upper threshold, as in the teacher `canny`
# colours of edges outside and inside the hole
KNOWN, HIDDEN = np.array([0, 0, 0], np.uint8), figures.PALETTE[5]


def add(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    add_arguments(parser, count=4)


def draw(options: argparse.Namespace) -> np.ndarray:
    """Draws input, edge map, priors from the coarsest scale to the finest, result and photo, a row
    each.
    """
    evaluation = open_subjects(options)
    method = only_model(evaluation)
    numbers = chosen(options, len(evaluation.photos))
    images, masks, inside = look_inside(evaluation, method, numbers)
    clusters = clusters_of(inside)
    rows = [
        Row(
            [
                Cell(figures.masked_input(image, mask)),
                Cell(edge_map(image, mask)),
                *(Cell(colour_clusters(of_level[row])) for of_level in clusters.values()),
                Cell(inside.completed[row, 0]),
                Cell(image),
            ]
        )
        for row, (image, mask) in enumerate(zip(images, masks, strict=True))
    ]
    headings = ["input", "edges of the photo", *(f"prior {scale_name(level)}" for level in clusters), "result", "photo"]
    text = (
        f"Priors: k-means clusters of their features (K = {CLUSTERS}), found over all photos together, and matched between scales by "
        "overlap: one colour is one cluster in all rows, and covers at the next scale what it covered before.\n"
        "Edges: Canny of the whole photo; those inside the hole are what an edge-guided method has to guess, and the SPN is not shown.\n"
    )
    legend = [Key(swatch(KNOWN), "edge, known"), Key(swatch(HIDDEN), "edge, in the hole")]
    return sheet(rows, headings, text + about_all(evaluation), legend)


def clusters_of(inside: Inside) -> dict[int, np.ndarray]:
    """Returns {level: clusters (n, h, w)} of the first completions' priors, coarsest first, with
    matching numbers on all levels.
    """
    levels = sorted(inside.prior, reverse=True)
    return matched_clusters({level: joint_clusters(inside.prior[level][:, 0], CLUSTERS) for level in levels}, CLUSTERS)


def edge_map(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Draws Canny edges of a photo (h, w, 3) on white; those in the hole of the mask (h, w, 1) have
    another colour.
    """
    edges = cv2.Canny(np.rint(image.mean(-1)).astype(np.uint8), *CANNY)[..., None] > 0
    return np.where(edges, np.where(mask > 0, HIDDEN, KNOWN), np.uint8(255))
