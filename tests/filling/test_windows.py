"""Which windows fill a hole, what they show, and how they are put together."""

import numpy as np
import pytest

from spn_jax.filling.windows import LARGEST, STRATEGIES, Window, assemble, choose_strategy, plan, show, with_feathered_seam

TRAINED = 32
SIZE = (150, 220)


def masks() -> dict[str, np.ndarray]:
    found = {
        name: np.zeros((*SIZE, 1), np.uint8) for name in ("small", "two", "thin", "large", "border", "corner", "all", "noise", "one pixel")
    }
    found["small"][40:50, 60:75] = 1
    found["two"][10:20, 10:20] = found["two"][120:140, 190:215] = 1
    found["thin"][70:74] = found["thin"][:, 100:103] = 1
    found["large"][20:130, 30:200] = 1
    found["border"][:9] = found["border"][:, -9:] = 1
    found["corner"][-5:, :6] = 1
    found["all"][:] = 1
    found["noise"][np.random.default_rng(0).random(SIZE) < 0.01] = 1
    found["one pixel"][149, 0] = 1
    return found


MASKS = masks()


def photo(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), np.uint8)


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("strategy", ["original", "resize", "crop"])
def test_the_windows_fill_the_hole_and_nothing_else(name: str, strategy) -> None:
    mask, weight = MASKS[name], np.zeros(SIZE, np.float32)
    for window in plan(mask, strategy, TRAINED):
        weight[window.place] += window.part
        assert max(window.shown_size) <= LARGEST * TRAINED or strategy == "original"
    np.testing.assert_allclose(weight, mask[..., 0], atol=1e-5)  # where windows overlap their weights are 1 together


@pytest.mark.parametrize("name", [name for name in MASKS if name != "all"])
def test_crops_have_surroundings(name: str) -> None:
    for window in plan(MASKS[name], "crop", TRAINED):
        rows, columns = (np.flatnonzero(window.part.any(axis)) for axis in (1, 0))
        margins = (
            (rows[0], window.top),
            (window.height - 1 - rows[-1], SIZE[0] - window.top - window.height),
            (columns[0], window.left),
            (window.width - 1 - columns[-1], SIZE[1] - window.left - window.width),
        )
        for margin, beyond in margins:
            assert margin >= TRAINED // 8 or beyond == 0


def test_small_holes_are_shown_as_they_are_and_large_ones_smaller() -> None:
    (small,), (large,) = plan(MASKS["small"], "crop", TRAINED), plan(MASKS["large"], "crop", TRAINED)
    assert small.shown_size == (small.height, small.width) == (TRAINED, TRAINED)
    assert max(large.shown_size) == LARGEST * TRAINED < max(large.height, large.width)
    assert all(window.shown_size == (window.height, window.width) for window in plan(MASKS["thin"], "crop", TRAINED))


def test_parts_that_are_near_each_other_share_a_window() -> None:
    mask = np.zeros((*SIZE, 1), np.uint8)
    mask[40:44, 40:44] = mask[40:44, 46:50] = 1
    assert len(plan(mask, "crop", TRAINED)) == 1
    assert len(plan(MASKS["two"], "crop", TRAINED)) == 2


@pytest.mark.parametrize("strategy", ["original", "resize", "crop"])
def test_what_is_under_the_mask_is_not_shown(strategy) -> None:
    mask = MASKS["large"]
    other = np.where(mask, photo(1), photo())
    for window in plan(mask, strategy, TRAINED):
        a, b = show(photo(), mask, window), show(other, mask, window)
        np.testing.assert_array_equal(a.mask, b.mask)
        np.testing.assert_array_equal(np.where(a.mask, 0, a.image), np.where(b.mask, 0, b.image))
        assert (a.mask == 0).any()


def test_a_thin_hole_does_not_vanish_where_the_photo_is_shown_smaller() -> None:
    (window,) = plan(MASKS["one pixel"], "resize", TRAINED)
    assert show(photo(), MASKS["one pixel"], window).mask.sum() >= 1


@pytest.mark.parametrize("strategy", ["original", "resize", "crop"])
@pytest.mark.parametrize("name", ["two", "thin", "large", "border", "noise"])
def test_known_pixels_are_the_photos_own_and_the_hole_is_predicted(name: str, strategy) -> None:
    mask, grey = MASKS[name], np.full((*SIZE, 3), 100, np.uint8)
    windows = plan(mask, strategy, TRAINED)
    completion = assemble(grey, mask, windows, [np.full((*window.shown_size, 3), 100, np.uint8) for window in windows])
    np.testing.assert_array_equal(completion, grey)
    predictions = [np.random.default_rng(1).integers(0, 256, (*window.shown_size, 3), np.uint8) for window in windows]
    completion = assemble(photo(), mask, windows, predictions)
    known = mask[..., 0] == 0
    np.testing.assert_array_equal(completion[known], photo()[known])
    assert (completion != photo()).any(-1)[~known].mean() > 0.9


def test_a_seam_meets_the_known_pixels_and_leaves_the_middle_alone() -> None:
    image, mask = np.full((64, 64, 3), 100, np.uint8), np.zeros((64, 64, 1), np.uint8)
    mask[16:48, 16:48] = 1
    prediction = np.full((64, 64, 3), 140, np.float32)
    met = with_feathered_seam(prediction, image, mask)
    np.testing.assert_allclose(met[20:44, 20:44], 140)
    assert abs(met[16, 32, 0] - 100) < 25 < abs(met[18, 32, 0] - 100)
    np.testing.assert_allclose(with_feathered_seam(prediction, image, np.ones_like(mask)), 140)


def test_two_windows_fade_into_each_other() -> None:
    mask = MASKS["thin"]
    windows = plan(mask, "crop", TRAINED)
    overlapping = [window for window in windows if 0 < window.part[window.part > 0].min() < 1]
    assert len(overlapping) > 2


def test_the_usual_strategy_follows_the_size() -> None:
    assert choose_strategy("auto", (64, 64), TRAINED) == "original"
    assert choose_strategy("auto", (64, 65), TRAINED) == "crop"
    for strategy in STRATEGIES[1:]:
        assert choose_strategy(strategy, (1000, 1000), TRAINED) == strategy
    with pytest.raises(ValueError, match="strategy 'none' is none of auto, original, resize, crop"):
        choose_strategy("none", (1, 1), TRAINED)  # type: ignore[arg-type]


def test_a_long_photo_keeps_a_side() -> None:
    assert Window(0, 0, 1, 100_000, 64, np.zeros((1, 100_000), np.float32)).shown_size == (1, 64)
