"""Computes distances of two sets of pictures from Inception features: FID, KID, P-IDS and U-IDS.

All run in NumPy and SciPy, in float64. Features are (n, d), one row a picture (`models.inception`:
d = 2048), in any type. They may lie in a memory-mapped file: FID and KID read parts of them, so
that memory does not grow with the number of pictures. P-IDS and U-IDS take all features at once, as
their SVM does. Wrong sets of features are an InputError.
"""

import math
from collections.abc import Iterator

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray

from spn_jax.errors import InputError

# number of pictures below which the covariance of 2048 features lacks full rank, and FID is even
# more biased upwards
FID_RELIABLE = 2048
ROWS = 2048  # number of rows of features in memory at a time
IDS_LEAST = 1000  # number of pairs of pictures below which P-IDS and U-IDS are refused


def frechet_distance(a: ArrayLike, b: ArrayLike) -> float:
    """Returns FID (Heusel et al., NeurIPS 2017): |mean a - mean b|^2 + trace(A + B - 2 (A
    B)^(1/2)), with sample covariances A and B.

    The trace of the root is the sum of the singular values of X Y^T / sqrt((n - 1) (m - 1)), with
    centred features X and Y. This equals pytorch-fid's number from a matrix root, but has no
    imaginary parts and is defined for any number of pictures. (If its root is not finite,
    pytorch-fid adds 1e-6 to both diagonals and gets a slightly different number.) Rounding can make
    the distance of equal sets negative (about -1e-13 of the traces); a negative result is returned
    as 0.

    Args:
        a: (n, d) features, n at least 2.
        b: (m, d) features, m at least 2.

    Raises:
        InputError: shapes are wrong, there are too few pictures, or values are not finite.
    """
    a, b = _features(a, b, least=2, score="FID")
    mean_a, mean_b = (sum(part.sum(0) for part in _parts(x)) / len(x) for x in (a, b))
    root_a, root_b = _covariance_root(a, mean_a), _covariance_root(b, mean_b)
    traces = np.square(root_a).sum() + np.square(root_b).sum()
    root_of_product = scipy.linalg.svdvals(root_a @ root_b.T).sum()
    return max(0.0, float(np.square(mean_a - mean_b).sum() + traces - 2 * root_of_product))


def _covariance_root(x: NDArray, mean: NDArray) -> NDArray:
    """Returns R (min(n, d), d) with R^T R the sample covariance of x (n, d). For many pictures it
    takes one eigendecomposition.
    """
    centred = ((part - mean) / math.sqrt(len(x) - 1) for part in _parts(x))
    if len(x) <= x.shape[1]:
        return np.concatenate(list(centred))
    values, vectors = np.linalg.eigh(sum(part.T @ part for part in centred))
    return np.sqrt(values.clip(0))[:, None] * vectors.T


def kernel_distance(a: ArrayLike, b: ArrayLike, *, subsets: int = 100, size: int = 1000, seed: int = 2020) -> tuple[float, float]:
    """Returns KID (Binkowski et al., ICLR 2018): mean and standard deviation over subsets of the
    unbiased squared MMD, kernel (x y / d + 1)^3.

    Defaults, order of drawing and generator are torch-fidelity's, so both programs draw the same
    subsets. As it is unbiased, KID of two sets from one distribution scatters around 0 and can be
    negative.

    Args:
        a: (n, d) features.
        b: (m, d) features.
        subsets: number of subsets, drawn from each set separately, without repetition within one.
        size: pictures in a subset, at most as many as the smaller set has.
        seed: the generator's seed.

    Raises:
        InputError: shapes are wrong, there are fewer than 2 pictures, or values are not finite.
    """
    a, b = _features(a, b, least=2, score="KID")
    size = min(size, len(a), len(b))
    subsets = 1 if size == len(a) == len(b) else subsets  # all subsets would be the same
    random = np.random.RandomState(seed)
    drawn = ((random.choice(len(a), size, replace=False), random.choice(len(b), size, replace=False)) for _ in range(subsets))
    distances = [_squared_mmd(a[rows_a].astype(np.float64), b[rows_b].astype(np.float64)) for rows_a, rows_b in drawn]
    return float(np.mean(distances)), float(np.std(distances))


def _squared_mmd(x: NDArray, y: NDArray) -> float:
    """Estimates the squared MMD of two sets (m, d) without bias (Gretton et al., JMLR 2012): a
    picture is not compared with itself.
    """
    m, dimensions = x.shape

    def kernel(x: NDArray, y: NDArray) -> NDArray:
        base = x @ y.T / dimensions + 1
        return base * base * base

    within = sum(k.sum() - k.trace() for k in (kernel(x, x), kernel(y, y)))
    return float(within / (m * (m - 1)) - 2 * kernel(x, y).mean())


def ids(real: ArrayLike, fake: ArrayLike) -> tuple[float, float]:
    """Returns P-IDS and U-IDS (Zhao et al., ICLR 2021) in [0, 1], higher is better: how often a
    linear SVM mistakes a completed picture for a photo.

    As in the authors' program, scikit-learn's LinearSVC (dual=False, otherwise its defaults) is
    fitted to all features and classifies the same ones. U-IDS is the share of pictures that it
    classifies wrongly. P-IDS is the share of pairs whose completed picture lies further on the real
    side than the photo. Few pictures are separable by chance (both are 0), hence the minimum
    number. A fit that does not converge causes scikit-learn's ConvergenceWarning.

    Args:
        real: (n, d) features of the photos.
        fake: (n, d) features of the completed ones; row i belongs to photo i.

    Raises:
        InputError: there are fewer than IDS_LEAST pairs, shapes are wrong, values are not finite,
            or scikit-learn is not installed.
    """
    real, fake = _features(real, fake, least=IDS_LEAST, score="P-IDS and U-IDS")
    if len(real) != len(fake):
        raise InputError(f"P-IDS and U-IDS compare pairs, and there are {len(real)} real pictures and {len(fake)} results; give one each")
    try:
        from sklearn.svm import LinearSVC
    except ImportError as error:
        raise InputError("P-IDS and U-IDS need scikit-learn; install it with `pip install -e '.[metrics]'`") from error
    targets = np.repeat([1, 0], len(real))
    real, fake = real.astype(np.float64), fake.astype(np.float64)
    svm = LinearSVC(dual=False).fit(np.concatenate([real, fake]), targets)
    scores = svm.decision_function(real), svm.decision_function(fake)
    p_ids = np.mean(scores[1] > scores[0])
    u_ids = np.mean((np.concatenate(scores) > 0) != targets)
    return float(p_ids), float(u_ids)


def _features(a: ArrayLike, b: ArrayLike, *, least: int, score: str) -> tuple[NDArray, NDArray]:
    """Returns both as arrays. Raises InputError unless they are features of one network, of at
    least `least` pictures each.
    """
    a, b = np.asarray(a), np.asarray(b)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise InputError(f"{score}: features of shapes {a.shape} and {b.shape} must be (n, d) and (m, d)")
    if min(len(a), len(b)) < least:
        raise InputError(f"{score} needs at least {least} pictures on either side, and there are {len(a)} and {len(b)}; evaluate more")
    if not all(np.isfinite(part).all() for x in (a, b) for part in _parts(x)):
        raise InputError(f"{score}: some features are not finite; check the network's weights and the pictures")
    return a, b


def _parts(x: NDArray) -> Iterator[NDArray]:
    """Yields the rows in float64, ROWS at a time."""
    return (x[start : start + ROWS].astype(np.float64) for start in range(0, len(x), ROWS))
