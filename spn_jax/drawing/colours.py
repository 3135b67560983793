"""Colours features alike in every picture of a page: clusters, principal components, heat."""

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from spn_jax.drawing.figures import PALETTE

# most points of a scale, drawn by the seed, that k-means is fitted to; all points are then assigned
POINTS = 20_000
CLIPPED = (1, 99)  # percentiles of a component that become the darkest and the brightest value


def joint_clusters(maps: Sequence[np.ndarray] | np.ndarray, clusters: int = 8, seed: int = 0) -> np.ndarray:
    """Runs k-means over all positions of all maps together, so that a number means the same cluster
    in every map.

    Args:
        maps: n of (h, w, c).
        clusters: K; fewer are used where the maps have fewer distinct features.

    Returns:
        The cluster of each position, (n, h, w), the largest cluster first.
    """
    from scipy.cluster.vq import kmeans2, vq  # a fifth of a second to import

    points = np.stack(list(maps)).astype(np.float64)
    flat = points.reshape(-1, points.shape[-1])
    rng = np.random.default_rng(seed)
    drawn = flat if len(flat) <= POINTS else flat[rng.choice(len(flat), POINTS, replace=False)]
    k = min(clusters, len(np.unique(drawn, axis=0)))
    with warnings.catch_warnings():
        # one colour fewer is harmless
        warnings.filterwarnings("ignore", message="One of the clusters is empty")
        centres, _ = kmeans2(drawn, k, minit="++", rng=rng)
    labels = np.concatenate([vq(of_map.reshape(-1, points.shape[-1]), centres)[0] for of_map in points])
    by_size = np.argsort(-np.bincount(labels, minlength=k), kind="stable")
    return np.argsort(by_size)[labels].reshape(points.shape[:-1])


def matched_clusters(labels: Mapping[int, np.ndarray], clusters: int = 8) -> dict[int, np.ndarray]:
    """Renumbers the clusters of each level so that they overlap clusters of the same number on the
    next coarser level.

    The renumbering has the greatest overlap, in positions, over all maps together.

    Args:
        labels: {level: (n, h, w)} of `joint_clusters`; a level is 2^i times as large as the next.
    """
    from scipy.optimize import linear_sum_assignment

    coarsest, *finer = sorted(labels, reverse=True)
    matched = {coarsest: labels[coarsest]}
    above = coarsest
    for level in finer:
        factor = labels[level].shape[1] // labels[above].shape[1]
        coarse = matched[above].repeat(factor, 1).repeat(factor, 2)
        overlap = np.zeros((clusters, clusters), np.int64)
        np.add.at(overlap, (labels[level].ravel(), coarse.ravel()), 1)
        _, renumbered = linear_sum_assignment(overlap, maximize=True)
        matched[level] = renumbered[labels[level]]
        above = level
    return matched


def colour_clusters(labels: np.ndarray) -> np.ndarray:
    """Draws cluster numbers below 8, (..., h, w), as pictures uint8 (..., h, w, 3)."""
    return PALETTE[labels]


class Components:
    """The first three principal components of a kind of feature, as colours: brightness, then two
    of hue.

    A colour-blind reader thus misses only the second and third component.

    Args:
        maps: n of (h, w, c), c at least 1, from which the basis is computed. Other maps may be
            drawn in it.
    """

    def __init__(self, maps: Sequence[np.ndarray] | np.ndarray):
        points = np.stack(list(maps)).reshape(-1, maps[0].shape[-1]).astype(np.float64)
        self._mean = points.mean(0)
        values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(points - self._mean, rowvar=False)))
        basis = vectors[:, ::-1][:, :3]
        largest = np.abs(basis).argmax(0)
        # an eigenvector's sign is arbitrary
        self._basis = basis * np.sign(basis[largest, np.arange(basis.shape[1])])
        self._low, self._high = np.percentile((points - self._mean) @ self._basis, CLIPPED, axis=0)
        # share of the variance in the three components
        self.explained = float(values[::-1][:3].sum() / max(values.sum(), np.finfo(float).tiny))

    def picture(self, features: np.ndarray) -> np.ndarray:
        """Draws a map (h, w, c) as uint8 (h, w, 3)."""
        projected = (features.astype(np.float64) - self._mean) @ self._basis
        unit = np.clip((projected - self._low) / np.maximum(self._high - self._low, 1e-12), 0, 1)
        channels = np.full((*unit.shape[:2], 3), 128.0)
        channels[..., : unit.shape[-1]] = 255 * unit
        # Hues stay near the middle of YCbCr, whose ends a screen cannot show.
        channels[..., 1:] = 128 + 0.6 * (channels[..., 1:] - 128)
        return np.asarray(Image.fromarray(channels.astype(np.uint8), "YCbCr").convert("RGB"))


def heat(values: np.ndarray, largest: float) -> np.ndarray:
    """Draws (h, w) in [0, largest] as uint8 (h, w, 3) in cividis, which looks the same to
    colour-blind readers; 0 is its dark end.
    """
    from matplotlib import colormaps  # imported here because it takes half a second

    unit = values / largest if largest > 0 else np.zeros_like(values)
    return (255 * colormaps["cividis"](np.clip(unit, 0, 1))[..., :3]).astype(np.uint8)
