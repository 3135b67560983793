"""What training carries from step to step, and the step itself: a pure function, jitted once.

Imports no data loader, so that the benchmark and a bare accelerator image can run it.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange
from flax import nnx
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from spn_jax.config import Config, LossConfig, OptimizerConfig
from spn_jax.models.discriminator import Discriminator, Judgement
from spn_jax.models.layers import SpectralVector
from spn_jax.models.prior import Pyramid
from spn_jax.models.spn import SPN, SPNOutput, merge_samples, split_samples
from spn_jax.training.losses import (
    adversarial_loss,
    discriminator_loss,
    diversity_loss,
    feature_matching_loss,
    hole_shares,
    kl_loss,
    perceptual_loss,
    prior_loss,
    reconstruction_loss,
    sample_distances,
)

Metrics = dict[str, Array]
Batch = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The configuration's times, in steps."""

    length: int
    learning_rate: float
    drops: tuple[int, ...]
    drop_factor: float
    prior_loss_until: int | None


@dataclasses.dataclass(frozen=True)
class StepGraph:
    """All that is static about a step: network graphs, losses, optimiser, schedule. Hashable, the jitted step's static argument."""

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
    """All that a training run saves. Randomness and the position in the data follow from `step` and the config's seeds."""

    step: Array  # () int32, updates made
    model: nnx.State  # parameters of prior learner and generator, float32
    discriminator: nnx.State  # kernels of the discriminator, float32
    spectral: nnx.State  # singular vectors of its spectral norm
    model_optimizer: optax.OptState
    discriminator_optimizer: optax.OptState
    ema: nnx.State | None  # moving average of `model`, where the config asks for one


class Frozen(NamedTuple):
    """Networks that a step uses and never trains, donates or checkpoints.

    teacher: a module that maps the photo at 2P (b, 2P, 2P, 3) in [0, 1] to {level: features}; None where features are cached.
    vgg: a module that maps images (b, h, w, 3) in [0, 1] to a tuple of maps; needed by the perceptual and the diversity loss.
    """

    teacher: nnx.Module | None = None
    vgg: nnx.Module | None = None


class References(NamedTuple):
    """What predictions are compared with, besides the photo; a loss without weight leaves its part empty."""

    teacher: Pyramid  # the teacher's features of the photos
    judged: tuple[Array, ...]  # the discriminator's features of the photos, before its update
    perceived: tuple[Array, ...]  # VGG19's features of the photos
    whole: tuple[Array, Array] | None = None  # where the batch is one part of a larger one: that one's sample_distances and mask


def resolve_schedule(config: Config, steps_per_epoch: int) -> Schedule:
    """Converts the schedule's times to steps and scales the learning rate to the batch where the config says so."""
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
    """SPN and discriminator with the initial parameters of config.train.seed."""
    rng = np.random.default_rng(config.train.seed)
    dtype = jnp.dtype(config.train.compute_dtype)
    model = SPN(config.model, teacher_channels, rng=rng, dtype=dtype, remat=config.train.rematerialise)
    return model, Discriminator(config.model, rng=rng, dtype=dtype)


def create_state(config: Config, schedule: Schedule, model: SPN, discriminator: Discriminator) -> tuple[StepGraph, TrainState]:
    """The static graph and the state before the first step."""
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
    adam = scale_by_adam(graph)
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        model=parameters,
        discriminator=kernels,
        spectral=spectral,
        model_optimizer=adam.init(parameters),
        discriminator_optimizer=adam.init(kernels),
        ema=jax.tree.map(jnp.copy, parameters) if graph.ema_decay is not None else None,
    )
    return graph, state


def compile_train_step(mesh: Mesh, kept: Any = None) -> Callable[[StepGraph, TrainState, Frozen, Batch], tuple[TrainState, Metrics]]:
    """`train_step` jitted for a mesh with the axis "data".

    State and frozen networks are replicated on every device; a batch is split along its first axis, one part a device.
    The compiler derives the rest: every mean over the batch becomes an all-reduce. The state's memory is reused (donated).

    Args:
        kept: the state's sharding, of `state_sharding`, where it is split between steps; a step begins by gathering the
            parameters, and each device updates its part of them with its part of the optimisers.
    """
    replicated, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    kept = replicated if kept is None else kept

    def step(graphdef: StepGraph, state: TrainState, frozen: Frozen, batch: Batch) -> tuple[TrainState, Metrics]:
        model, discriminator = jax.lax.with_sharding_constraint((state.model, state.discriminator), replicated)
        return train_step(graphdef, dataclasses.replace(state, model=model, discriminator=discriminator), frozen, batch)

    return jax.jit(
        train_step if kept is replicated else step,
        static_argnums=0,
        donate_argnums=1,
        in_shardings=(kept, replicated, split),
        out_shardings=(kept, replicated),
    )


def matmul_precision(config: Config) -> contextlib.AbstractContextManager[Any]:
    """The context in which a step, or a pass of its networks, is traced with train.precision."""
    return jax.default_matmul_precision("highest") if config.train.precision == "highest" else contextlib.nullcontext()


def train_step(graphdef: StepGraph, state: TrainState, frozen: Frozen, batch: Batch) -> tuple[TrainState, Metrics]:
    """One update of discriminator and generator, in the released programs' order.

    1. One forward pass of prior learner and generator. 2. The discriminator judges the photos, then the predictions, and is
    updated. 3. With its new kernels it judges the predictions again; the generator's losses are pulled back through the
    forward pass of 1. Each of the three judgements is preceded by a power iteration. Every loss sees the raw prediction.

    Args:
        graphdef: static description of networks, losses, optimiser and schedule.
        state: donated.
        frozen: networks that are used but not trained.
        batch: "image" (b, P, P, 3) and "mask" (b, P, P, 1) as uint8 (photos 0..255, masks 0 and 1) or float in [0, 1];
            "targets" {level: (b, h, w, c), or its codes, see `features_of`} or "image_2x" (b, 2P, 2P, 3) for a teacher in
            `frozen`. A probabilistic model takes "noise" (b, s, P/32, P/32, z), or draws it from the seed and the step.

    Returns:
        The new state and scalar metrics under path-like names.
    """
    batch = {**batch, "image": unit_range(batch["image"]), "mask": as_float(batch["mask"])}
    batch |= draw_noise(graphdef, state, batch)
    for_real = power_iteration(graphdef, state.discriminator, state.spectral)
    for_fake = power_iteration(graphdef, state.discriminator, for_real)

    def forward(part: Batch) -> tuple[SPNOutput, Callable]:
        return jax.vjp(lambda parameters: generate(graphdef, parameters, part), state.model)

    # A batch in one part needs one forward pass; in several, the generator runs twice, because the discriminator's update,
    # which comes in between, needs them all.
    in_parts = graphdef.micro_batches > 1
    if in_parts:
        parts = split_batch(batch, graphdef.micro_batches)

        def judge_part(part: Batch) -> tuple[tuple[nnx.State, Metrics], Array | None]:
            fake = generate(graphdef, state.model, part).image
            judged = discriminator_gradients(graphdef, state, for_real, for_fake, part, fake)
            return judged, sample_distances(perceive(frozen, fake), part["mask"]) if graphdef.loss.diversity else None

        judged, distances = mean_over_parts(judge_part, parts)
    else:
        output, pull_back = forward(batch)
        judged, distances = discriminator_gradients(graphdef, state, for_real, for_fake, batch, output.image), None

    discriminator, discriminator_optimizer = update(graphdef, state, "discriminator", judged[0])
    for_generator = power_iteration(graphdef, discriminator, for_fake)
    critic = (discriminator, for_generator)

    def learn(part: Batch, output: SPNOutput, pull_back: Callable) -> tuple[nnx.State, Metrics]:
        known = references(graphdef, state, for_real, frozen, part)
        if distances is not None:
            known = known._replace(whole=(distances, batch["mask"]))
        return generator_gradients(graphdef, state.step, critic, frozen, part, known, output, pull_back)

    learned = mean_over_parts(lambda part: learn(part, *forward(part)), parts) if in_parts else learn(batch, output, pull_back)

    model, model_optimizer = update(graphdef, state, "model", learned[0])
    new_state = TrainState(
        step=state.step + 1,
        model=model,
        discriminator=discriminator,
        spectral=for_generator,
        model_optimizer=model_optimizer,
        discriminator_optimizer=discriminator_optimizer,
        ema=moving_average(graphdef, state.ema, model),
    )
    return new_state, {**learned[1], **judged[1], "learning_rate": learning_rate(graphdef.schedule, state.step)}


def generate(graphdef: StepGraph, parameters: nnx.State, batch: Batch) -> SPNOutput:
    """Prior learner and generator with given parameters on a batch of floats."""
    return nnx.merge(graphdef.model, parameters)(batch["image"], batch["mask"], batch.get("noise"))


def draw_noise(graphdef: StepGraph, state: TrainState, batch: Batch) -> dict[str, Array]:
    """{"noise": (b, s, h/32, w/32, z)} for a probabilistic model, from the seed and the step alone; {} if it is there or not needed."""
    model = nnx.merge(graphdef.model, state.model)
    if not model.variational or "noise" in batch:
        return {}
    count, height, width, _ = batch["image"].shape
    key = jax.random.fold_in(jax.random.key(graphdef.seed), state.step)
    return {"noise": model.draw_noise(key, count, graphdef.samples, height, width)}


def judge(graphdef: StepGraph, kernels: nnx.State, spectral: nnx.State, images: Array) -> Judgement:
    """The discriminator with given kernels and singular vectors on images (b, h, w, 3)."""
    return nnx.merge(graphdef.discriminator, kernels, spectral)(images)


def power_iteration(graphdef: StepGraph, kernels: nnx.State, spectral: nnx.State) -> nnx.State:
    """The singular vectors after one power iteration with `kernels`."""
    discriminator = nnx.merge(graphdef.discriminator, kernels, spectral)
    discriminator.power_iteration()
    return nnx.as_pure(nnx.state(discriminator, SpectralVector))


def discriminator_gradients(
    graphdef: StepGraph, state: TrainState, for_real: nnx.State, for_fake: nnx.State, batch: Batch, fake: Array
) -> tuple[nnx.State, Metrics]:
    """Gradients of the discriminator's loss for its kernels, and its metrics; fake (b, s, P, P, 3) is a constant."""
    fake = merge_samples(jax.lax.stop_gradient(fake))

    def loss(kernels: nnx.State) -> tuple[Array, Metrics]:
        real_logits = judge(graphdef, kernels, for_real, batch["image"]).logits
        fake_logits = judge(graphdef, kernels, for_fake, fake).logits
        on_real, on_fake = discriminator_loss(real_logits, fake_logits, graphdef.loss.adversarial)
        total = (on_real + on_fake) / 2
        return total, {"discriminator/loss": total, "discriminator/real": on_real, "discriminator/fake": on_fake}

    return jax.grad(loss, has_aux=True)(state.discriminator)


def references(graphdef: StepGraph, state: TrainState, for_real: nnx.State, frozen: Frozen, batch: Batch) -> References:
    """What the predictions of a batch are compared with; all of it constant.

    The discriminator has judged the photos before, for its own loss, with the same kernels and vectors: the compiler
    recognises that and computes it once.
    """
    loss, photos = graphdef.loss, batch["image"]
    judged = judge(graphdef, state.discriminator, for_real, photos).features if loss.feature_matching else ()
    perceived = frozen.vgg(photos) if loss.perceptual else ()  # type: ignore[operator, misc]
    return jax.lax.stop_gradient(References(targets(frozen, batch), judged, perceived))


def perceive(frozen: Frozen, images: Array) -> tuple[Array, ...]:
    """VGG19's features (b, s, h, w, c), level by level, of images (b, s, P, P, 3)."""
    return tuple(split_samples(level, images.shape[1]) for level in frozen.vgg(merge_samples(images)))  # type: ignore[operator, misc]


def generator_gradients(
    graphdef: StepGraph,
    step: Array,
    critic: tuple[nnx.State, nnx.State],
    frozen: Frozen,
    batch: Batch,
    known: References,
    output: SPNOutput,
    pull_back: Callable,
) -> tuple[nnx.State, Metrics]:
    """Gradients of the generator's loss for the parameters, through the forward pass already made, and its metrics.

    `critic`: kernels and singular vectors of the discriminator, after its update.
    """

    def loss(output: SPNOutput) -> tuple[Array, Metrics]:
        judgement = judge(graphdef, *critic, merge_samples(output.image))
        perceived = perceive(frozen, output.image) if graphdef.loss.perceptual or graphdef.loss.diversity else ()
        return generator_loss(graphdef, step, output, judgement, perceived, known, batch)

    output_gradients, metrics = jax.grad(loss, has_aux=True)(output)
    return pull_back(output_gradients)[0], metrics


def generator_loss(
    graphdef: StepGraph,
    step: Array,
    output: SPNOutput,
    judgement: Judgement,
    perceived: tuple[Array, ...],
    known: References,
    batch: Batch,
) -> tuple[Array, Metrics]:
    """Eq. 12, or 15 of the probabilistic model: the weighted sum, and every term by name. The only place where weights are applied."""
    weights, mask = graphdef.loss, batch["mask"]
    by_level = {
        level: prior_loss(distilled, known.teacher[level], mask, weights.prior_mask_weight) for level, distilled in output.distilled.items()
    }
    terms = {
        "adversarial": adversarial_loss(judgement.logits, weights.adversarial),
        "reconstruction": reconstruction_loss(output.image, batch["image"], mask, weights.reconstruction_mask_weight),
        "prior": jnp.asarray(sum(by_level.values())),
    }
    factors = {
        "adversarial": weights.adversarial_weight,
        "reconstruction": weights.reconstruction,
        "prior": weights.prior * prior_switch(graphdef.schedule, step),
        "feature_matching": weights.feature_matching,
        "perceptual": weights.perceptual,
        "diversity": weights.diversity,
        "kl": weights.kl,
    }
    if weights.feature_matching:
        judged = [split_samples(layer, output.image.shape[1]) for layer in judgement.features]
        terms["feature_matching"] = feature_matching_loss(judged, known.judged)
    if weights.perceptual:
        terms["perceptual"] = perceptual_loss(perceived, known.perceived, weights.perceptual_levels)
    if weights.diversity:
        terms["diversity"] = diversity_term(graphdef, perceived, mask, known.whole)
    if weights.kl and output.posterior is not None:
        terms["kl"] = kl_loss(*output.posterior, weights.kl_direction)
    total = jnp.asarray(sum(factors[name] * term for name, term in terms.items()))
    levels = {f"generator/prior_level_{level}": value for level, value in by_level.items()}
    return total, {"generator/loss": total, **{f"generator/{name}": term for name, term in terms.items()}, **levels}


def diversity_term(graphdef: StepGraph, perceived: tuple[Array, ...], mask: Array, whole: tuple[Array, Array] | None) -> Array:
    """`diversity_loss` of a batch, from VGG19's features (b, s, h, w, c) of its predictions.

    The loss is no mean over photos, so one part of a larger batch contributes the tangent at the whole batch's distances:
    the mean over the parts then has the whole batch's value and gradient.
    """
    distances = sample_distances(perceived, mask)
    shares = hole_shares(perceived, mask if whole is None else whole[1])

    def loss(distances: Array) -> Array:
        return diversity_loss(distances, shares, graphdef.loss.diversity_form)

    if whole is None:
        return loss(distances)
    value, tangent = jax.linearize(loss, whole[0])
    return value + tangent(distances - whole[0])


def targets(frozen: Frozen, batch: Batch) -> Pyramid:
    """The teacher's features {level: (b, h, w, c)}: computed where a teacher is given, cached in the batch otherwise.

    Those of an 8-bit cache come as codes and become numbers here, so that a quarter of the bytes travels to the device.
    """
    if frozen.teacher is not None:
        return jax.lax.stop_gradient(frozen.teacher(unit_range(batch["image_2x"])))  # type: ignore[operator]
    return {level: features_of(stored) for level, stored in batch.get("targets", {}).items()}


def features_of(stored: Array | Mapping[str, Array]) -> Array:
    """(b, h, w, c) as it is, or low (b, c) + step (b, c) * codes (b, h, w, c) of an 8-bit cache."""
    if not isinstance(stored, Mapping):
        return stored
    low, step = (stored[name][:, None, None] for name in ("low", "step"))
    return low + step * stored["codes"].astype(low.dtype)


def scale_by_adam(graphdef: StepGraph) -> optax.GradientTransformation:
    """Adam without the learning rate, which depends on the step and is applied in `update`."""
    adam = graphdef.optimizer
    return optax.scale_by_adam(adam.beta1, adam.beta2, adam.epsilon)


def update(graphdef: StepGraph, state: TrainState, network: str, gradients: nnx.State) -> tuple[nnx.State, optax.OptState]:
    """New parameters and optimiser state of "model" or "discriminator"."""
    parameters = getattr(state, network)
    direction, optimizer_state = scale_by_adam(graphdef).update(gradients, getattr(state, f"{network}_optimizer"))
    rate = learning_rate(graphdef.schedule, state.step)
    return jax.tree.map(lambda p, d: p - (rate * d).astype(p.dtype), parameters, direction), optimizer_state


def learning_rate(schedule: Schedule, step: Array) -> Array:
    """Learning rate of the update made at `step`: multiplied by drop_factor at each of the drops."""
    dropped = sum((step >= drop).astype(jnp.int32) for drop in schedule.drops)
    return schedule.learning_rate * jnp.asarray(schedule.drop_factor) ** dropped


def prior_switch(schedule: Schedule, step: Array) -> Array | float:
    """1 while the prior loss is on, 0 from `prior_loss_until` on."""
    return 1.0 if schedule.prior_loss_until is None else jnp.where(step < schedule.prior_loss_until, 1.0, 0.0)


def moving_average(graphdef: StepGraph, average: nnx.State | None, parameters: nnx.State) -> nnx.State | None:
    """decay * average + (1 - decay) * parameters, where the config asks for one."""
    if average is None or graphdef.ema_decay is None:
        return None
    decay = graphdef.ema_decay
    return jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, parameters)


def split_batch(batch: Batch, parts: int) -> Batch:
    """Every array (b, ...) as (parts, b / parts, ...), interleaved so that each part stays spread over all devices."""
    return jax.tree.map(lambda x: rearrange(x, "(b k) ... -> k b ...", k=parts), dict(batch))


def mean_over_parts(function: Callable[[Batch], Any], parts: Batch) -> Any:
    """Mean of function(part) over the leading axis of `parts`, one part at a time."""
    shapes = jax.eval_shape(function, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, _ = jax.lax.scan(lambda sums, part: (jax.tree.map(jnp.add, sums, function(part)), None), zeros, parts)
    count = jax.tree.leaves(parts)[0].shape[0]
    return jax.tree.map(lambda x: x / count, total)


def unit_range(image: Array) -> Array:
    """uint8 0..255 -> float32 in [0, 1]; floats are returned as they are."""
    return image.astype(jnp.float32) / 255 if image.dtype == jnp.uint8 else image


def as_float(mask: Array) -> Array:
    """Masks of 0 and 1 as float32; floats are returned as they are."""
    return mask if jnp.issubdtype(mask.dtype, jnp.floating) else mask.astype(jnp.float32)
