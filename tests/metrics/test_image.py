import itertools

import jax
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import distance_transform_cdt
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from spn_jax.metrics import image as metrics

# One compilation a function and shape instead of one an operation.
psnr, ssim, mae = jax.jit(metrics.psnr), jax.jit(metrics.ssim), jax.jit(metrics.mae)
ssim_gaussian, mae_rgb = jax.jit(metrics.ssim_gaussian), jax.jit(metrics.mae_rgb)
# of scikit-image: SSIM of Wang et al.
WANG = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}


def noisy(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.integers(0, 256, shape, dtype=np.uint8)


def smooth(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Bright and almost flat: where a variance computed from rounded sums has no digits left."""
    return (250 + rng.integers(0, 2, shape)).astype(np.uint8)


@pytest.mark.parametrize("kind", [noisy, smooth])
@pytest.mark.parametrize("change", [2, 60])
def test_psnr_and_ssim_are_scikit_images(kind, change: int) -> None:
    rng = np.random.default_rng(0)
    a = kind(rng, (64, 48, 3))
    b = np.clip(a.astype(int) + rng.integers(-change, change + 1, a.shape), 0, 255).astype(np.uint8)
    assert psnr(a, b) == pytest.approx(peak_signal_noise_ratio(a, b, data_range=255), abs=1e-5)
    expected = structural_similarity(a, b, win_size=11, data_range=255, channel_axis=-1)
    assert ssim(a, b) == pytest.approx(expected, abs=1e-6)
    assert ssim_gaussian(a, b) == pytest.approx(structural_similarity(a, b, data_range=255, channel_axis=-1, **WANG), abs=1e-6)


@pytest.mark.parametrize("name", ["astronaut", "coffee"])
def test_scores_of_photos_are_scikit_images(name: str) -> None:
    photo = getattr(data, name)()[100:228, 200:328]
    blurred = np.asarray(Image.fromarray(photo).resize((16, 16)).resize((128, 128)))
    holed = photo.copy()
    holed[20:70, 30:100] = photo[20:70, 30:100].mean((0, 1))
    for other in (blurred, holed):
        assert psnr(photo, other) == pytest.approx(peak_signal_noise_ratio(photo, other), abs=1e-5)
        uniform = structural_similarity(photo, other, win_size=11, channel_axis=-1)
        assert ssim(photo, other) == pytest.approx(uniform, abs=1e-6)
        gaussian = structural_similarity(photo, other, channel_axis=-1, **WANG)
        assert ssim_gaussian(photo, other) == pytest.approx(gaussian, abs=1e-6)
        assert abs(gaussian - uniform) > 1e-3  # they are not the same score
        assert mae_rgb(photo, other) == pytest.approx(np.abs(photo / 255 - other / 255).mean(), rel=1e-6)


def test_large_pictures_keep_their_digits() -> None:
    a, b = np.zeros((512, 512, 3), np.uint8), np.full((512, 512, 3), 255, np.uint8)
    b[0, 0] = 254
    assert psnr(a, b) == pytest.approx(peak_signal_noise_ratio(a, b, data_range=255), abs=1e-6)


def test_identical_pictures() -> None:
    a = noisy(np.random.default_rng(1), (32, 32, 3))
    assert psnr(a, a) == np.inf
    assert ssim(a, a) == 1
    assert ssim_gaussian(a, a) == 1
    assert mae(a, a) == mae_rgb(a, a) == 0


def test_mae_compares_grey_values() -> None:
    a = np.zeros((16, 16, 3), np.uint8)
    b = a.copy()
    b[..., 0] = 30  # grey value 10
    assert mae(a, b) == pytest.approx(10 / 255)
    b[..., 1], a[..., 2] = 20, 50  # 30 + 20 - 50: the same grey value
    assert mae(a, b) == 0
    assert mae_rgb(a, b) == pytest.approx(100 / 3 / 255)


def test_mae_rgb_is_never_below_that_of_grey_values() -> None:
    rng = np.random.default_rng(5)
    a, b = noisy(rng, (8, 16, 16, 3)), noisy(rng, (8, 16, 16, 3))
    assert (np.asarray(mae_rgb(a, b)) > np.asarray(mae(a, b))).all()
    grey = np.repeat(a[..., :1], 3, axis=-1), np.repeat(b[..., :1], 3, axis=-1)
    np.testing.assert_allclose(mae_rgb(*grey), mae(*grey), rtol=1e-6)


def test_hole_mae_does_not_depend_on_the_holes_size() -> None:
    truth = np.full((16, 16, 3), 100, np.uint8)
    for width in (1, 8):
        mask = np.zeros((16, 16, 1), np.uint8)
        mask[:, :width] = 1
        result = np.where(mask > 0, np.uint8(151), truth)
        assert metrics.hole_mae(result, truth, mask) == pytest.approx(0.2)
    assert metrics.hole_mae(truth, truth, np.zeros((16, 16, 1))) == 0


@pytest.mark.parametrize("samples", [2, 5])
def test_diversity_is_the_mean_difference_of_all_pairs_in_the_hole(samples: int) -> None:
    rng = np.random.default_rng(4)
    completions, mask = noisy(rng, (2, samples, 16, 12, 3)), rng.integers(0, 2, (2, 16, 12, 1), dtype=np.uint8)
    for photo, hole, value in zip(completions, mask, metrics.diversity(completions, mask), strict=True):
        pairs = [np.abs(a.astype(int) - b)[hole[..., 0] > 0].mean() for a, b in itertools.combinations(photo, 2)]
        assert value == pytest.approx(np.mean(pairs) / 255, rel=1e-6)


def test_border_scores_are_of_three_pixels_on_either_side() -> None:
    rng = np.random.default_rng(6)
    mask = np.zeros((5, 24, 20, 1), np.uint8)
    # inside, at the picture's edge, a corner pixel
    mask[0, 6:18, 4:15] = mask[1, :, :9] = mask[2, 0, 0] = 1
    mask[3] = rng.random((24, 20, 1)) < 0.05
    mask[4, :, 7] = 1
    a, b = noisy(rng, (5, 24, 20, 3)), noisy(rng, (5, 24, 20, 3))
    for i, hole in enumerate(mask[..., 0] > 0):
        inside, outside = (distance_transform_cdt(np.pad(part, 9, "edge"), "chessboard")[9:-9, 9:-9] for part in (hole, ~hole))
        ring = (inside + outside) <= 3
        np.testing.assert_array_equal(metrics.border_ring(mask[i])[..., 0], ring)
        difference = a[i][ring].astype(float) - b[i][ring]
        assert metrics.border_mae(a, b, mask)[i] == pytest.approx(np.abs(difference).mean() / 255, rel=1e-6)
        assert metrics.border_psnr(a, b, mask)[i] == pytest.approx(10 * np.log10(255**2 / np.square(difference).mean()), rel=1e-6)


def test_without_a_border_there_is_no_error_at_it() -> None:
    a, b = np.zeros((16, 16, 3), np.uint8), np.full((16, 16, 3), 9, np.uint8)
    for mask in np.zeros((16, 16, 1), np.uint8), np.ones((16, 16, 1), np.uint8):
        assert metrics.border_mae(a, b, mask) == 0 and np.isposinf(metrics.border_psnr(a, b, mask))


def test_diversity_looks_into_the_hole_alone() -> None:
    completions, mask = np.zeros((3, 16, 16, 3), np.uint8), np.zeros((16, 16, 1), np.uint8)
    completions[1] = 255
    assert metrics.diversity(completions, mask) == 0  # no hole
    mask[:4] = 1
    completions[1, :4] = completions[2, :4] = 51
    assert metrics.diversity(completions, mask) == pytest.approx(0.2 * 2 / 3)
    assert metrics.diversity(completions, np.ones_like(mask)) > 0.5
    with pytest.raises(ValueError, match="only one"):
        metrics.diversity(completions[:1], mask)


def test_leading_axes_are_kept() -> None:
    rng = np.random.default_rng(2)
    a, b = noisy(rng, (2, 3, 16, 16, 3)), noisy(rng, (2, 3, 16, 16, 3))
    for score in (psnr, ssim, ssim_gaussian, mae, mae_rgb):
        one_by_one = [[score(a[i, j], b[i, j]) for j in range(3)] for i in range(2)]
        np.testing.assert_allclose(score(a, b), one_by_one, rtol=1e-6)


def test_hole_area() -> None:
    mask = np.zeros((2, 10, 10, 1), np.uint8)
    mask[1, :3] = 1
    np.testing.assert_array_equal(metrics.hole_area(mask), [0, 30])


def test_ssim_refuses_a_picture_smaller_than_its_window() -> None:
    with pytest.raises(ValueError, match="at least 11 x 11 pixels, not 10 x 32"):
        metrics.ssim(np.zeros((10, 32, 3)), np.zeros((10, 32, 3)))
    with pytest.raises(ValueError, match="at least 11 x 11 pixels, not 32 x 10"):
        metrics.ssim_gaussian(np.zeros((32, 10, 3)), np.zeros((32, 10, 3)))
