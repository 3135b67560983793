"""Defines the training state, the static description of a step, and the optimiser with its
schedule.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array, lax

from spn_jax.config import Config, LossConfig, OptimizerConfig
from spn_jax.models.discriminator import Discriminator
from spn_jax.models.layers import SpectralVector
from spn_jax.models.spn import SPN
from spn_jax.models.tracing import traced_once

Metrics = dict[str, Array]
Batch = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Holds the configuration's times in steps."""

    length: int
    learning_rate: float
    drops: tuple[int, ...]
    drop_factor: float
    prior_loss_until: int | None


@dataclasses.dataclass(frozen=True)
class StepGraph:
    """Holds everything static about a step: network graphs, losses, optimiser, schedule. It is
    hashable.
    """

    model: nnx.GraphDef
    discriminator: nnx.GraphDef
    loss: LossConfig
    optimizer: OptimizerConfig
    schedule: Schedule
    micro_batches: int
    ema_decay: float | None
    samples: int
    seed: int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Holds all that a training run saves. Randomness and the position in the data depend only on
    `step` and the config's seeds.
    """

    step: Array  # () int32, updates made
    model: nnx.State  # parameters of prior learner and generator, float32
    discriminator: nnx.State  # kernels of the discriminator, float32
    spectral: nnx.State  # singular vectors of its spectral normalisation
    model_optimizer: optax.OptState
    discriminator_optimizer: optax.OptState
    ema: nnx.State | None  # exponential moving average (EMA) of `model`, if the config has one


class Frozen(NamedTuple):
    """Holds networks that a step uses and never trains, donates or checkpoints.

    teacher: a module that maps the photo at 2P (b, 2P, 2P, 3) in [0, 1] to {level: features}; None
        where features are cached.
    vgg: a module that maps images (b, h, w, 3) in [0, 1] to a tuple of maps; needed by the
        perceptual and the diversity loss.
    """

    teacher: nnx.Module | None = None
    vgg: nnx.Module | None = None


class Updated(NamedTuple):
    """Holds a network after an update."""

    parameters: nnx.State
    optimizer: optax.OptState
    norms: Metrics  # of gradient, parameters and update


def resolve_schedule(config: Config, steps_per_epoch: int) -> Schedule:
    """Converts the schedule's times to steps and scales the learning rate to the batch where the
    config says so.
    """
    schedule = config.schedule
    unit = steps_per_epoch if schedule.unit == "epochs" else 1

    def steps(time: float) -> int:
        return max(1, round(time * unit))

    scale = config.train.batch_size / schedule.base_batch_size if schedule.base_batch_size else 1.0
    return Schedule(
        length=steps(schedule.length),
        learning_rate=config.optimizer.learning_rate * scale,
        drops=tuple(steps(time) for time in schedule.learning_rate_drops),
        drop_factor=schedule.drop_factor,
        prior_loss_until=None if schedule.prior_loss_until is None else steps(schedule.prior_loss_until),
    )


def build_networks(config: Config, teacher_channels: Mapping[int, int]) -> tuple[SPN, Discriminator]:
    """Builds SPN and discriminator with the initial parameters of config.train.seed."""
    rng = np.random.default_rng(config.train.seed)
    dtype = jnp.dtype(config.train.compute_dtype)
    model = SPN(config.model, teacher_channels, rng=rng, dtype=dtype, remat=config.train.rematerialise)
    return model, Discriminator(config.model, rng=rng, dtype=dtype)


def create_state(config: Config, schedule: Schedule, model: SPN, discriminator: Discriminator) -> tuple[StepGraph, TrainState]:
    """Returns the static graph and the state before the first step."""
    model_graph, *states = nnx.split(model)
    discriminator_graph, *discriminator_states = nnx.split(discriminator, nnx.Param, SpectralVector)
    parameters, kernels, spectral = (nnx.as_pure(state) for state in (*states, *discriminator_states))
    graph = StepGraph(
        model=model_graph,
        discriminator=discriminator_graph,
        loss=config.loss,
        optimizer=config.optimizer,
        schedule=schedule,
        micro_batches=config.train.micro_batches,
        ema_decay=config.train.ema_decay,
        samples=config.train.samples,
        seed=config.train.seed,
    )
    adam = scale_by_adam(config.optimizer)
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        model=parameters,
        discriminator=kernels,
        spectral=spectral,
        model_optimizer=zeros_of(jax.eval_shape(adam.init, parameters)),
        discriminator_optimizer=zeros_of(jax.eval_shape(adam.init, kernels)),
        ema=jax.tree.map(placed, parameters) if graph.ema_decay is not None else None,
    )
    return graph, state


def placed(array: Array | np.ndarray) -> Array:
    """Returns a copy of an array on the device, for which no program must be compiled, as
    `jnp.array` would for each shape.
    """
    return jax.device_put(np.array(array))


def zeros_of(shapes: optax.OptState) -> optax.OptState:
    """Returns the state of Adam before the first update. NumPy makes its zeros, so that no program
    must be compiled for each shape.
    """
    return jax.tree.map(lambda x: jax.device_put(np.zeros(x.shape, x.dtype)), shapes)


def scale_by_adam(settings: OptimizerConfig) -> optax.GradientTransformation:
    """Returns Adam without the learning rate, which depends on the step and is applied in `update`.

    With beta1 = 0 the first moment is the gradient itself. It is not stored, which keeps the update
    and needs a third less memory.
    """
    if settings.beta1 == 0:
        return optax.scale_by_rms(settings.beta2, settings.epsilon, eps_in_sqrt=False, bias_correction=True)
    return optax.scale_by_adam(settings.beta1, settings.beta2, settings.epsilon)


@jax.named_scope("optimizer")
def update(graph: StepGraph, step: Array, name: str, parameters: nnx.State, optimizer: optax.OptState, gradients: nnx.State) -> Updated:
    """Makes one Adam update of the network that the metrics call `name`."""
    direction, optimizer = scale_by_adam(graph.optimizer).update(gradients, optimizer)
    rate = learning_rate(graph.schedule, step)
    new = jax.tree.map(functools.partial(after_update, rate), parameters, direction)
    norms = {
        f"{name}/gradient_norm": norm(gradients),
        f"{name}/parameter_norm": norm(new),
        f"{name}/update_norm": rate * norm(direction),
    }
    return Updated(new, optimizer, norms)


@traced_once()
def after_update(rate: Array, parameter: Array, direction: Array) -> Array:
    """Returns a parameter after a step of length `rate` against a direction of its shape."""
    return parameter - (rate * direction).astype(parameter.dtype)


def norm(tree: nnx.State) -> Array:
    """Returns the Euclidean norm of all numbers of a tree."""
    return jnp.sqrt(functools.reduce(lax.add, map(sum_of_squares, jax.tree.leaves(tree))))


@traced_once()
def sum_of_squares(x: Array) -> Array:
    """Returns the sum () of the squares of all numbers."""
    return jnp.sum(jnp.square(x))


def learning_rate(schedule: Schedule, step: Array) -> Array:
    """Returns the learning rate of the update made at `step`; each drop multiplies it by
    drop_factor.
    """
    dropped = sum((step >= drop).astype(jnp.int32) for drop in schedule.drops)
    return schedule.learning_rate * jnp.asarray(schedule.drop_factor) ** dropped


def prior_switch(schedule: Schedule, step: Array) -> Array | float:
    """Returns 1 while the prior loss is on, and 0 from `prior_loss_until` on."""
    return 1.0 if schedule.prior_loss_until is None else jnp.where(step < schedule.prior_loss_until, 1.0, 0.0)


@jax.named_scope("optimizer")
def moving_average(graph: StepGraph, average: nnx.State | None, parameters: nnx.State) -> nnx.State | None:
    """Returns the EMA decay * average + (1 - decay) * parameters, or None if the config has
    none.
    """
    if average is None or graph.ema_decay is None:
        return None
    decay = graph.ema_decay
    return jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, parameters)


def next_state(graph: StepGraph, state: TrainState, model: Updated, discriminator: Updated, spectral: nnx.State) -> TrainState:
    """Returns the state after a step that updated both networks and left these singular vectors."""
    return TrainState(
        step=state.step + 1,
        model=model.parameters,
        discriminator=discriminator.parameters,
        spectral=spectral,
        model_optimizer=model.optimizer,
        discriminator_optimizer=discriminator.optimizer,
        ema=moving_average(graph, state.ema, model.parameters),
    )
