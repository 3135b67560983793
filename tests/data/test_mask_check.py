"""Masks are read once before long work: broken ones are named together, whole sets remembered,
inverted ones asked about.
"""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spn_jax.config import Config, DataConfig
from spn_jax.data import mask_check
from spn_jax.data.mask_check import check_masks
from spn_jax.data.masks import MaskSource, open_masks
from spn_jax.errors import InputError
from spn_jax.training.inputs import DistillationTargets, checked_masks, open_data
from spn_jax.training.loop import train
from spn_jax.training.resume import check_same_run, checkpoint_info
from tests import tiny

SETTING = "data.train_masks"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def save_masks(folder: Path, count: int = 5, share: float = 0.25) -> Path:
    """Masks of 16 x 16 pixels with a hole of this share."""
    folder.mkdir()
    hole = np.zeros(256, np.uint8)
    hole[: int(256 * share)] = 255
    for i in range(count):
        Image.fromarray(hole.reshape(16, 16)).save(folder / f"{i}.png")
    return folder


def opened(path: Path) -> MaskSource:
    return open_masks(str(path), 16, False, 0, SETTING)


def test_the_mean_share_of_the_hole_is_measured(tmp_path: Path) -> None:
    folder = save_masks(tmp_path / "masks")
    check = check_masks(opened(folder), 2)
    assert check is not None and (check.masks, check.mean_share) == (5, 0.25)
    assert check.question(DataConfig()) is None
    with zipfile.ZipFile(tmp_path / "masks.zip", "w") as archive:
        for file in folder.iterdir():
            archive.write(file, file.name)
    assert check_masks(opened(tmp_path / "masks.zip"), 2) == check
    assert check_masks(open_masks("strokes", 16, False, 0, SETTING), 2) is None


def test_all_broken_masks_are_named_in_one_sentence(tmp_path: Path) -> None:
    folder = save_masks(tmp_path / "masks", 7)
    for i in (1, 2, 4, 5, 6):
        Image.new("L", (16, 16)).save(folder / f"{i}.png")
    with pytest.raises(InputError, match=r"mask .*/1\.png has no hole.* \(4 more masks cannot be used: 2\.png, 4\.png, 5\.png, \.\.\.\)"):
        check_masks(opened(folder), 2)
    (check,) = [check_masks(opened(folder), 2, indices=[0, 3, 3])]
    assert check is not None and check.masks == 2


def test_a_checked_set_is_not_read_again_until_a_file_changes(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_masks(tmp_path / "masks")
    first = check_masks(opened(folder), 2)
    again = opened(folder)
    monkeypatch.setattr(again, "load", lambda i: pytest.fail("a remembered set was read again"))
    assert check_masks(again, 2) == first
    Image.new("L", (16, 16), 255).save(folder / "3.png")
    changed = check_masks(opened(folder), 2)
    assert changed is not None and changed.mean_share == pytest.approx((4 * 0.25 + 1) / 5)
    for file in (cache / "spn_jax" / "masks").iterdir():
        file.write_text("{damaged")
    assert check_masks(opened(folder), 2) == changed


def test_reading_many_masks_is_announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    masks = opened(save_masks(tmp_path / "masks"))
    check_masks(masks, 2, [0, 1])
    assert not capsys.readouterr().out
    monkeypatch.setattr(mask_check, "MANY", 5)
    for _ in range(2):
        check_masks(masks, 2)
    printed = capsys.readouterr().out
    assert printed.startswith("checking 5 masks, which is done once for these files\n5/5 masks, ") and printed.count("\n") == 2


def test_few_sets_are_remembered_and_none_where_nothing_can_be_written(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mask_check, "REMEMBERED", 2)
    masks = opened(save_masks(tmp_path / "masks"))
    for i in range(4):
        check_masks(masks, 1, [i])
    assert len(list((cache / "spn_jax" / "masks").iterdir())) == 2
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "masks" / "0.png"))
    assert check_masks(masks, 1) is not None


@pytest.mark.parametrize(("invert", "colour", "remedy"), [(False, "black", "true"), (True, "white", "false")])
def test_large_holes_are_asked_about(tmp_path: Path, invert: bool, colour: str, remedy: str) -> None:
    folder = save_masks(tmp_path / "masks", share=0.25 if invert else 0.75)
    check = check_masks(open_masks(str(folder), 16, invert, 0, SETTING), 2)
    assert check is not None
    question = check.question(DataConfig(invert_masks=invert))
    assert question is not None and question.startswith("the hole is 75% of the photo on average")
    assert f"are the holes {colour} in the mask files? If they are, set data.invert_masks={remedy}" in question


def test_training_checks_its_masks_before_anything_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, masks = tmp_path / "photos", save_masks(tmp_path / "masks", share=0.75)
    photos.mkdir()
    for i in range(8):
        Image.fromarray(np.full((32, 32, 3), i, np.uint8)).save(photos / f"{i}.png")
    folders = [f"data.train_photos={photos}", f"data.test_photos={photos}", f"data.train_masks={masks}", "loss.prior=0"]
    config = tiny.tiny(*folders)
    data = open_data(config, "")
    assert list(checked_masks(config, data)) == [
        "data.train_masks: 5 masks checked, 75% of the photo is hole on average",
        "data.train_masks: the hole is 75% of the photo on average, which is unusually large: "
        "are the holes black in the mask files? If they are, set data.invert_masks=true",
    ]
    broken = save_masks(tmp_path / "broken")
    (broken / "4.png").write_bytes(b"not an image")
    with pytest.raises(InputError, match=r"data\.test_masks: mask .*/4\.png cannot be read as an image"):
        train(tiny.tiny(*folders, f"data.test_masks={broken}"), tmp_path / "run")
    assert "data.train_masks: the hole is 75% of the photo on average" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_replaced_files_are_another_data_set(tmp_path: Path) -> None:
    photos, masks = tmp_path / "photos", save_masks(tmp_path / "masks")
    photos.mkdir()
    for i in range(8):
        Image.fromarray(np.full((32, 32, 3), i, np.uint8)).save(photos / f"{i}.png")
    config = tiny.tiny(f"data.train_photos={photos}", f"data.test_photos={photos}", f"data.train_masks={masks}", "loss.prior=0")

    def info() -> dict:
        data = open_data(config, "")
        return checkpoint_info(config, data, DistillationTargets({}, None, None, ""), None)

    before = info()
    check_same_run(before, info(), config, tmp_path)
    # the same name
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).save(photos / "3.png")
    with pytest.raises(InputError, match=r"holds a run with other settings \(training photo files: \w+ -> \w+\)"):
        check_same_run(before, info(), config, tmp_path)
    photos_changed = info()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16), np.uint8)).save(masks / "3.png")
    with pytest.raises(InputError, match=r"\(training mask files: \w+ -> \w+\)"):
        check_same_run(photos_changed, info(), config, tmp_path)
    # Checkpoints of earlier versions know the names alone.
    old = photos_changed | {"data": {kind: photos_changed["data"][kind] for kind in ("photos", "masks")}}
    check_same_run(old, info(), config, tmp_path)
    (photos / "7.png").rename(photos / "9.png")
    with pytest.raises(InputError, match=r"\(training photos: 8 \(\w+\) -> 8 \(\w+\)\)"):
        check_same_run(old, info(), config, tmp_path)
    (photos / "9.png").rename(photos / "7.png")
    (masks / "4.png").unlink()
    with pytest.raises(InputError, match=r"\(training masks: 5 \(\w+\) -> 4 \(\w+\)\)"):
        check_same_run(old, info(), config, tmp_path)


def test_config_without_folders_has_the_rule_of_the_photos() -> None:
    assert Config().data.mask_fit == "as_photos"
