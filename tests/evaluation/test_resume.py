import os
from pathlib import Path

import numpy as np
import pytest

from spn_jax.errors import InputError
from spn_jax.evaluation import resume as partial
from spn_jax.evaluation.resume import Partial, data_state
from spn_jax.runtime.files import TEMPORARY

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
        assert (second.done, second.restarted) == (0, "differs in pair list")
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "progress.json"]


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_damaged_files_start_anew(tmp_path: Path, damage: str) -> None:
    with Partial(tmp_path, IDENTITY) as first:
        first.add(rows(0, 2))
        first.commit()
    match damage:
        case "cut":
            (tmp_path / "spn.scores").write_bytes(b"12345678")
        case "gone":
            (tmp_path / "_truth.inception").unlink()
    with Partial(tmp_path, IDENTITY) as second:
        assert (second.done, second.restarted) == (0, "has damaged files")


@pytest.mark.parametrize("name", ["notes.txt", "progress.json", "below/photo.png", "spn.scores"])
@pytest.mark.parametrize("text", ["mine", "{}", "[1]", '{"identity": {}, "done": 0, "columns": {"../other": {"psnr": 1}}}'])
def test_a_folder_of_somebody_else_is_refused_and_kept(tmp_path: Path, name: str, text: str) -> None:
    folder, file = tmp_path / "partial", tmp_path / "partial" / name
    file.parent.mkdir(parents=True)
    file.write_text(text)
    (tmp_path / "other").write_text("mine")
    with pytest.raises(InputError, match=f"partial is where .* but has {name.split('/')[0]} and no readable progress.json"):
        Partial(folder, IDENTITY)
    assert [path for path in folder.rglob("*") if path.is_file()] == [file] and file.read_text() == text
    assert (tmp_path / "other").exists()


def test_files_that_were_added_to_our_folder_stay(tmp_path: Path) -> None:
    folder = tmp_path / "partial"
    with Partial(folder, IDENTITY) as first:
        (folder / "notes.txt").write_text("mine")
        first.add(rows(0, 2))
        first.commit()
    with Partial(folder, IDENTITY | {"pair list": "b"}) as second:
        second.add(rows(0, 2))
        second.remove()
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]

    with Partial(tmp_path / "other", IDENTITY) as third:
        (tmp_path / "other" / "spn.scores").write_text("mine")
        with pytest.raises(InputError, match="spn.scores is no file of this evaluation; move it away"):
            third.add(rows(0, 2))
    with Partial(tmp_path / "other", IDENTITY | {"pair list": "b"}):
        pass
    assert (tmp_path / "other" / "spn.scores").read_text() == "mine"


def test_an_end_before_the_first_commit_leaves_nothing_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial, "COMMIT_SECONDS", 1000.0)
    folder, written, replace = tmp_path / "partial", list[str](), os.replace

    def replace_and_note(old: Path, new: Path) -> None:
        written.append(old.name)
        replace(old, new)

    with monkeypatch.context() as patch, Partial(folder, IDENTITY) as first:
        patch.setattr(os, "replace", replace_and_note)
        first.add(rows(0, 2))
    # what a process leaves that is killed while it writes
    (folder / written[0]).write_text("{")
    for _ in range(2):
        with Partial(folder, IDENTITY) as again:
            assert (again.done, again.restarted) == (0, "")
            again.add(rows(0, 3))
            np.testing.assert_array_equal(again.scores("spn")["psnr"], np.arange(3) / 3)
    assert not (folder / written[0]).exists()


def test_what_a_killed_process_left_stands_in_no_evaluations_way(tmp_path: Path) -> None:
    folder = tmp_path / "partial"
    for number in range(2):  # the second one finds what was left by a process that had not begun
        folder.mkdir(exist_ok=True)
        (folder / f"{TEMPORARY}0123").write_text("{")
        with Partial(folder, IDENTITY) as some:
            some.add(rows(0, 2))
            (folder / f"{TEMPORARY}4567").write_text("{")
            some.remove()
        assert not folder.exists(), number


def test_the_state_of_data_follows_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "1.png").write_bytes(b"abc")
    (folder / "x.array_record").write_bytes(b"abc")
    listed, packed = tmp_path / "list.flist", tmp_path / "masks.zip"
    listed.write_text("photos/1.png\n")
    packed.write_bytes(b"abc")
    specs = [str(folder), str(listed), str(packed), f"{folder}/*.array_record*"]
    before = [data_state(spec) for spec in specs]
    assert [data_state(spec) for spec in specs] == before and len(set(before)) == 4
    for file, changed in {folder / "1.png": (0, 1), packed: (2,), folder / "x.array_record": (3,)}.items():
        os.utime(file, ns=(0, 10**18))  # the same size and another time
        after = [data_state(spec) for spec in specs]
        assert all(after[i] != before[i] for i in changed)


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
