"""Trains with gradient accumulation: the step computes a batch in micro-batches, one at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax import Array

from spn_jax.training.gradients import (
    DiscriminatorState,
    DiversityLoss,
    GeneratorObjective,
    Gradients,
    discriminator_gradients,
    diversity_of_batch,
    find_references,
    generate,
    power_iteration,
    prepare_batch,
    vgg_features,
)
from spn_jax.training.losses import diversity_loss, hole_shares, sample_distances
from spn_jax.training.state import Batch, Frozen, Metrics, StepGraph, TrainState, learning_rate, next_state, update


def accumulated_train_step(graph: StepGraph, state: TrainState, frozen: Frozen, batch: Batch) -> tuple[TrainState, Metrics]:
    """Makes the same update as `train_step`, up to rounding, with gradients accumulated over
    graph.micro_batches parts.

    The generator runs forward twice per part, because the discriminator's update comes in between
    and needs all parts.
    """
    batch = prepare_batch(graph, state, batch)
    parts = split_batch(batch, graph.micro_batches)
    photo_vectors = power_iteration(graph, state.discriminator, state.spectral)
    fake_vectors = power_iteration(graph, state.discriminator, photo_vectors)

    # The discriminator's update. The same loop computes the distances of the whole batch, which the
    # diversity loss of a part needs.
    def of_discriminator(part: Batch) -> tuple[nnx.State, tuple[Metrics, Array | None]]:
        fakes = generate(graph, state.model, part).image
        found = discriminator_gradients(graph, state.discriminator, photo_vectors, fake_vectors, part["image"], fakes)
        distances = sample_distances(vgg_features(frozen, fakes), part["mask"]) if graph.loss.diversity else None
        return found.parameters, (found.metrics, distances)

    gradients, (discriminator_metrics, distances) = mean_over_parts(of_discriminator, parts, state.discriminator)
    discriminator = update(graph, state.step, "discriminator", state.discriminator, state.discriminator_optimizer, gradients)

    # The generator's update
    spectral = power_iteration(graph, discriminator.parameters, fake_vectors)
    diversity = diversity_of_batch(graph) if distances is None else share_of_diversity(graph, distances, batch["mask"])
    objective = GeneratorObjective(graph, frozen, state.step, DiscriminatorState(discriminator.parameters, spectral), diversity)

    def of_generator(part: Batch) -> Gradients:
        references = find_references(graph, frozen, DiscriminatorState(state.discriminator, photo_vectors), part)
        output, pull_back = jax.vjp(lambda parameters: generate(graph, parameters, part), state.model)
        return objective.gradients(part, references, output, pull_back)

    gradients, generator_metrics = mean_over_parts(of_generator, parts, state.model)
    model = update(graph, state.step, "generator", state.model, state.model_optimizer, gradients)

    metrics = (
        generator_metrics
        | discriminator_metrics
        | model.norms
        | discriminator.norms
        | {"learning_rate": learning_rate(graph.schedule, state.step)}
    )
    return next_state(graph, state, model, discriminator, spectral), metrics


def split_batch(batch: Batch, parts: int) -> Batch:
    """Splits every array (b, ...) into (parts, b / parts, ...), interleaved so that each part stays
    sharded over all devices.
    """
    return jax.tree.map(lambda x: rearrange(x, "(b k) ... -> k b ...", k=parts), dict(batch))


def mean_over_parts(function: Callable[[Batch], tuple[nnx.State, Any]], parts: Batch, parameters: nnx.State) -> tuple[nnx.State, Any]:
    """Returns the means of function(part) over the leading axis of `parts`, computed one part at a
    time.

    Args:
        function: returns gradients with the structure of `parameters`, and a tree of small arrays.
        parts: a batch split by `split_batch`.
        parameters: parameters of the network that is differentiated.
    """

    def add(total: nnx.State, part: Batch) -> tuple[nnx.State, Any]:
        gradients, others = function(part)
        return jax.tree.map(jnp.add, total, gradients), others

    total, others = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, parameters), parts)
    count = jax.tree.leaves(parts)[0].shape[0]
    return jax.tree.map(lambda x: x / count, total), jax.tree.map(lambda x: x.mean(0), others)


def share_of_diversity(graph: StepGraph, distances: Array, masks: Array) -> DiversityLoss:
    """Returns the diversity loss of one part of a batch.

    The loss is not a mean over photos. So a part contributes the tangent at the whole batch's
    distances, and the mean over the parts has the whole batch's value and gradient.

    Args:
        distances: `sample_distances` of the whole batch.
        masks: masks of the whole batch (b, P, P, 1).
    """

    def diversity(features: tuple[Array, ...], mask: Array) -> Array:
        shares = hole_shares(features, masks)
        value, tangent = jax.linearize(lambda distances: diversity_loss(distances, shares, graph.loss.diversity_form), distances)
        return value + tangent(sample_distances(features, mask) - distances)

    return diversity
