"""Computes the gradients of both networks' losses for a batch or one of its micro-batches.

Every form of the training step is built from these functions.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from spn_jax.models.discriminator import DiscriminatorOutput
from spn_jax.models.layers import SpectralVector
from spn_jax.models.prior import Pyramid
from spn_jax.models.spn import SPNOutput, merge_samples, split_samples
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
from spn_jax.training.state import Batch, Frozen, Metrics, StepGraph, TrainState, prior_switch

# VGG19's features (b, s, h, w, c) of predictions and the mask (b, P, P, 1) -> the diversity loss.
DiversityLoss = Callable[[tuple[Array, ...], Array], Array]
# gradients with respect to the generator's outputs -> those with respect to its parameters
PullBack = Callable[[SPNOutput], tuple[nnx.State]]


class Gradients(NamedTuple):
    """Holds gradients with respect to a network's parameters, and the metrics of their loss."""

    parameters: nnx.State
    metrics: Metrics


class DiscriminatorState(NamedTuple):
    """Holds a discriminator's kernels and the singular vectors from which spectral normalisation
    computes the singular value that it divides them by.
    """

    kernels: nnx.State
    vectors: nnx.State


class References(NamedTuple):
    """Holds what predictions are compared with, besides the photo. A part is empty where its loss
    has no weight.
    """

    teacher: Pyramid  # the teacher's features of the photos
    # the discriminator's features of the photos, before its update
    discriminator: tuple[Array, ...]
    vgg: tuple[Array, ...]  # VGG19's features of the photos


class Predicted(NamedTuple):
    """Holds a prediction and the networks' outputs for it that the losses use."""

    output: SPNOutput
    discriminator: DiscriminatorOutput  # after the discriminator's update
    vgg: tuple[Array, ...]  # VGG19's features (b, s, h, w, c); empty where no loss needs them


def generate(graph: StepGraph, parameters: nnx.State, batch: Batch) -> SPNOutput:
    """Applies prior learner and generator with given parameters to a batch of floats."""
    return nnx.merge(graph.model, parameters)(batch["image"], batch["mask"], batch.get("noise"))


def discriminate(graph: StepGraph, discriminator: DiscriminatorState, images: Array) -> DiscriminatorOutput:
    """Returns scores and features of images (b, h, w, 3)."""
    with jax.named_scope("discriminator"):
        return nnx.merge(graph.discriminator, *discriminator)(images)


def power_iteration(graph: StepGraph, kernels: nnx.State, vectors: nnx.State) -> nnx.State:
    """Returns the singular vectors after one power iteration with `kernels`."""
    discriminator = nnx.merge(graph.discriminator, kernels, vectors)
    with jax.named_scope("power_iteration"):
        discriminator.power_iteration()
    return nnx.as_pure(nnx.state(discriminator, SpectralVector))


def vgg_features(frozen: Frozen, images: Array) -> tuple[Array, ...]:
    """Returns VGG19's features (b, s, h, w, c), level by level, of images (b, s, P, P, 3)."""
    with jax.named_scope("vgg19"):
        return tuple(split_samples(level, images.shape[1]) for level in frozen.vgg(merge_samples(images)))  # type: ignore[operator, misc]


def prepare_batch(graph: StepGraph, state: TrainState, batch: Batch) -> Batch:
    """Returns the batch with photos and masks as floats. Adds noise (b, s, P/32, P/32, z) for a
    probabilistic model where the batch has none.

    Noise depends on the seed and the step alone.
    """
    batch = {**batch, "image": unit_range(batch["image"]), "mask": as_float(batch["mask"])}
    model = nnx.merge(graph.model, state.model)
    if model.variational and "noise" not in batch:
        count, height, width, _ = batch["image"].shape
        key = jax.random.fold_in(jax.random.key(graph.seed), state.step)
        batch["noise"] = model.draw_noise(key, count, graph.samples, height, width)
    return batch


def discriminator_gradients(
    graph: StepGraph, kernels: nnx.State, photo_vectors: nnx.State, fake_vectors: nnx.State, photos: Array, fakes: Array
) -> Gradients:
    """Returns gradients of the discriminator's loss with respect to its kernels. Photos and
    predictions have singular vectors of their own.

    Args:
        photos: (b, P, P, 3).
        fakes: the predictions (b, s, P, P, 3); no gradient flows through them.
    """
    fakes = merge_samples(jax.lax.stop_gradient(fakes))

    def loss(kernels: nnx.State) -> tuple[Array, Metrics]:
        real_logits = discriminate(graph, DiscriminatorState(kernels, photo_vectors), photos).logits
        fake_logits = discriminate(graph, DiscriminatorState(kernels, fake_vectors), fakes).logits
        on_real, on_fake = discriminator_terms(real_logits, fake_logits, graph.loss.adversarial)
        total = (on_real + on_fake) / 2
        accuracy = (jnp.mean(real_logits > 0, dtype=total.dtype) + jnp.mean(fake_logits < 0, dtype=total.dtype)) / 2
        metrics = {"loss": total, "real": on_real, "fake": on_fake, "accuracy": accuracy}
        return total, {f"discriminator/{name}": value for name, value in metrics.items()}

    return Gradients(*jax.grad(loss, has_aux=True)(kernels))


def find_references(graph: StepGraph, frozen: Frozen, discriminator: DiscriminatorState, batch: Batch) -> References:
    """Returns what the predictions of a batch are compared with; no gradient flows through it.

    The discriminator has run on the photos before, for its own loss, with the same kernels and
    vectors. The compiler recognises that and computes it once.
    """
    loss, photos = graph.loss, batch["image"]
    features = discriminate(graph, discriminator, photos).features if loss.feature_matching else ()
    vgg = tuple(level[:, 0] for level in vgg_features(frozen, photos[:, None])) if loss.perceptual else ()
    return jax.lax.stop_gradient(References(targets(frozen, batch), features, vgg))


@dataclasses.dataclass(frozen=True)
class GeneratorObjective:
    """Computes the generator's loss at one step and its gradients.

    discriminator: the discriminator after its update.
    diversity: the diversity loss; for a micro-batch it is its share in the whole batch's.
    """

    graph: StepGraph
    frozen: Frozen
    step: Array
    discriminator: DiscriminatorState
    diversity: DiversityLoss

    def gradients(self, batch: Batch, references: References, output: SPNOutput, pull_back: PullBack) -> Gradients:
        """Returns gradients with respect to the parameters of prior learner and generator.
        `pull_back` belongs to the forward pass that returned `output`.
        """

        def loss(output: SPNOutput) -> tuple[Array, Metrics]:
            discriminated = discriminate(self.graph, self.discriminator, merge_samples(output.image))
            needs_vgg = self.graph.loss.perceptual or self.graph.loss.diversity
            predicted = Predicted(output, discriminated, vgg_features(self.frozen, output.image) if needs_vgg else ())
            return generator_loss(self.graph, self.step, batch, predicted, references, self.diversity)

        output_gradients, metrics = jax.grad(loss, has_aux=True)(output)
        (gradients,) = pull_back(output_gradients)
        return Gradients(gradients, metrics)


def generator_loss(
    graph: StepGraph, step: Array, batch: Batch, predicted: Predicted, references: References, diversity: DiversityLoss
) -> tuple[Array, Metrics]:
    """Returns the weighted sum of Eq. 12, or 15 for the probabilistic model, and every term by
    name. Weights are applied only here.
    """
    weights, mask, output = graph.loss, batch["mask"], predicted.output
    by_level = {
        level: prior_loss(distilled, references.teacher[level], mask, weights.prior_mask_weight)
        for level, distilled in output.distilled.items()
    }
    terms = {
        "adversarial": adversarial_loss(predicted.discriminator.logits, weights.adversarial),
        "reconstruction": reconstruction_loss(output.image, batch["image"], mask, weights.reconstruction_mask_weight),
        "prior": jnp.asarray(sum(by_level.values())),
    }
    factors = {
        "adversarial": weights.adversarial_weight,
        "reconstruction": weights.reconstruction,
        "prior": weights.prior * prior_switch(graph.schedule, step),
        "feature_matching": weights.feature_matching,
        "perceptual": weights.perceptual,
        "diversity": weights.diversity,
        "kl": weights.kl,
    }
    if weights.feature_matching:
        features = [split_samples(layer, output.image.shape[1]) for layer in predicted.discriminator.features]
        terms["feature_matching"] = feature_matching_loss(features, references.discriminator)
    if weights.perceptual:
        terms["perceptual"] = perceptual_loss(predicted.vgg, references.vgg, weights.perceptual_levels)
    if weights.diversity:
        terms["diversity"] = diversity(predicted.vgg, mask)
    if weights.kl and output.posterior is not None:
        terms["kl"] = kl_loss(*output.posterior, weights.kl_direction)
    total = jnp.asarray(sum(factors[name] * term for name, term in terms.items()))
    levels = {f"generator/prior_level_{level}": value for level, value in by_level.items()}
    return total, {"generator/loss": total, **{f"generator/{name}": term for name, term in terms.items()}, **levels}


def diversity_of_batch(graph: StepGraph) -> DiversityLoss:
    """Returns the diversity loss of a batch that is computed in one part."""

    def diversity(features: tuple[Array, ...], mask: Array) -> Array:
        return diversity_loss(sample_distances(features, mask), hole_shares(features, mask), graph.loss.diversity_form)

    return diversity


def targets(frozen: Frozen, batch: Batch) -> Pyramid:
    """Returns the teacher's features {level: (b, h, w, c)}. A given teacher computes them;
    otherwise they are cached in the batch.

    An 8-bit cache stores codes. They are decoded here, so that a quarter of the bytes is sent to
    the device.
    """
    if frozen.teacher is not None:
        with jax.named_scope("teacher"):
            return jax.lax.stop_gradient(frozen.teacher(unit_range(batch["image_2x"])))  # type: ignore[operator]
    return {level: features_of(stored) for level, stored in batch.get("targets", {}).items()}


def features_of(stored: Array | Mapping[str, Array]) -> Array:
    """Returns (b, h, w, c) as it is, and for an 8-bit cache low (b, c) + step (b, c) * codes (b, h,
    w, c).
    """
    if not isinstance(stored, Mapping):
        return stored
    low, step = (stored[name][:, None, None] for name in ("low", "step"))
    return low + step * stored["codes"].astype(low.dtype)


def unit_range(image: Array) -> Array:
    """Converts uint8 0..255 to float32 in [0, 1]; floats are returned as they are."""
    return image.astype(jnp.float32) / 255 if image.dtype == jnp.uint8 else image


def as_float(mask: Array) -> Array:
    """Converts masks of 0 and 1 to float32; floats are returned as they are."""
    return mask if jnp.issubdtype(mask.dtype, jnp.floating) else mask.astype(jnp.float32)
