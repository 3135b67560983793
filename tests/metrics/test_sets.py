"""Distances of sets: FID is pytorch-fid's, KID its definition written out, P-IDS and U-IDS what
scikit-learn's SVM says.
"""

import sys

import numpy as np
import pytest
from sklearn.svm import LinearSVC

from spn_jax.errors import InputError
from spn_jax.metrics.sets import IDS_LEAST, frechet_distance, ids, kernel_distance
from teacher_export import frameworks  # noqa: F401  torchvision, which pytorch-fid imports, beside a CPU build of torch

from pytorch_fid.fid_score import calculate_frechet_distance  # isort: skip


def features(seed: int, n: int, d: int = 32, scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    """Correlated, not negative and float32, as Inception's are."""
    mixing = np.random.default_rng(0).standard_normal((d, d)) / d**0.5
    drawn = np.random.default_rng(seed).standard_normal((n, d)) @ mixing
    return np.maximum(scale * drawn + shift, 0).astype(np.float32)


# --- FID ---


# pytorch-fid's call of SciPy
@pytest.mark.filterwarnings("ignore:The `disp` argument is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Matrix is:scipy.linalg.LinAlgWarning")
@pytest.mark.parametrize(("n", "m"), [(300, 200), (33, 500), (20, 20), (10, 200), (2, 3)])
def test_frechet_distance_is_pytorch_fids_with_more_and_with_fewer_pictures_than_features(n: int, m: int) -> None:
    """Of two and three pictures to 1e-3: there pytorch-fid adds 1e-6 to the variances on some
    processors, which moves its value by 2e-4.
    """
    a, b = features(1, n), features(2, m, scale=1.2, shift=0.1)
    moments = [(x.mean(0), np.cov(x, rowvar=False)) for x in (a.astype(np.float64), b.astype(np.float64))]
    expected = calculate_frechet_distance(*moments[0], *moments[1])
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-3 if n == 2 else 1e-5)


def test_frechet_distance_of_one_feature_is_the_textbooks() -> None:
    a, b = np.random.default_rng(0).standard_normal((2, 50, 1)) * [[[1]], [[3]]] + [[[0]], [[2]]]
    expected = (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("n", [2, 20, 300])
def test_equal_sets_have_no_distance_whatever_their_order(n: int) -> None:
    a = features(1, n)
    a[:, :5] = 0  # features that no picture has
    assert 0 <= frechet_distance(a, a) < 1e-10
    assert 0 <= frechet_distance(a, a[::-1]) < 1e-10


def test_frechet_distance_has_no_direction() -> None:
    a, b = features(1, 20), features(2, 100)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)


# --- KID ---


def squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased estimate, term by term."""

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return (float(a.astype(np.float64) @ b) / len(a) + 1) ** 3

    m = len(x)
    within = sum(kernel(z[i], z[j]) for z in (x, y) for i in range(m) for j in range(m) if i != j)
    between = sum(kernel(a, b) for a in x for b in y)
    return within / (m * (m - 1)) - 2 * between / m**2


def test_kernel_distance_is_its_definition() -> None:
    a, b = features(1, 12), features(2, 12, scale=1.2)
    mean, deviation = kernel_distance(a, b)
    assert mean == pytest.approx(squared_mmd(a, b), rel=1e-10)
    assert deviation == 0, "there is one subset of all pictures"


def test_kernel_distance_is_the_mean_over_the_subsets_that_torch_fidelity_draws() -> None:
    a, b = features(1, 30), features(2, 20, shift=0.2)
    random = np.random.RandomState(2020)  # its default seed, and its order of drawing
    subsets = [(a[random.choice(30, 10, replace=False)], b[random.choice(20, 10, replace=False)]) for _ in range(5)]
    expected = [squared_mmd(*subset) for subset in subsets]
    mean, deviation = kernel_distance(a, b, subsets=5, size=10)
    assert (mean, deviation) == (pytest.approx(np.mean(expected), rel=1e-10), pytest.approx(np.std(expected), rel=1e-10))
    assert kernel_distance(a, b, subsets=5, size=10, seed=1)[0] != mean


def test_kernel_distance_of_one_distribution_scatters_around_zero() -> None:
    values = [kernel_distance(features(2 * i, 100), features(2 * i + 1, 100))[0] for i in range(20)]
    assert min(values) < 0 < max(values)
    assert abs(np.mean(values)) < np.std(values)
    assert kernel_distance(features(0, 100), features(1, 100, shift=0.5))[0] > 10 * np.std(values)


# --- P-IDS and U-IDS ---


@pytest.mark.parametrize("noise", [0.02, 0.3])
def test_ids_are_what_a_linear_svm_says(noise: float) -> None:
    real = features(1, IDS_LEAST)
    fake = np.maximum(real + noise * features(2, IDS_LEAST), 0)
    svm = LinearSVC(dual=False).fit(np.concatenate([real, fake]).astype(np.float64), [1] * len(real) + [0] * len(fake))
    p_ids = np.mean(svm.decision_function(fake) > svm.decision_function(real))
    u_ids = 1 - svm.score(np.concatenate([real, fake]), [1] * len(real) + [0] * len(fake))
    assert ids(real, fake) == (pytest.approx(p_ids, abs=1e-12), pytest.approx(u_ids, abs=1e-12))
    assert 0 < u_ids < 0.6


def test_results_that_are_the_photos_are_no_better_than_guessing_and_separable_ones_are_caught() -> None:
    real = features(1, IDS_LEAST)
    p_ids, u_ids = ids(real, real)
    assert (p_ids, u_ids) == (0, 0.5), "a result that equals its photo is not further on the real side"
    assert ids(real, real + 10) == (0, 0)


def test_ids_of_few_pictures_or_without_pairs_are_refused() -> None:
    with pytest.raises(InputError, match="P-IDS and U-IDS needs at least 1000 pictures on either side, and there are 999 and 999"):
        ids(features(1, 999), features(2, 999))
    with pytest.raises(InputError, match="there are 1000 real pictures and 1001 results; give one each"):
        ids(features(1, 1000), features(2, 1001))


def test_without_scikit_learn_ids_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.svm", None)
    with pytest.raises(InputError, match=r"pip install -e '\.\[metrics\]'"):
        ids(features(1, 1000), features(2, 1000))


# --- all ---


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance, ids])
def test_what_are_no_features_is_refused(distance) -> None:
    good = features(1, 1000)
    bad = good.copy()
    bad[3, 4] = np.nan
    for a, b, text in (
        (good, bad, "some features are not finite"),
        (good, good[:, :5], r"shapes \(1000, 32\) and \(1000, 5\)"),
        (good, good[0], r"shapes \(1000, 32\) and \(32,\)"),
        (good, good[:1], "there are 1000 and 1"),
        (good[:0], good, "there are 0 and 1000"),
    ):
        with pytest.raises(InputError, match=text):
            distance(a, b)


def test_features_are_taken_part_by_part_from_files(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = features(1, 100), features(2, 70)
    whole = frechet_distance(a, b), kernel_distance(a, b, size=20)
    monkeypatch.setattr("spn_jax.metrics.sets.ROWS", 7)
    files = []
    for name, of in {"a": a, "b": b}.items():
        of.tofile(tmp_path / name)
        files.append(np.memmap(tmp_path / name, np.float32, "r", shape=of.shape))
    assert frechet_distance(*files) == pytest.approx(whole[0], rel=1e-9)
    assert kernel_distance(*files, size=20) == whole[1]
