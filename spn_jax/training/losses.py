"""Defines SPN's losses: functions of arrays that return float32 scalars (float64 for such arrays).

The shapes have b photos and s completions of each: predictions are (b, s, h, w, c), photos and
masks (b, h, w, c). Means run over all elements, so a mean over (b, s) is the released programs'
mean over their tiled batch. Mask weights are applied inside the mean. Where paper and released
program differ, `form` chooses; docs/paper_and_program.md has the table.
"""

import itertools
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

LOG_FLOOR = -100.0  # the released binary cross entropy clamps each logarithm here
# weights of VGG19's levels in the released perceptual loss, finest first
LEVEL_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)
DIVERSITY_EPSILON = 1e-5  # of Eq. 14

Adversarial = Literal["non_saturating", "saturating", "hinge"]
Form = Literal["released", "paper"]
KLDirection = Literal["paper", "released"]


def wide(x: Array) -> Array:
    """Returns x in float32, or in float64 if it has that: losses are never computed in bfloat16."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def masked_l1(difference: Array, mask: Array, mask_weight: float) -> Array:
    """Returns mean(|difference| (1 + mask_weight mask)); difference (b, s, h, w, c), mask (b, h, w,
    1).
    """
    return jnp.mean(jnp.abs(difference) * (1 + mask_weight * wide(mask)[:, None]))


def reconstruction_loss(prediction: Array, image: Array, mask: Array, mask_weight: float) -> Array:
    """Returns Eq. 10: l1 between prediction (b, s, h, w, 3) and image (b, h, w, 3), weighted by 1 +
    delta inside the hole (delta = `mask_weight`).
    """
    return masked_l1(wide(prediction) - wide(image)[:, None], mask, mask_weight)


def prior_loss(distilled: Array, target: Array, mask: Array, mask_weight: float) -> Array:
    """Returns Eq. 4 at one scale: l1 between the head's map and the teacher's, weighted by 1 +
    alpha inside the hole (alpha = `mask_weight`).

    Args:
        distilled: (b, s, h, w, c), prediction of a distillation head.
        target: (b, h', w', c), teacher's features; h is a multiple of h', and the features are
            enlarged by nearest neighbour.
        mask: (b, H, W, 1), H a multiple of h, reduced by nearest neighbour.
        mask_weight: alpha, 3 in the paper.
    """
    height = distilled.shape[2]
    factor = height // target.shape[1]
    target = jnp.repeat(jnp.repeat(wide(target), factor, axis=1), factor, axis=2)
    return masked_l1(wide(distilled) - target[:, None], mask_at(mask, height), mask_weight)


def log_sigmoid(logits: Array) -> Array:
    """Returns log(sigmoid(logits)), clamped at -100."""
    return jnp.maximum(jax.nn.log_sigmoid(wide(logits)), LOG_FLOOR)


def discriminator_terms(real_logits: Array, fake_logits: Array, form: Adversarial) -> tuple[Array, Array]:
    """Returns the discriminator's terms for real and for completed images; its loss is their mean.

    They are the binary cross entropy of Eq. 11, or for "hinge" mean(relu(1 - real)) and mean(relu(1
    + fake)).

    Args:
        real_logits: (b, h, w, 1), photos' scores before any sigmoid.
        fake_logits: (b s, h, w, 1), predictions' scores.
        form: the same as for the generator's term.
    """
    if form == "hinge":
        return jnp.mean(jax.nn.relu(1 - wide(real_logits))), jnp.mean(jax.nn.relu(1 + wide(fake_logits)))
    return jnp.mean(-log_sigmoid(real_logits)), jnp.mean(-log_sigmoid(-fake_logits))


def adversarial_loss(fake_logits: Array, form: Adversarial) -> Array:
    """Returns the generator's adversarial term for scores (b s, h, w, 1) before any sigmoid.

    non_saturating is -E log D(fake), as released for the deterministic model. saturating is E log(1
    - D(fake)), the paper's Eq. 11 with its sign error corrected. hinge is -E fake, as released for
    the probabilistic model.
    """
    if form == "hinge":
        return -jnp.mean(wide(fake_logits))
    if form == "non_saturating":
        return jnp.mean(-log_sigmoid(fake_logits))
    return jnp.mean(log_sigmoid(-fake_logits))


def kl_loss(mu: Array, sigma: Array, direction: KLDirection) -> Array:
    """Returns the divergence of Eq. 6 between the posterior N(mu, sigma^2) and the prior N(0, 1),
    averaged over all elements of any shape.

    "paper" is KL(posterior, prior) = (mu^2 + sigma^2 - 1) / 2 - log sigma. "released" is KL(prior,
    posterior) = log sigma + (1 + mu^2) / (2 sigma^2) - 1/2, which grows without bound where sigma
    is small.
    """
    mu, sigma = wide(mu), wide(sigma)
    if direction == "paper":
        return jnp.mean((jnp.square(mu) + jnp.square(sigma) - 1) / 2 - jnp.log(sigma))
    return jnp.mean(jnp.log(sigma) + (1 + jnp.square(mu)) / (2 * jnp.square(sigma)) - 0.5)


def feature_distances(fake: Sequence[Array], real: Sequence[Array]) -> Array:
    """Returns (levels,): the mean l1 at each level between features of predictions (b, s, h, w, c)
    and of photos (b, h, w, c).
    """
    return jnp.stack([jnp.mean(jnp.abs(wide(f) - wide(r)[:, None])) for f, r in zip(fake, real, strict=True)])


def feature_matching_loss(fake: Sequence[Array], real: Sequence[Array]) -> Array:
    """Returns the first term of Eq. 13: the mean of `feature_distances` over the discriminator's
    layers.
    """
    return jnp.mean(feature_distances(fake, real))


def perceptual_loss(fake: Sequence[Array], real: Sequence[Array], form: Form) -> Array:
    """Returns the second term of Eq. 13 over VGG19's five levels: their sum weighted by 1/32, 1/16,
    1/8, 1/4, 1 (released), or their mean (paper).
    """
    distances = feature_distances(fake, real)
    # A sum of products is used, because accelerators compute dot products at lower precision.
    return jnp.mean(distances) if form == "paper" else jnp.sum(jnp.asarray(LEVEL_WEIGHTS, distances.dtype) * distances)


def sample_distances(features: Sequence[Array], mask: Array) -> Array:
    """Returns (levels,): l1 inside the hole between the features (b, s, h, w, c) of a photo's
    completions, averaged over all pairs.

    The mask (b, H, W, 1) is reduced by nearest neighbour. The mean runs over all pixels, and those
    outside the hole count as 0.
    """

    def at_level(level: Array) -> Array:
        masked = wide(level) * mask_at(mask, level.shape[2])[:, None]
        pairs = itertools.combinations(range(level.shape[1]), 2)
        return jnp.mean(jnp.stack([jnp.mean(jnp.abs(masked[:, i] - masked[:, j])) for i, j in pairs]))

    return jnp.stack([at_level(level) for level in features])


def hole_shares(features: Sequence[Array], mask: Array) -> Array:
    """Returns (levels,): the fraction of the mask (b, H, W, 1) that is hole, after reduction to
    each level's size (b, s, h, w, c).
    """
    return jnp.stack([jnp.mean(mask_at(mask, level.shape[2])) for level in features])


def diversity_loss(distances: Array, shares: Array, form: Form) -> Array:
    """Returns the loss of Eq. 14, which is small where completions of the same photo differ.

    "released" is 1 / (S + 1e-5), where S is the sum over the levels of distance / share. "paper" is
    the mean over the levels of 1 / (distance + 1e-5). A level where no hole is left is excluded. If
    all are, the loss is 0.

    Args:
        distances: (levels,) from `sample_distances`.
        shares: (levels,) from `hole_shares`.
    """
    there = shares > 0
    if form == "released":
        total = jnp.sum(jnp.where(there, distances / jnp.where(there, shares, 1), 0))
        return jnp.where(there.any(), 1 / (total + DIVERSITY_EPSILON), 0)
    inverse = jnp.where(there, 1 / (distances + DIVERSITY_EPSILON), 0)
    return jnp.sum(inverse) / jnp.maximum(jnp.sum(there), 1)


def mask_at(mask: Array, height: int) -> Array:
    """Returns the mask (b, H, W, 1) at a feature map's height, reduced by nearest neighbour, as
    float.
    """
    step = mask.shape[1] // height
    return wide(mask[:, ::step, ::step])
