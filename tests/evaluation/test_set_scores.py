import warnings

import numpy as np
import pytest

from spn_jax.errors import InputError
from spn_jax.evaluation.set_scores import score_sets
from spn_jax.metrics import sets as distances

COUNT = 1200
BINS = np.array(["20-40%"] * 1100 + ["40-60%"] * 99 + ["60-100%"])


@pytest.fixture
def features(monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    # of itself it takes seconds
    monkeypatch.setattr(distances, "kernel_distance", lambda a, b: (float(len(a)), 0.5))
    random = np.random.default_rng(0)
    truth = random.standard_normal((COUNT, 4))
    completed = truth + 0.1 * random.standard_normal((COUNT, 4))
    return {"inception": truth, "inception_clean": 2 * truth}, {"inception": completed, "inception_clean": 2 * completed}


def test_every_bin_has_the_scores_that_its_number_of_images_allows(features: tuple[dict[str, np.ndarray], dict[str, np.ndarray]]) -> None:
    of_sets, missing, notes = score_sets(*features, {"bin": BINS}, "deterministic")
    assert of_sets.keys() == {"20-40%", "40-60%", "60-100%", "All"}
    truth, completed = (of["inception"][:1100] for of in features)
    assert of_sets["20-40%"]["fid"] == pytest.approx(distances.frechet_distance(truth, completed))
    assert of_sets["20-40%"]["fid_clean"] == pytest.approx(4 * of_sets["20-40%"]["fid"])
    assert (of_sets["20-40%"]["p_ids"], of_sets["20-40%"]["u_ids"]) == pytest.approx(distances.ids(truth, completed))
    assert of_sets["40-60%"].keys() == {"fid", "fid_clean", "kid", "kid_std"} and of_sets["40-60%"]["kid"] == 99
    assert of_sets["60-100%"] == {}
    assert missing == dict.fromkeys(("fid", "fid_clean", "kid"), "under 2 images") | dict.fromkeys(("p_ids", "u_ids"), "under 1,000 images")
    assert notes == []


def test_without_scikit_learn_the_rest_goes_on(
    features: tuple[dict[str, np.ndarray], dict[str, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def ids(real: np.ndarray, fake: np.ndarray) -> tuple[float, float]:
        raise InputError("P-IDS and U-IDS need scikit-learn")

    monkeypatch.setattr(distances, "ids", ids)
    of_sets, missing, notes = score_sets(*features, {"bin": BINS}, "deterministic")
    assert "fid" in of_sets["All"] and "p_ids" not in of_sets["All"]
    assert missing["p_ids"] == "not computed" and notes == ["P-IDS and U-IDS need scikit-learn"]


def test_a_fit_that_does_not_converge_is_noted(
    features: tuple[dict[str, np.ndarray], dict[str, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def ids(real: np.ndarray, fake: np.ndarray) -> tuple[float, float]:
        warnings.warn("Liblinear failed to converge, increase the number of iterations.", stacklevel=1)
        return 0.1, 0.2

    monkeypatch.setattr(distances, "ids", ids)
    of_sets, _, notes = score_sets(*features, {"bin": BINS}, "deterministic")
    assert of_sets["All"]["p_ids"] == 0.1
    assert notes == [f"P-IDS and U-IDS of {bin}: the linear SVM did not converge" for bin in ("20-40%", "All")]
