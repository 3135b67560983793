"""Notes about masks of another kind than training's: there where they differ, and only there."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spn_jax.config import Config, DataConfig
from spn_jax.data import mask_kinds
from spn_jax.data.masks import draw_strokes, open_test_masks

SIZE = 32


def rectangle(top: int, left: int, height: int, width: int) -> np.ndarray:
    hole = np.zeros((SIZE, SIZE), bool)
    hole[top : top + height, left : left + width] = True
    return hole


def folder(path: Path, holes: list[np.ndarray]) -> str:
    path.mkdir()
    for i, hole in enumerate(holes):
        Image.fromarray(255 * hole.astype(np.uint8)).save(path / f"{i}.png")
    return str(path)


def note(train_masks: str, test_masks: str) -> str | None:
    trained = Config(data=DataConfig(image_size=SIZE, train_masks=train_masks))
    tested = Config(data=DataConfig(image_size=SIZE, test_masks=test_masks))
    masks = open_test_masks(tested)
    return mask_kinds.mask_note("spn", trained, tested, masks, np.arange(len(masks)))


def strokes(tenths: list[int], seed: int) -> list[np.ndarray]:
    return [draw_strokes(2000 * tenth + i, SIZE, seed)[..., 0] > 0 for tenth in tenths for i in range(10)]


def test_rectangles_and_borders_are_told_from_strokes() -> None:
    assert mask_kinds.is_rectangle(rectangle(8, 8, 16, 16)) and not mask_kinds.touches_border(rectangle(8, 8, 16, 16))
    assert mask_kinds.touches_border(rectangle(8, 0, 16, 16)) and mask_kinds.touches_border(rectangle(30, 4, 2, 2))
    assert not any(mask_kinds.is_rectangle(hole) for hole in strokes([1, 3, 5], seed=0))
    assert not mask_kinds.is_rectangle(np.zeros((SIZE, SIZE), bool)) and not mask_kinds.touches_border(np.zeros((SIZE, SIZE), bool))


def test_rectangles_after_strokes_are_said(tmp_path: Path) -> None:
    centre = folder(tmp_path / "centre", [rectangle(8, 8, 16, 16)] * 3)
    said = note("strokes", centre)
    assert said is not None and said.startswith("the masks differ in kind from training's, rectangles in place of irregular holes")
    assert "fewer holes reach the border" in said and "larger" not in said
    assert "spn was trained on drawn strokes (holes of 5-5" in said and f"tested on {centre} (holes of 25-25 %, median 25 %, " in said
    back = note(centre, "strokes")
    assert back is not None and "irregular holes in place of rectangles" in back


def test_larger_and_smaller_holes_are_said(tmp_path: Path) -> None:
    small, large = (folder(tmp_path / name, strokes(tenths, 1)) for name, tenths in (("small", [1, 2]), ("large", [4, 5])))
    larger, smaller = note(small, large), note(large, small)
    assert larger is not None and "100 % of the holes are larger than nearly all in training: spn" in larger
    assert smaller is not None and "100 % of the holes are smaller than nearly all in training: spn" in smaller


def test_masks_of_one_kind_are_not_noted(tmp_path: Path) -> None:
    one, other = (folder(tmp_path / name, strokes(list(range(6)), seed)) for name, seed in (("one", 1), ("other", 2)))
    assert note(one, other) is None
    assert note("strokes", "strokes") is None
    said = note("strokes", one)  # another source, though it measures alike
    assert said is not None and said.startswith("the masks are of another source than training's, in size and place of the holes alike: ")


def test_training_masks_that_are_elsewhere_are_not_known() -> None:
    said = note("data/nowhere.zip", "strokes")
    assert (
        said is not None
        and "those of data/nowhere.zip, which cannot be read here; whether the test's are of their kind is not known" in said
    )


def test_only_some_masks_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = open_test_masks(Config(data=DataConfig(image_size=SIZE)))
    loaded: list[int] = []
    load = masks.load

    def noted(index: int) -> np.ndarray:
        loaded.append(index)
        return load(index)

    monkeypatch.setattr(masks, "load", noted)
    kind = mask_kinds.measure(masks, np.arange(12_000), "strokes")
    assert len(loaded) == mask_kinds.MEASURED and (loaded[0], loaded[-1]) == (0, 11_999)
    assert 0 < kind.shares.min() < 0.1 and 0.5 < kind.shares.max() <= 0.6


def test_size_of_the_photos_is_the_tests(tmp_path: Path) -> None:
    """A checkpoint of another resolution is compared all the same."""
    tested = Config(data=DataConfig(image_size=SIZE))
    trained = dataclasses.replace(tested, data=dataclasses.replace(tested.data, image_size=64))
    masks = open_test_masks(tested)
    assert mask_kinds.mask_note("spn", trained, tested, masks, np.arange(10)) is None
