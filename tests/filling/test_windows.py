"""Which windows fill a hole, what they show, and how they are put together."""

import cv2
import numpy as np
import pytest

from spn_jax.filling.windows import (
    LARGEST,
    STRATEGIES,
    Canvas,
    Window,
    choose_strategy,
    enlarged,
    most_tiles,
    plan,
    show,
    with_feathered_seam,
)

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


def assemble(image: np.ndarray, mask: np.ndarray, windows: list[Window], predictions: list[np.ndarray]) -> np.ndarray:
    """The completion of a photo, uint8 (h, w, 3)."""
    canvas = Canvas(mask)
    for window, prediction in zip(windows, predictions, strict=True):
        canvas.add(window, enlarged(prediction, image, mask, window))
    completion = image.copy()
    completion[mask[..., 0] > 0] = np.rint(canvas.colours())
    return completion


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("strategy", ["original", "resize", "crop"])
def test_the_windows_fill_the_hole_and_nothing_else(name: str, strategy) -> None:
    mask, weight = MASKS[name], np.zeros(SIZE, np.float32)
    for window in plan(mask, strategy, TRAINED):
        weight[window.box_in_photo] += window.weights
        assert all(a.start >= 0 and a.stop <= b for a, b in zip(window.box_in_window, (window.height, window.width), strict=True))
        assert max(window.shown_size) <= LARGEST * TRAINED or strategy == "original"
    # where windows overlap their weights are 1 together
    np.testing.assert_allclose(weight, mask[..., 0], atol=1e-5)


@pytest.mark.parametrize("name", [name for name in MASKS if name != "all"])
def test_crops_have_surroundings(name: str) -> None:
    for window in plan(MASKS[name], "crop", TRAINED):
        rows, columns = window.box_in_window
        margins = (
            (rows.start, window.top),
            (window.height - rows.stop, SIZE[0] - window.top - window.height),
            (columns.start, window.left),
            (window.width - columns.stop, SIZE[1] - window.left - window.width),
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
    # the first row of the hole continues the known pixels
    np.testing.assert_allclose(met[16, 32], 100, atol=0.01)
    assert 100 < met[17, 32, 0] < 140
    np.testing.assert_allclose(with_feathered_seam(prediction, image, np.ones_like(mask)), 140)


@pytest.mark.parametrize("side", [20, 64, 256, 512])
def test_no_step_is_left_at_the_border_of_a_hole(side: int) -> None:
    image, mask = np.full((side, side, 3), 100, np.uint8), np.zeros((side, side, 1), np.uint8)
    quarter = side // 4
    mask[quarter:-quarter, quarter:-quarter] = 1
    met = with_feathered_seam(np.full((side, side, 3), 140, np.float32), image, mask)
    first = np.concatenate([met[quarter, quarter:-quarter], met[quarter:-quarter, quarter], met[-quarter - 1, quarter:-quarter]])
    np.testing.assert_allclose(first, 100, atol=0.01)
    into_the_hole = met[quarter : quarter + max(1, side // 32) + 1, side // 2, 0]
    # and it fades evenly, without a step of its own
    assert (np.diff(into_the_hole) > 0).all() and into_the_hole[-1] == 140
    np.testing.assert_allclose(np.diff(into_the_hole), 40 / (len(into_the_hole) - 1), atol=0.01)


@pytest.mark.parametrize("size", [(3, 1_000_000), (1_000_000, 3), (1, 1000), (1, 1)])
@pytest.mark.parametrize("strategy", ["resize", "crop"])
def test_the_longest_and_thinnest_photos_are_put_together(size: tuple[int, int], strategy) -> None:
    image, mask = np.full((*size, 3), 100, np.uint8), np.zeros((*size, 1), np.uint8)
    mask[: size[0] // 2 + 1, : size[1] // 2 + 1] = 1
    windows = plan(mask, strategy, 256)
    assert len(windows) <= 2 * most_tiles(size, 256)
    predictions = [np.full((*window.shown_size, 3), 100, np.uint8) for window in windows]
    np.testing.assert_array_equal(assemble(image, mask, windows, predictions), image)


# --- masks of many parts ---


def dust(height: int, width: int, step: int) -> np.ndarray:
    mask = np.zeros((height, width, 1), np.uint8)
    mask[step // 2 :: step, step // 2 :: step] = 1
    return mask


def scattered(height: int, width: int, count: int, length: int) -> np.ndarray:
    """Scratches, or specks where the length is 0."""
    random, mask = np.random.default_rng(count), np.zeros((height, width), np.uint8)
    for _ in range(count):
        x, y = int(random.integers(width)), int(random.integers(height))
        cv2.line(mask, (x, y), (x + int(random.integers(-length, length + 1)), y + int(random.integers(-length, length + 1))), 1, 2)
    return mask[..., None]


def bars(height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width, 1), np.uint8)
    for top in range(0, height, 14):
        mask[top : top + 9] = 1
    return mask


def parallel(height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width, 1), np.uint8)
    mask[::10] = 1
    return mask


MANY = {
    "parallel scratches": parallel(600, 800),
    "dust": dust(600, 800, 4),
    "sparser dust": dust(600, 800, 9),
    "specks": scattered(600, 800, 3000, 0),
    "short scratches": scattered(600, 800, 300, 40),
    "long scratches": scattered(600, 800, 60, 800),
    "bars": bars(600, 800),
    "noise": (np.random.default_rng(0).random((600, 800, 1)) < 0.01).astype(np.uint8),
}


@pytest.mark.parametrize("name", MANY)
def test_there_are_few_more_windows_than_cover_the_photo(name: str) -> None:
    mask = MANY[name]
    windows, most = plan(mask, "crop", TRAINED), most_tiles(mask.shape, TRAINED)
    assert most == 14 * 19  # 600 x 800 pixels, each window 48 of them less 4 that overlap
    assert len(windows) <= 1.5 * most
    weight = np.zeros(mask.shape[:2], np.float32)
    for window in windows:
        weight[window.box_in_photo] += window.weights
    np.testing.assert_allclose(weight, mask[..., 0], atol=1e-5)
    # four bytes a pixel and what overlaps
    assert sum(window.weights.nbytes for window in windows) <= 8 * mask.size


def test_dust_on_a_photo_of_twelve_megapixels_takes_as_many_windows_as_would_cover_it() -> None:
    mask = dust(3000, 4000, 34)
    assert len(plan(mask, "crop", 256)) <= 108 == most_tiles(mask.shape, 256)


def test_a_few_specks_keep_windows_of_the_trained_size() -> None:
    mask = np.zeros((*SIZE, 1), np.uint8)
    mask[60, 60] = mask[60, 90] = 1
    assert [window.shown_size for window in plan(mask, "crop", TRAINED)] == [(TRAINED, TRAINED)] * 2
    mask[90, 60] = 1
    (together,) = plan(mask, "crop", TRAINED)
    assert together.shown_size == (LARGEST * TRAINED, LARGEST * TRAINED)


def test_two_windows_fade_into_each_other() -> None:
    mask = MASKS["thin"]
    windows = plan(mask, "crop", TRAINED)
    overlapping = [window for window in windows if 0 < window.weights[window.weights > 0].min() < 1]
    assert len(overlapping) > 2


def test_the_usual_strategy_follows_the_size() -> None:
    assert choose_strategy("auto", (64, 64), TRAINED) == "resize"
    assert choose_strategy("auto", (64, 65), TRAINED) == "crop"
    for strategy in STRATEGIES[1:]:
        assert choose_strategy(strategy, (1000, 1000), TRAINED) == strategy
    with pytest.raises(ValueError, match="strategy 'none' is none of auto, original, resize, crop"):
        choose_strategy("none", (1, 1), TRAINED)  # type: ignore[arg-type]


def test_a_long_photo_keeps_a_side() -> None:
    assert Window(0, 0, 1, 100_000, 64, np.zeros((1, 100_000), np.float32)).shown_size == (1, 64)
