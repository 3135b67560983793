import json
from pathlib import Path

import numpy as np
import pytest

from spn_jax import partial
from spn_jax.errors import InputError
from spn_jax.partial import Partial

IDENTITY = {"pair list": "a", "choice of settings": {"eval.seed": 0}}


def rows(start: int, count: int) -> dict[str, dict[str, np.ndarray]]:
    numbers = np.arange(start, start + count)
    features = numbers[:, None] + np.arange(3) / 10
    return {"spn": {"psnr": numbers / 3, "ssim": -numbers, "inception": features}, "_truth": {"inception": 2 * features}}


def test_rows_come_back_after_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial, "COMMIT_SECONDS", 0.0)
    with Partial(tmp_path / "partial", IDENTITY) as first:
        assert first.done == 0
        first.add(rows(0, 4))
    with Partial(tmp_path / "partial", IDENTITY) as second:
        assert (second.done, second.restarted) == (4, "")
        second.add(rows(4, 3))
        assert second.done == 7
        scores = second.scores("spn")
        np.testing.assert_array_equal(scores["psnr"], np.arange(7) / 3)  # float64 stays exact
        np.testing.assert_array_equal(scores["ssim"], -np.arange(7))
        truth = second.rows("_truth", "inception")
        assert isinstance(truth, np.memmap) and truth.shape == (7, 3)
        np.testing.assert_allclose(truth, 2 * rows(0, 7)["spn"]["inception"])
        second.remove()
    assert not (tmp_path / "partial").exists()


def test_a_batch_that_was_not_committed_is_scored_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial, "COMMIT_SECONDS", 1000.0)
    with Partial(tmp_path, IDENTITY) as first:
        first.add(rows(0, 2))
        first.commit()
        first.add(rows(2, 2))
    with Partial(tmp_path, IDENTITY) as second:
        assert second.done == 2
        second.add(rows(2, 1))
        np.testing.assert_array_equal(second.scores("spn")["psnr"], np.arange(3) / 3)


def test_another_identity_starts_anew_and_says_what_differs(tmp_path: Path) -> None:
    with Partial(tmp_path, IDENTITY) as first:
        first.add(rows(0, 2))
        first.commit()
    with Partial(tmp_path, IDENTITY | {"pair list": "b"}) as second:
        assert (second.done, second.restarted) == (0, "another pair list")
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["cut", "gone", "json", "list"])
def test_damaged_files_start_anew(tmp_path: Path, damage: str) -> None:
    with Partial(tmp_path, IDENTITY) as first:
        first.add(rows(0, 2))
        first.commit()
    progress = tmp_path / "progress.json"
    match damage:
        case "cut":
            (tmp_path / "spn.scores").write_bytes(b"12345678")
        case "gone":
            (tmp_path / "_truth.inception").unlink()
        case "json":
            progress.write_text(progress.read_text()[:-20])
        case "list":
            progress.write_text(json.dumps([1]))
    with Partial(tmp_path, IDENTITY) as second:
        assert second.done == 0 and second.restarted


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    with Partial(tmp_path / "partial", IDENTITY), pytest.raises(InputError, match="another evaluation is writing to"):
        Partial(tmp_path / "partial", IDENTITY)


def test_columns_cannot_change_on_the_way(tmp_path: Path) -> None:
    with Partial(tmp_path, IDENTITY) as some:
        some.add({"spn": {"psnr": np.zeros(2)}})
        with pytest.raises(ValueError, match="columns"):
            some.add({"spn": {"ssim": np.zeros(2)}})
        with pytest.raises(ValueError, match="different lengths"):
            some.add({"spn": {"psnr": np.zeros(2)}, "mean": {"psnr": np.zeros(3)}})
