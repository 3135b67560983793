"""Losses against their formulas, in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spn_jax.losses import adversarial_loss, discriminator_loss, prior_loss, reconstruction_loss


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
    """The released probabilistic program tiles photos and masks; a sample axis must mean the same."""
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
    on_real, on_fake = discriminator_loss(real, fake)
    assert float(on_real) == pytest.approx(np.mean(-np.log(sigmoid(real))), rel=1e-5)
    assert float(on_fake) == pytest.approx(np.mean(-np.log(1 - sigmoid(fake))), rel=1e-5)


def test_adversarial_loss_has_the_released_and_the_papers_form() -> None:
    fake = random(2, 4, 4, 1) * 4 - 2
    assert float(adversarial_loss(fake, "non_saturating")) == pytest.approx(np.mean(-np.log(sigmoid(fake))), rel=1e-5)
    assert float(adversarial_loss(fake, "saturating")) == pytest.approx(np.mean(np.log(1 - sigmoid(fake))), rel=1e-5)


@pytest.mark.parametrize("form", ["non_saturating", "saturating"])
def test_both_adversarial_forms_make_fakes_better(form: str) -> None:
    gradient = jax.grad(lambda logits: adversarial_loss(logits, form))(jnp.zeros((1, 2, 2, 1)))
    assert (gradient < 0).all()  # a step downhill raises the discriminator's score of the fake


def test_logarithms_are_clamped_at_minus_100() -> None:
    hopeless = jnp.full((1, 1, 1, 1), -1e4)
    assert float(adversarial_loss(hopeless, "non_saturating")) == 100
    assert float(discriminator_loss(hopeless, -hopeless)[1]) == 100


def test_losses_of_bfloat16_maps_are_computed_in_float32() -> None:
    distilled, target = (jnp.asarray(random(2, *shape, 5, seed=s), jnp.bfloat16) for s, shape in enumerate(((1, 64, 64), (64, 64))))
    loss = prior_loss(distilled, target, mask(2, 64, 64, 1), 3)
    exact = prior_loss(distilled.astype(jnp.float32), target.astype(jnp.float32), mask(2, 64, 64, 1), 3)
    assert loss.dtype == jnp.float32
    assert float(loss) == float(exact)
