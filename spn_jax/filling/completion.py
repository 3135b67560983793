"""Makes 8-bit completions and their noise, alike for evaluations and single photos."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from spn_jax.config import Config
from spn_jax.errors import InputError

SEEDS = 2**32
# the precision at which completions are made and scored
PRECISION = functools.partial(jax.default_matmul_precision, "highest")


def check_samples(samples: int, config: Config, name: str = "--samples") -> None:
    """Raises InputError unless a model of this config makes so many different completions of a
    photo; `name` is the option that asked for them.
    """
    if samples < 1:
        raise InputError(f"{name} {samples} must be at least 1")
    if samples > 1 and not config.model.variational:
        raise InputError(
            f"{name} {samples}: the checkpoint's model is deterministic and completes a photo in one way; "
            f"leave {name} out, or take a checkpoint of a probabilistic model"
        )


def composite(prediction: ArrayLike, image: ArrayLike, mask: ArrayLike) -> Array:
    """Returns the prediction in the hole and the image elsewhere, bit for bit.

    Args:
        prediction, image: (..., h, w, 3) in the same units.
        mask: (..., h, w, 1), 1 = hole.
    """
    return jnp.where(jnp.asarray(mask) > 0, prediction, image)


def quantise(values: ArrayLike, how: Literal["truncate", "round"]) -> Array:
    """Returns values in [0, 1] as whole numbers 0..255 in float32. `truncate` is the released
    program's floor(255 x). NaN stays NaN.
    """
    scaled = 255 * jnp.clip(jnp.asarray(values, jnp.float32), 0, 1)
    return jnp.floor(scaled) if how == "truncate" else jnp.round(scaled)


def complete(
    model: Callable[..., Any], image: Array, mask: Array, noise: Array | None, how: Literal["truncate", "round"]
) -> tuple[Array, Any]:
    """Completes photos at the precision that scores are reported for. Call it under jit.

    Args:
        model: maps image (b, h, w, 3) in [0, 1], mask (b, h, w, 1) and noise to an object with
            .image (b, s, h, w, 3).
        image: uint8 (b, h, w, 3).
        mask: uint8 (b, h, w, 1), 1 = hole.
        noise: the result of `draw_noise`.
        how: the rounding of predictions to 8 bits.

    Returns:
        8-bit composites uint8 (b, s, h, w, 3), and what the model returned.
    """
    with PRECISION():
        output = model(image.astype(jnp.float32) / 255, mask.astype(jnp.float32), noise)
    # Known pixels are the photo's own 8-bit values; quantising a float copy could only lose
    # precision.
    return composite(quantise(output.image, how).astype(jnp.uint8), image[:, None], mask[:, None]), output


def draw_noise(model: Any, seed: int | Array, numbers: Array, samples: Array, height: int, width: int) -> Array | None:
    """Draws the noise that makes completions differ; None for a deterministic model.

    The noise of a completion depends on the seed, the number of what is completed and its own
    number alone, not on the batch or the devices. More samples extend fewer.

    Args:
        model: has .variational and .noise_shape(height, width). Without the former it counts as
            deterministic.
        seed: in [0, 2^32).
        numbers: numbers of what is completed, (b,): photos of an evaluation, or windows of one
            photo.
        samples: numbers of the completions of each, (s,).

    Returns:
        Standard normal (b, s, h/32, w/32, z).
    """
    if not getattr(model, "variational", False):
        return None
    key, shape = jax.random.key(seed), model.noise_shape(height, width)

    def of_sample(number: Array, sample: Array) -> Array:
        return jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, number), sample), shape, jnp.float32)

    of_samples = jax.vmap(of_sample, in_axes=(None, 0))
    return jax.vmap(of_samples, in_axes=(0, None))(numbers, samples)
