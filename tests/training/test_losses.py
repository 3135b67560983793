"""Losses against their formulas, in NumPy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from spn_jax.models.spn import merge_samples, split_samples
from spn_jax.models.vgg import VGG19
from spn_jax.training.losses import (
    adversarial_loss,
    discriminator_terms,
    diversity_loss,
    feature_matching_loss,
    hole_shares,
    kl_loss,
    perceptual_loss,
    prior_loss,
    reconstruction_loss,
    sample_distances,
)
from tests.devices import on_the_cpu


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, np.float32)


def mask(*shape: int) -> np.ndarray:
    return (random(*shape, seed=9) < 0.4).astype(np.float32)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x.astype(np.float64)))


@pytest.mark.parametrize("delta", [2.0, 4.0])  # released, paper
def test_reconstruction_loss_weighs_the_hole_more(delta: float) -> None:
    prediction, image, hole = random(2, 1, 8, 8, 3), random(2, 8, 8, 3, seed=1), mask(2, 8, 8, 1)
    wanted = np.mean(np.abs(prediction[:, 0] - image) * (1 + delta * hole))
    assert float(reconstruction_loss(prediction, image, hole, delta)) == pytest.approx(wanted, rel=1e-5)


def test_two_completions_count_as_a_batch_twice_the_size() -> None:
    """The released probabilistic program tiles photos and masks; a sample axis must mean
    the same.
    """
    prediction, image, hole = random(2, 2, 8, 8, 3), random(2, 8, 8, 3, seed=1), mask(2, 8, 8, 1)
    tiled = np.concatenate([prediction[:, 0], prediction[:, 1]])
    twice = [np.concatenate([x, x]) for x in (image, hole)]
    wanted = np.mean(np.abs(tiled - twice[0]) * (1 + 2 * twice[1]))
    assert float(reconstruction_loss(prediction, image, hole, 2)) == pytest.approx(wanted, rel=1e-5)


def test_prior_loss_enlarges_the_target_and_reduces_the_mask_by_nearest_neighbour() -> None:
    distilled, target, hole = random(2, 1, 8, 8, 5), random(2, 4, 4, 5, seed=1), mask(2, 16, 16, 1)
    enlarged = target.repeat(2, axis=1).repeat(2, axis=2)
    wanted = np.mean(np.abs(distilled[:, 0] - enlarged) * (1 + 3 * hole[:, ::2, ::2]))
    assert float(prior_loss(distilled, target, hole, 3)) == pytest.approx(wanted, rel=1e-5)


def test_discriminator_loss_is_binary_cross_entropy() -> None:
    real, fake = random(2, 4, 4, 1) * 4 - 2, random(2, 4, 4, 1, seed=1) * 4 - 2
    on_real, on_fake = discriminator_terms(real, fake, "non_saturating")
    assert float(on_real) == pytest.approx(np.mean(-np.log(sigmoid(real))), rel=1e-5)
    assert float(on_fake) == pytest.approx(np.mean(-np.log(1 - sigmoid(fake))), rel=1e-5)


def test_adversarial_loss_has_the_released_and_the_papers_form() -> None:
    fake = random(2, 4, 4, 1) * 4 - 2
    assert float(adversarial_loss(fake, "non_saturating")) == pytest.approx(np.mean(-np.log(sigmoid(fake))), rel=1e-5)
    assert float(adversarial_loss(fake, "saturating")) == pytest.approx(np.mean(np.log(1 - sigmoid(fake))), rel=1e-5)


def test_hinge_losses() -> None:
    real, fake = random(2, 4, 4, 1) * 4 - 2, random(2, 4, 4, 1, seed=1) * 4 - 2
    on_real, on_fake = discriminator_terms(real, fake, "hinge")
    assert float(on_real) == pytest.approx(np.maximum(1 - real, 0).mean(), rel=1e-5)
    assert float(on_fake) == pytest.approx(np.maximum(1 + fake, 0).mean(), rel=1e-5)
    assert float(adversarial_loss(fake, "hinge")) == pytest.approx(-fake.mean(), rel=1e-5)


@pytest.mark.parametrize("form", ["non_saturating", "saturating", "hinge"])
def test_every_adversarial_form_make_fakes_better(form: str) -> None:
    gradient = jax.grad(lambda logits: adversarial_loss(logits, form))(jnp.zeros((1, 2, 2, 1)))
    assert (gradient < 0).all()  # a step downhill raises the discriminator's score of the fake


def test_logarithms_are_clamped_at_minus_100() -> None:
    hopeless = jnp.full((1, 1, 1, 1), -1e4)
    assert float(adversarial_loss(hopeless, "non_saturating")) == 100
    assert float(discriminator_terms(hopeless, -hopeless, "non_saturating")[1]) == 100


def test_losses_of_bfloat16_maps_are_computed_in_float32() -> None:
    distilled, target = (jnp.asarray(random(2, *shape, 5, seed=s), jnp.bfloat16) for s, shape in enumerate(((1, 64, 64), (64, 64))))
    loss = prior_loss(distilled, target, mask(2, 64, 64, 1), 3)
    exact = prior_loss(distilled.astype(jnp.float32), target.astype(jnp.float32), mask(2, 64, 64, 1), 3)
    assert loss.dtype == jnp.float32
    assert float(loss) == float(exact)


def test_kl_losses_are_the_divergences_of_gaussians() -> None:
    """Against torch's own, in both directions."""
    mu, sigma = random(2, 3, 3, 4) - 0.5, random(2, 3, 3, 4, seed=1) + 0.2
    posterior, prior = (torch.distributions.Normal(torch.tensor(m), torch.tensor(s)) for m, s in ((mu, sigma), (0 * mu, 0 * mu + 1)))
    divergence = torch.distributions.kl_divergence
    assert float(kl_loss(mu, sigma, "paper")) == pytest.approx(float(divergence(posterior, prior).mean()), rel=1e-5)
    assert float(kl_loss(mu, sigma, "released")) == pytest.approx(float(divergence(prior, posterior).mean()), rel=1e-5)


def test_papers_kl_stays_moderate_where_the_released_one_explodes() -> None:
    mu, sigma = jnp.zeros((1, 1, 1, 4)), jnp.full((1, 1, 1, 4), 1e-3)
    assert float(kl_loss(mu, sigma, "paper")) < 10
    assert float(kl_loss(mu, sigma, "released")) > 1e5


LEVELS = ((8, 3), (8, 4), (4, 5), (2, 6), (1, 7))  # height and channels of five levels of features


def features(samples: int, seed: int) -> list[np.ndarray]:
    return [random(2, samples, h, h, c, seed=seed + i) for i, (h, c) in enumerate(LEVELS)]


def test_feature_matching_is_the_mean_and_perceptual_loss_the_weighted_sum_over_the_levels() -> None:
    fake, real = features(2, 0), [level[:, 0] for level in features(1, 10)]
    distances = [np.abs(f - r[:, None]).mean() for f, r in zip(fake, real, strict=True)]
    assert float(feature_matching_loss(fake, real)) == pytest.approx(np.mean(distances), rel=1e-5)
    assert float(perceptual_loss(fake, real, "paper")) == pytest.approx(np.mean(distances), rel=1e-5)
    weighted = sum(w * d for w, d in zip((1 / 32, 1 / 16, 1 / 8, 1 / 4, 1), distances, strict=True))
    assert float(perceptual_loss(fake, real, "released")) == pytest.approx(weighted, rel=1e-5)


def test_the_levels_of_the_perceptual_loss_are_added_in_full_precision() -> None:
    """An accelerator computes dot products in fewer bits unless it is told otherwise."""
    fake, real = features(2, 0), [level[:, 0] for level in features(1, 10)]
    loss = jax.value_and_grad(lambda fake, real: perceptual_loss(fake, real, "released"))
    lowered = jax.jit(loss).trace(fake, real).lower(lowering_platforms=("cuda",))
    assert "stablehlo.reduce" in lowered.as_text() and "dot" not in lowered.as_text()


def diversity(samples: Any, hole: Any, form: Any) -> float:
    return float(diversity_loss(sample_distances(samples, hole), hole_shares(samples, hole), form))


def test_diversity_loss_has_the_released_and_the_papers_form() -> None:
    samples, hole = features(2, 0), mask(2, 16, 16, 1)
    hole[0, 0, 0] = 1  # the only pixel of the coarsest level
    reduced = [hole[:, :: 16 // h, :: 16 // h] for h, _ in LEVELS]
    distances = [np.abs(f[:, 0] * m - f[:, 1] * m).mean() for f, m in zip(samples, reduced, strict=True)]
    total = sum(d / m.mean() for d, m in zip(distances, reduced, strict=True))
    assert diversity(samples, hole, "released") == pytest.approx(1 / (total + 1e-5), rel=1e-5)
    assert diversity(samples, hole, "paper") == pytest.approx(np.mean([1 / (d + 1e-5) for d in distances]), rel=1e-5)


def test_diversity_of_three_samples_is_over_all_pairs() -> None:
    samples, hole = features(3, 0), mask(2, 16, 16, 1)
    pairs = [
        np.asarray(sample_distances([jnp.asarray(level[:, list(pair)]) for level in samples], hole)) for pair in ((0, 1), (0, 2), (1, 2))
    ]
    np.testing.assert_allclose(sample_distances(samples, hole), np.mean(pairs, axis=0), rtol=1e-5)


@pytest.mark.parametrize("form", ["released", "paper"])
def test_diversity_of_an_empty_mask_is_zero_and_of_a_full_one_finite(form: Any) -> None:
    samples = [jnp.asarray(level) for level in features(2, 0)]

    def loss(samples: list[jax.Array], share: float) -> jax.Array:
        hole = jnp.full((2, 16, 16, 1), share)
        return diversity_loss(sample_distances(samples, hole), hole_shares(samples, hole), form)

    for share in (0.0, 1.0):
        value, gradients = jax.value_and_grad(loss)(samples, share)
        assert np.isfinite(value) and all(jnp.isfinite(g).all() for g in gradients)
        assert (float(value) == 0) == (share == 0)


@pytest.mark.parametrize("form", ["released", "paper"])
def test_a_level_where_the_hole_vanishes_is_left_out_of_the_diversity(form: Any) -> None:
    samples, hole = features(2, 0), np.ones((2, 16, 16, 1), np.float32)
    hole[:, 0, 0] = 0  # the only pixel that the coarsest level keeps
    others = diversity(samples[:-1], hole, form)
    assert diversity(samples, hole, form) == pytest.approx(others, rel=1e-6)


@pytest.mark.parametrize("form", ["released", "paper"])
def test_diversity_loss_drives_samples_apart_inside_the_hole_only(form: Any) -> None:
    samples, hole = [jnp.asarray(level) for level in features(2, 0)], mask(2, 16, 16, 1)
    gradients = jax.grad(lambda s: diversity_loss(sample_distances(s, hole), hole_shares(s, hole), form))(samples)
    finest = hole[:, None, ::2, ::2]
    assert (gradients[0] * (1 - finest) == 0).all()
    # downhill is apart
    assert ((gradients[0][:, 0] * (samples[0][:, 0] - samples[0][:, 1]) * finest[:, 0]) <= 0).all()


@pytest.mark.gpu
@pytest.mark.parametrize("form", ["released", "paper"])
def test_a_gpu_computes_the_diversity_loss_and_its_gradient_in_float32(form: str) -> None:
    """The samples differ by a thousandth, as when training starts: TF32 would turn the gradient."""
    vgg, hole = VGG19(rng=np.random.default_rng(0), dtype=jnp.float32), mask(1, 64, 64, 1)
    samples = random(1, 1, 64, 64, 3) + 1e-3 * random(1, 2, 64, 64, 3, seed=1)

    def loss(samples: jax.Array) -> tuple[jax.Array, jax.Array]:
        def of(samples: jax.Array) -> jax.Array:
            features = [split_samples(level, 2) for level in vgg(merge_samples(samples))]
            return diversity_loss(sample_distances(features, hole), hole_shares(features, hole), form)

        return jax.value_and_grad(of)(samples)

    (value, gradient), (wanted, exact) = jax.jit(loss)(samples), on_the_cpu(loss, samples)
    assert float(value) == pytest.approx(float(wanted), rel=1e-3)
    ours, theirs = np.asarray(gradient, np.float64).ravel(), exact.astype(np.float64).ravel()
    assert ours @ theirs > 0.999 * np.linalg.norm(ours) * np.linalg.norm(theirs)
