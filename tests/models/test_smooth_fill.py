"""The fill that networks may start from, against its definition written out pixel by pixel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spn_jax.config import ModelConfig
from spn_jax.models.smooth_fill import GREY, HALVINGS, ROUNDS, smooth_fill
from spn_jax.models.spn import SPN
from tests.tiny import CHANNELS, tiny

fill = jax.jit(smooth_fill)


def example(height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    image, mask = random.random((2, height, width, 3), np.float32), np.zeros((2, height, width, 1), np.float32)
    mask[0, height // 4 : -height // 4, : width // 2] = 1
    mask[1] = random.random((height, width, 1)) < 0.6
    return image, mask


def by_definition(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """One photo (h, w, c), by loops over pixels."""
    levels = [(image.astype(float), mask[..., 0] == 0)]
    for _ in range(HALVINGS):
        image, known = levels[-1]
        height, width = (known.shape[0] + 1) // 2, (known.shape[1] + 1) // 2
        smaller, there = np.zeros((height, width, image.shape[-1])), np.zeros((height, width), bool)
        for y, x in np.ndindex(height, width):
            part = np.s_[2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
            if known[part].any():
                smaller[y, x], there[y, x] = image[part][known[part]].mean(0), True
        levels.append((smaller, there))
    image, known = levels[-1]
    mean = image[known].mean(0) if known.any() else np.full(image.shape[-1], GREY)
    filled = np.where(known[..., None], image, mean)
    for image, known in reversed(levels[:-1]):
        filled = np.array([[filled[y // 2, x // 2] for x in range(known.shape[1])] for y in range(known.shape[0])])
        filled[known] = image[known]
        for _ in range(ROUNDS):
            padded = np.pad(filled, ((1, 1), (1, 1), (0, 0)), mode="edge")
            for y, x in zip(*np.nonzero(~known), strict=True):
                filled[y, x] = padded[y : y + 3, x : x + 3].mean((0, 1))
    return filled


@pytest.mark.parametrize("size", [(16, 16), (20, 36), (13, 70)])
def test_it_is_what_its_definition_says(size: tuple[int, int]) -> None:
    image, mask = example(*size)
    wanted = np.stack([by_definition(*one) for one in zip(image, mask, strict=True)])
    np.testing.assert_allclose(fill(image, mask), wanted, atol=1e-5)


def test_known_pixels_stay_and_the_hole_is_not_looked_at() -> None:
    image, mask = example(32, 32)
    filled = np.asarray(fill(image, mask))
    known = np.broadcast_to(mask == 0, image.shape)
    np.testing.assert_array_equal(filled[known], image[known])
    np.testing.assert_array_equal(fill(np.where(mask > 0, np.nan, image), mask), filled)


def test_colours_stay_within_those_around_and_an_even_photo_stays_even() -> None:
    image, mask = example(64, 64)
    filled, known = np.asarray(fill(image, mask)), np.where(mask > 0, np.nan, image)
    assert (filled >= np.nanmin(known, (1, 2), keepdims=True) - 1e-6).all()
    assert (filled <= np.nanmax(known, (1, 2), keepdims=True) + 1e-6).all()
    np.testing.assert_allclose(fill(np.full_like(image, 0.3), mask), 0.3, atol=1e-6)
    assert (np.asarray(fill(image, np.ones_like(mask))) == GREY).all()


def test_a_ramp_is_continued_better_than_by_its_mean_colour() -> None:
    ramp = np.broadcast_to(np.linspace(0, 1, 64, dtype=np.float32)[None, None, :, None], (1, 64, 64, 3))
    mask = np.zeros((1, 64, 64, 1), np.float32)
    mask[:, 20:44, 20:44] = 1
    filled = np.asarray(fill(ramp, mask))
    inside = np.broadcast_to(mask > 0, ramp.shape)
    assert np.abs(filled - ramp)[inside].mean() < 0.02 < np.abs(ramp - ramp[~inside].mean())[inside].mean()


@pytest.mark.parametrize("more", [(), ("model.variational=true", "model.latent_channels=4")])
def test_a_new_model_predicts_about_the_filled_photo(more: tuple[str, ...]) -> None:
    config: ModelConfig = tiny("model.hole_fill=smooth", *more).model
    model = SPN(config, CHANNELS, rng=np.random.default_rng(0))
    image, mask = example(32, 32)
    key = {"key": jax.random.key(0), "samples": 2} if model.variational else {}
    predicted = jax.jit(lambda model, image, mask: model(image, mask, **key).image)(model, image, mask)
    assert predicted.shape == (2, 2 if model.variational else 1, 32, 32, 3)
    added = np.asarray(predicted - fill(image, mask)[:, None])
    hole = np.broadcast_to(mask[:, None] > 0, added.shape)
    np.testing.assert_array_equal(added[~hole], 0)
    assert 1e-4 < np.abs(added[hole]).mean() < 0.1


def test_the_network_adds_to_it_in_holes_in_either_direction_and_stays_in_range() -> None:
    model = SPN(tiny("model.hole_fill=smooth").model, CHANNELS, rng=np.random.default_rng(0))
    image, mask = example(32, 32)
    predict = jax.jit(lambda model, image, mask: model(image, mask).image[:, 0])
    for bias, end in ((9.0, 1.0), (-9.0, 0.0)):
        model.generator.output.bias[...] = jnp.full(3, bias)  # type: ignore[index]
        predicted = predict(model, image, mask)
        np.testing.assert_array_equal(predicted, np.where(mask > 0, np.float32(end), image))
