"""Completions in 8 bits: rounding, and known pixels."""

import jax.numpy as jnp
import numpy as np

from spn_jax.filling.completion import composite, quantise


def test_quantise() -> None:
    values = jnp.array([-0.1, 0.0, 0.999 / 255, 99.6 / 255, 1.0, 1.2, jnp.nan])
    np.testing.assert_array_equal(quantise(values, "truncate"), [0, 0, 0, 99, 255, 255, np.nan])
    np.testing.assert_array_equal(quantise(values, "round"), [0, 0, 1, 100, 255, 255, np.nan])


def test_every_8_bit_value_survives_quantise() -> None:
    values = np.arange(256, dtype=np.float32)
    for how in ("truncate", "round"):
        np.testing.assert_array_equal(quantise(values / 255, how), values)


def test_composite_keeps_known_pixels_bit_for_bit() -> None:
    rng = np.random.default_rng(3)
    image, prediction = rng.random((2, 8, 8, 3), np.float32), rng.random((2, 8, 8, 3), np.float32)
    mask = rng.integers(0, 2, (2, 8, 8, 1))
    result = np.asarray(composite(prediction, image, mask))
    known = np.broadcast_to(mask == 0, image.shape)
    np.testing.assert_array_equal(result[known], image[known])
    np.testing.assert_array_equal(result[~known], prediction[~known])
