import numpy as np
import pytest

from spn_jax.errors import InputError
from spn_jax.evaluation.baselines import BASELINES, find_baseline


@pytest.fixture
def ramp() -> np.ndarray:
    """A photo whose three channels rise from left to right."""
    values = np.linspace(20, 230, 32).astype(np.uint8)
    return np.stack([np.tile(values // d, (32, 1)) for d in (1, 2, 3)], axis=-1)


@pytest.fixture
def mask() -> np.ndarray:
    mask = np.zeros((32, 32, 1), np.uint8)
    mask[8:24, 20:28] = 1
    # at the border OpenCV's methods would look at what is in the hole
    mask[:3, :10] = mask[28:, 15:] = 1
    return mask


@pytest.mark.parametrize("name", BASELINES)
def test_known_pixels_come_back_and_holes_say_nothing(name: str, ramp: np.ndarray, mask: np.ndarray) -> None:
    spoilt = np.where(mask > 0, 255 - ramp, ramp)
    result = find_baseline(name)(ramp, mask)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result[mask[..., 0] == 0], ramp[mask[..., 0] == 0])
    np.testing.assert_array_equal(find_baseline(name)(spoilt, mask), result)


def test_mean_is_taken_per_channel_over_known_pixels(mask: np.ndarray) -> None:
    image = np.zeros((32, 32, 3), np.uint8)
    image[..., 1] = 77
    image[:16, :, 2] = 200
    expected = np.rint(image[mask[..., 0] == 0].mean(axis=0))
    np.testing.assert_array_equal(find_baseline("mean")(image, mask)[mask[..., 0] == 1], np.tile(expected, (mask.sum(), 1)))


@pytest.mark.parametrize("name", ["opencv-telea", "opencv-ns"])
def test_opencvs_methods_continue_a_ramp_better_than_the_mean(name: str, ramp: np.ndarray, mask: np.ndarray) -> None:
    errors = {name: np.abs(method(ramp, mask).astype(int) - ramp).sum() for name, method in BASELINES.items()}
    assert errors[name] < errors["mean"] / 3


@pytest.mark.parametrize("name", BASELINES)
def test_photo_without_a_known_pixel(name: str, ramp: np.ndarray) -> None:
    assert find_baseline(name)(ramp, np.ones((32, 32, 1), np.uint8)).shape == ramp.shape


def test_an_unknown_method_names_the_known_ones() -> None:
    with pytest.raises(InputError, match="no method 'telea'; choose from mean, opencv-telea, opencv-ns"):
        find_baseline("telea")
