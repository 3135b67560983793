"""Losses of the deterministic SPN: arrays in, float32 scalars out (float64 where the arrays are).

Shapes: b photos, s completions of each; predictions are (b, s, h, w, c), photos and masks (b, h, w, c). Means run over all
elements, so a mean over (b, s) is the released programs' mean over their tiled batch. Mask weights stand inside the mean.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

LOG_FLOOR = -100.0  # the released binary cross entropy clamps each logarithm here


def wide(x: Array) -> Array:
    """x in float32, or float64 where it has that: losses are never computed in bfloat16."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def masked_l1(difference: Array, mask: Array, mask_weight: float) -> Array:
    """mean(|difference| (1 + mask_weight mask)); difference (b, s, h, w, c), mask (b, h, w, 1)."""
    return jnp.mean(jnp.abs(difference) * (1 + mask_weight * wide(mask)[:, None]))


def reconstruction_loss(prediction: Array, image: Array, mask: Array, mask_weight: float) -> Array:
    """Eq. 10: l1 between prediction (b, s, h, w, 3) and image (b, h, w, 3), delta = `mask_weight` more inside the hole."""
    return masked_l1(wide(prediction) - wide(image)[:, None], mask, mask_weight)


def prior_loss(distilled: Array, target: Array, mask: Array, mask_weight: float) -> Array:
    """Eq. 4 at one scale: l1 between the head's map and the teacher's, alpha = `mask_weight` more inside the hole.

    Args:
        distilled: (b, s, h, w, c), prediction of a distillation head.
        target: (b, h', w', c), teacher's features; h a multiple of h', enlarged by nearest neighbour.
        mask: (b, H, W, 1), H a multiple of h, reduced by nearest neighbour.
        mask_weight: alpha, 3 in the paper.
    """
    height = distilled.shape[2]
    factor, step = height // target.shape[1], mask.shape[1] // height
    target = jnp.repeat(jnp.repeat(wide(target), factor, axis=1), factor, axis=2)
    return masked_l1(wide(distilled) - target[:, None], mask[:, ::step, ::step], mask_weight)


def log_sigmoid(logits: Array) -> Array:
    """log(sigmoid(logits)), clamped at -100."""
    return jnp.maximum(jax.nn.log_sigmoid(wide(logits)), LOG_FLOOR)


def discriminator_loss(real_logits: Array, fake_logits: Array) -> tuple[Array, Array]:
    """Binary cross entropy of Eq. 11 for the discriminator: the terms of real and of completed images; the loss is their mean.

    Args:
        real_logits: (b, h, w, 1), scores before the sigmoid of photos.
        fake_logits: (b s, h, w, 1), of predictions.
    """
    return jnp.mean(-log_sigmoid(real_logits)), jnp.mean(-log_sigmoid(-fake_logits))


def adversarial_loss(fake_logits: Array, form: Literal["non_saturating", "saturating"]) -> Array:
    """Generator's term of Eq. 11 for scores (b s, h, w, 1) before the sigmoid.

    non_saturating, as released: -E log D(fake). saturating, the paper's with its sign slip mended: E log(1 - D(fake)).
    """
    if form == "non_saturating":
        return jnp.mean(-log_sigmoid(fake_logits))
    return jnp.mean(log_sigmoid(-fake_logits))
