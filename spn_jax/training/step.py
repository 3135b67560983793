"""Defines the training step, a pure function that is compiled once.

It imports no data loader, so that the benchmark and a bare accelerator image can run it.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from spn_jax.config import Config
from spn_jax.models.convolution import batch_split_over, compiled_for
from spn_jax.runtime.compiling import without_garbage_collection
from spn_jax.training.accumulation import accumulated_train_step
from spn_jax.training.gradients import (
    DiscriminatorState,
    GeneratorObjective,
    discriminator_gradients,
    diversity_of_batch,
    find_references,
    generate,
    power_iteration,
    prepare_batch,
)
from spn_jax.training.state import Batch, Frozen, Metrics, StepGraph, TrainState, learning_rate, next_state, update


def train_step(graph: StepGraph, state: TrainState, frozen: Frozen, batch: Batch) -> tuple[TrainState, Metrics]:
    """Updates discriminator and generator once, in the released programs' order.

    1. Prior learner and generator run forward once. 2. The discriminator runs on the photos, then
    on the predictions, and is updated. 3. With its new kernels it runs on the predictions again,
    and the generator's losses are backpropagated through the forward pass of 1. A power iteration
    precedes each of the discriminator's three passes. Every loss uses the raw prediction.

    Args:
        graph: static description of networks, losses, optimiser and schedule.
        state: donated.
        frozen: networks that are used but not trained.
        batch: "image" (b, P, P, 3) and "mask" (b, P, P, 1) as uint8 (photos 0..255, masks 0 and 1)
            or float in [0, 1]; "targets" {level: (b, h, w, c), or its codes, see `features_of`} or
            "image_2x" (b, 2P, 2P, 3) for a teacher in `frozen`. A probabilistic model takes "noise"
            (b, s, P/32, P/32, z), or draws it from the seed and the step.

    Returns:
        The new state and scalar metrics under path-like names.
    """
    batch = prepare_batch(graph, state, batch)
    photo_vectors = power_iteration(graph, state.discriminator, state.spectral)
    fake_vectors = power_iteration(graph, state.discriminator, photo_vectors)

    # 1. The forward pass
    output, pull_back = jax.vjp(lambda parameters: generate(graph, parameters, batch), state.model)

    # 2. The discriminator's update
    of_discriminator = discriminator_gradients(graph, state.discriminator, photo_vectors, fake_vectors, batch["image"], output.image)
    discriminator = update(
        graph, state.step, "discriminator", state.discriminator, state.discriminator_optimizer, of_discriminator.parameters
    )

    # 3. The generator's update
    spectral = power_iteration(graph, discriminator.parameters, fake_vectors)
    after_update = DiscriminatorState(discriminator.parameters, spectral)
    objective = GeneratorObjective(graph, frozen, state.step, after_update, diversity_of_batch(graph))
    references = find_references(graph, frozen, DiscriminatorState(state.discriminator, photo_vectors), batch)
    of_generator = objective.gradients(batch, references, output, pull_back)
    model = update(graph, state.step, "generator", state.model, state.model_optimizer, of_generator.parameters)

    metrics = of_generator.metrics | of_discriminator.metrics | model.norms | discriminator.norms
    metrics |= {"learning_rate": learning_rate(graph.schedule, state.step)}
    return next_state(graph, state, model, discriminator, spectral), metrics


def compile_train_step(
    graph: StepGraph, mesh: Mesh, state_sharding: Any = None
) -> Callable[[TrainState, Frozen, Batch], tuple[TrainState, Metrics]]:
    """Compiles the step of a graph for a mesh with the axis "data": (state, frozen, batch) ->
    (state, metrics).

    State and frozen networks are replicated on every device. A batch is sharded along its first
    axis. The compiler derives the rest: every mean over the batch becomes an all-reduce, in float32
    whatever train.compute_dtype is. The state is donated: its memory is reused. Convolutions have
    the forms for the mesh's platform, or for that of a context `compiled_for` around the trace.

    Args:
        state_sharding: shardings of the state between steps, see `runtime.sharding`. With them a
            step begins by gathering the parameters, and each device updates its shard of them with
            its shard of the optimisers.
    """
    replicated, by_photo = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    between_steps = replicated if state_sharding is None else state_sharding
    one_step = train_step if graph.micro_batches == 1 else accumulated_train_step
    platform = mesh.devices.flat[0].platform

    def step(state: TrainState, frozen: Frozen, batch: Batch) -> tuple[TrainState, Metrics]:
        if state_sharding is not None:
            model, discriminator = jax.lax.with_sharding_constraint((state.model, state.discriminator), replicated)
            state = dataclasses.replace(state, model=model, discriminator=discriminator)
        with without_garbage_collection(), compiled_for(compiled_for.value or platform), batch_split_over(mesh):
            return one_step(graph, state, frozen, batch)

    return jax.jit(step, donate_argnums=0, in_shardings=(between_steps, replicated, by_photo), out_shardings=(between_steps, replicated))


def matmul_precision(config: Config) -> contextlib.AbstractContextManager[Any]:
    """Returns the context in which a step, or a pass of its networks, must be traced for
    train.precision.
    """
    return jax.default_matmul_precision("highest") if config.train.precision == "highest" else contextlib.nullcontext()
