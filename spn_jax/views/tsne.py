"""Shows the results of several methods and their photos in one t-SNE map (the paper's Fig. 9)."""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.cluster.vq import kmeans2

from spn_jax.checkpoints import weights
from spn_jax.drawing import figures
from spn_jax.drawing.sheet import Cell, Row, sheet
from spn_jax.errors import InputError
from spn_jax.evaluation.scoring import Detail
from spn_jax.evaluation.session import Evaluation
from spn_jax.runtime.sharding import make_mesh
from spn_jax.views.subjects import about_all, add_arguments, chosen, completed_batches, open_subjects

TRUTH = "photos"  # the name of the panel of the photos themselves
CLUSTERS = 8
MARKERS = "osD^vPX*"  # markers of the clusters, besides their colours

Embedding = Callable[[np.ndarray], np.ndarray]  # pictures uint8 (b, P, P, 3) -> features (b, d)


def add(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    add_arguments(parser, count=200, others=True)
    add = parser.add_argument
    add("--teacher", metavar="FILE.npz", help="points are features of TResNet-L with these weights (teacher_export.weights tresnet_l)")
    add("--inception", metavar="FILE.npz", help="points are features of Inception with these weights (teacher_export.weights inception)")
    add("--perplexity", type=float, default=30, help="of t-SNE (default 30)")
    add("--tsne-seed", type=int, default=0, help="of t-SNE")


def draw(options: argparse.Namespace) -> np.ndarray:
    """Draws a panel of the photos and one for each method, all from one map."""
    require_scikit_learn()
    if (options.teacher is None) == (options.inception is None):
        raise InputError("the points are features of a network; pass either --teacher FILE.npz or --inception FILE.npz")
    embed, network = teacher_embedding(options.teacher) if options.teacher else inception_embedding(options.inception)
    options.inception = None  # no score needs it
    evaluation = open_subjects(options)
    numbers = chosen(options, len(evaluation.photos))
    if TRUTH in (method.name for method in evaluation.methods):
        raise InputError(f"a method is called {TRUTH}, as the panel of the photos themselves; give it another name with NAME=DIR")
    if not 1 <= options.perplexity < len(numbers):
        raise InputError(f"--perplexity {options.perplexity:g} must be at least 1 and below the number of photos, {len(numbers)}")
    features = features_of_all(evaluation, numbers, embed)
    places = project(features, options.perplexity, options.tsne_seed)
    clusters = photo_clusters(features[TRUTH])
    picture = panels(places, clusters, {name: own_photo_nearest(f, features[TRUTH]) for name, f in features.items()})
    text = (
        f"t-SNE of {len(numbers)} photos and of each method's results for them, all in one map (perplexity {options.perplexity:g}, seed "
        f"{options.tsne_seed}). Points are {network}. Colour and shape: the k-means cluster (K = {CLUSTERS}) of the photo's own features; "
        "a result has those of the photo it should have become. Grey: the photos. In brackets: results whose nearest photo, in features, "
        "is their own.\n"
    )
    return sheet([Row([Cell(picture)])], [], text + about_all(evaluation), cell=len(picture))


def require_scikit_learn() -> None:
    """Raises InputError if scikit-learn is not installed."""
    try:
        import sklearn.manifold  # noqa: F401
    except ImportError as error:
        raise InputError("t-SNE needs scikit-learn; install it with `pip install -e '.[metrics]'`") from error


def teacher_embedding(path: str) -> tuple[Embedding, str]:
    """Returns the embedding by the teacher's trunk at its coarsest level, averaged over positions,
    and its description.
    """
    teacher, origin = weights.load_tresnet(path, (3,), jnp.float32)

    @jax.jit
    def features(model: Any, pictures: jax.Array) -> jax.Array:
        b, h, w, c = pictures.shape
        # the teacher sees photos at 2P
        enlarged = jax.image.resize(pictures.astype(jnp.float32) / 255, (b, 2 * h, 2 * w, c), "bilinear")
        return model(enlarged)[3].mean((1, 2))

    words = f"layer2 of TResNet-L (the teacher's level 3), mean over all positions, of pictures enlarged to 2P; weights: {origin}"
    return lambda pictures: np.asarray(features(teacher, pictures)), words


def inception_embedding(path: str) -> tuple[Embedding, str]:
    """Returns the embedding by Inception's pooled features, as for FID, and its description."""
    inception, origin = weights.load_inception(path)
    features = jax.jit(lambda model, pictures: model(pictures.astype(jnp.float32) / 255))
    return lambda pictures: np.asarray(features(inception, pictures)), f"pooled features of Inception, as for FID; weights: {origin}"


def features_of_all(evaluation: Evaluation, numbers: list[int], embed: Embedding) -> dict[str, np.ndarray]:
    """Returns {method, and TRUTH first: features (n, d)} of the photos of these numbers."""
    parts: dict[str, list[np.ndarray]] = {TRUTH: []}
    for _, batch in completed_batches(evaluation, make_mesh(), numbers, Detail.GRID):
        parts[TRUTH].append(embed(next(iter(batch.values()))["image"]))
        for name, part in batch.items():
            parts.setdefault(name, []).append(embed(part["completed"]))
    return {name: np.concatenate(of_method) for name, of_method in parts.items()}


def project(features: dict[str, np.ndarray], perplexity: float, seed: int) -> dict[str, np.ndarray]:
    """Places all points in one t-SNE map, (n, 2) each."""
    from sklearn.manifold import TSNE

    together = np.concatenate(list(features.values())).astype(np.float64)
    scaled = (together - together.mean(0)) / np.maximum(together.std(0), 1e-12)
    places = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(scaled)
    return dict(zip(features, np.split(places, len(features)), strict=True))


def photo_clusters(features: np.ndarray, seed: int = 0) -> np.ndarray:
    """Returns the k-means cluster of each photo, (n,), the largest first."""
    scaled = (features - features.mean(0)) / np.maximum(features.std(0), 1e-12)
    k = min(CLUSTERS, len(np.unique(scaled, axis=0)))
    _, labels = kmeans2(scaled.astype(np.float64), k, minit="++", rng=np.random.default_rng(seed), missing="warn")
    by_size = np.argsort(-np.bincount(labels, minlength=k), kind="stable")
    return np.argsort(by_size)[labels]


def own_photo_nearest(features: np.ndarray, truth: np.ndarray) -> float:
    """Returns the share of results (n, d) whose nearest photo (n, d), by Euclidean distance, is
    their own.
    """
    squares = (truth**2).sum(1)[None] - 2 * features.astype(np.float64) @ truth.astype(np.float64).T
    return float((squares.argmin(1) == np.arange(len(truth))).mean())


def panels(places: dict[str, np.ndarray], clusters: np.ndarray, nearest: dict[str, float]) -> np.ndarray:
    """Draws scatter plots with equal axes, the photos in grey behind the results."""
    columns = min(4, len(places))
    figure = figures.new_figure(columns, -(-len(places) // columns), panel=(3.2, 3.2))
    shared = None
    for i, (name, points) in enumerate(places.items()):
        shared = axes = figure.add_subplot(-(-len(places) // columns), columns, i + 1, sharex=shared, sharey=shared)
        if name != TRUTH:
            axes.scatter(*places[TRUTH].T, s=14, color="0.85")
        for cluster in np.unique(clusters):
            colour = figures.PALETTE[cluster] / 255
            axes.scatter(*points[clusters == cluster].T, s=16, color=colour, marker=MARKERS[cluster], linewidths=0)
        axes.set_title(name if name == TRUTH else f"{name} ({nearest[name]:.0%})", fontsize=10)
        axes.set(xticks=[], yticks=[])
    return figures.render(figure)
