"""The training step: what one update does, and the choices that must not change what it
computes.
"""

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from spn_jax.checkpoints.parameters import named_arrays
from spn_jax.config import Config
from spn_jax.models.convolution import compiled_for
from spn_jax.models.discriminator import DiscriminatorOutput
from spn_jax.models.spn import SPNOutput, merge_samples, split_samples
from spn_jax.models.tresnet import CHANNELS as TRESNET_CHANNELS
from spn_jax.models.tresnet import TResNetTrunk
from spn_jax.models.vgg import VGG19
from spn_jax.training.accumulation import split_batch
from spn_jax.training.gradients import (
    DiscriminatorState,
    Predicted,
    References,
    discriminate,
    diversity_of_batch,
    generator_loss,
    power_iteration,
    targets,
)
from spn_jax.training.state import (
    Frozen,
    Schedule,
    StepGraph,
    TrainState,
    build_networks,
    create_state,
    learning_rate,
    moving_average,
    prior_switch,
    resolve_schedule,
    update,
)
from spn_jax.training.step import train_step
from tests.devices import memory
from tests.tiny import CHANNELS, compiled_step, new_state, random_batch, run_steps, tiny

ROOT = Path(__file__).resolve().parents[2]
PROBABILISTIC = (
    *("model.variational=true", "model.latent_channels=6", "model.spade_hidden_up_to_prior=true", "model.discriminator=instance_norm"),
    *("loss.adversarial=hinge", "loss.feature_matching=10", "loss.perceptual=10", "loss.diversity=1", "loss.kl=0.05", "train.samples=2"),
)


class Perceiver(nnx.Module):
    """Stands for VGG19: five maps of halving size, each a few fixed combinations of the mean
    colours.
    """

    def __init__(self) -> None:
        self.mixing = nnx.Param(jnp.asarray(np.random.default_rng(5).standard_normal((5, 3, 4)), jnp.float32))

    def __call__(self, image: jax.Array) -> tuple[jax.Array, ...]:
        levels = []
        for level in range(5):
            levels.append(jax.nn.relu(image @ self.mixing[...][level]))
            image = nnx.avg_pool(image, (2, 2), (2, 2))
        return tuple(levels)


@pytest.fixture(scope="module")
def plain() -> tuple[TrainState, list]:
    """Three plain steps on three batches."""
    return run_steps(tiny(), 3)


def largest_difference(ours: TrainState, theirs: TrainState, field: str) -> float:
    pairs = zip(jax.tree.leaves(getattr(ours, field)), jax.tree.leaves(getattr(theirs, field)), strict=True)
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)


def assert_metrics_close(ours: dict, theirs: dict, tolerance: float) -> None:
    """But for the norms of Adam's updates, in which gradients that are nothing but rounding count
    like others.
    """
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        if not name.endswith("/update_norm"):
            assert ours[name] == pytest.approx(value, rel=tolerance), name


def test_step_is_pure_and_counts(plain: tuple) -> None:
    again, metrics = run_steps(tiny(), 3)
    assert int(again.step) == 3
    assert metrics == plain[1]
    assert largest_difference(again, plain[0], "model") == 0


def test_generators_loss_is_the_weighted_sum_of_its_terms(plain: tuple) -> None:
    for metrics in plain[1]:
        levels = sum(metrics[f"generator/prior_level_{level}"] for level in (1, 2, 3))
        assert metrics["generator/prior"] == pytest.approx(levels, rel=1e-6)
        total = metrics["generator/adversarial"] + 10 * metrics["generator/reconstruction"] + metrics["generator/prior"]
        assert metrics["generator/loss"] == pytest.approx(total, rel=1e-6)
        assert metrics["discriminator/loss"] == pytest.approx((metrics["discriminator/real"] + metrics["discriminator/fake"]) / 2, rel=1e-6)


def test_generator_is_judged_by_the_updated_discriminator_after_three_power_iterations() -> None:
    config = tiny()
    graph, before = new_state(config)
    batch = random_batch(config)
    after, metrics = run_steps(config, 1, batch=batch)

    iterate = jax.jit(functools.partial(power_iteration, graph))
    twice = iterate(before.discriminator, iterate(before.discriminator, before.spectral))
    vectors = iterate(after.discriminator, twice)
    for ours, theirs in zip(jax.tree.leaves(after.spectral), jax.tree.leaves(vectors), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    floats = {"image": jnp.asarray(batch["image"], jnp.float32) / 255, "mask": jnp.asarray(batch["mask"], jnp.float32)}

    @jax.jit
    def adversarial(kernels: nnx.State) -> jax.Array:
        fake = merge_samples(nnx.merge(graph.model, before.model)(floats["image"], floats["mask"]).image)
        return -jax.nn.log_sigmoid(discriminate(graph, DiscriminatorState(kernels, vectors), fake).logits).mean()

    assert metrics[0]["generator/adversarial"] == pytest.approx(float(adversarial(after.discriminator)), rel=1e-5)
    assert metrics[0]["generator/adversarial"] != pytest.approx(float(adversarial(before.discriminator)), rel=1e-4)


def test_first_update_of_adam_has_the_size_of_the_learning_rate(plain: tuple) -> None:
    config = tiny()
    _, before = new_state(config)
    after, _ = run_steps(config, 1)
    rate = config.optimizer.learning_rate
    for field in ("model", "discriminator"):
        assert largest_difference(after, before, field) == pytest.approx(rate, rel=1e-2)


def test_gradient_accumulation_equals_one_large_batch() -> None:
    whole, metrics = run_steps(tiny(), 2)
    accumulated, metrics_of_parts = run_steps(tiny("train.micro_batches=2"), 2)
    for ours, theirs in zip(metrics_of_parts, metrics, strict=True):
        assert_metrics_close(ours, theirs, 1e-5)
    assert gradient_difference(accumulated, whole) < 1e-4


def gradient_difference(ours: TrainState, theirs: TrainState) -> float:
    """Largest difference of gradients' sizes, relative to the largest: of the roots of Adam's
    second moments.
    """

    def difference(field: str) -> float:
        a, b = (jax.tree.map(np.sqrt, jax.device_get(getattr(state, field).nu)) for state in (ours, theirs))
        return largest(jax.tree.map(np.subtract, a, b)) / largest(b)

    return max(map(difference, ("model_optimizer", "discriminator_optimizer")))


def largest(tree: nnx.State) -> float:
    return max(float(np.abs(x).max()) for x in jax.tree.leaves(tree))


def test_rematerialisation_is_in_the_program_where_asked() -> None:
    for asked in "true", "false":
        graph, state = new_state(tiny(f"train.rematerialise={asked}"))
        assert ("remat" in str(compiled_step(graph).trace(state, Frozen(), random_batch(tiny())).jaxpr)) == (asked == "true")


@pytest.mark.long
def test_rematerialisation_changes_memory_not_numbers(plain: tuple) -> None:
    _, metrics = run_steps(tiny("train.rematerialise=true"), 2)
    for ours, theirs in zip(metrics, plain[1], strict=False):
        assert_metrics_close(ours, theirs, 1e-5)


def test_bfloat16_keeps_parameters_optimiser_and_losses_in_float32() -> None:
    config = tiny("train.compute_dtype=bfloat16")
    graph, state = new_state(config)
    new, metrics = compiled_step(graph).trace(state, Frozen(), random_batch(config)).out_info
    assert {x.dtype for x in jax.tree.leaves(new)} == {jnp.dtype("float32"), jnp.dtype("int32")}
    assert {x.dtype for x in metrics.values()} == {jnp.dtype("float32")}


@pytest.mark.long
def test_bfloat16_changes_the_losses_little(plain: tuple) -> None:
    assert_metrics_close(run_steps(tiny("train.compute_dtype=bfloat16"), 1)[1][0], plain[1][0], 0.03)


def test_moving_average_follows_the_parameters() -> None:
    graph, state = new_state(tiny("train.ema_decay=0.75"))
    new = jax.tree.map(lambda x: x + 1, jax.device_get(state.model))
    average = jax.jit(functools.partial(moving_average, graph))(state.ema, new)
    for ours, old in zip(jax.tree.leaves(average), jax.tree.leaves(state.model), strict=True):
        np.testing.assert_allclose(ours, old + 0.25, atol=1e-6)
    assert new_state(tiny())[1].ema is None
    after, _ = jax.eval_shape(lambda s: train_step(graph, s, Frozen(), random_batch(tiny())), state)
    assert named_arrays(after).keys() == named_arrays(state).keys()


def test_without_distillation_there_are_no_heads_and_no_targets_are_read() -> None:
    config = tiny("loss.prior=0")
    graph, state = create_state(config, resolve_schedule(config, 10), *build_networks(config, {}))
    batch = {key: value for key, value in random_batch(config).items() if key != "targets"}
    _, metrics = jax.eval_shape(lambda s: train_step(graph, s, Frozen(), batch), state)
    assert "generator/prior_level_3" not in metrics
    assert not any(name.startswith("prior_learner.distillation_heads") for name in named_arrays(state.model))


class DoublingTeacher(nnx.Module):
    """Stands for a teacher on the device: features computed from the photo at 2P."""

    def __init__(self) -> None:
        self.factor = nnx.Param(jnp.asarray(2.0))

    def __call__(self, photo: jax.Array) -> dict[int, jax.Array]:
        reduced = {1: photo[:, ::4, ::4], 2: photo[:, ::4, ::4], 3: photo[:, ::8, ::8]}
        return {level: jnp.repeat(x[..., :1] * self.factor[...], CHANNELS[level], -1) for level, x in reduced.items()}


def test_targets_computed_on_the_device_equal_the_same_targets_from_a_cache() -> None:
    teacher = DoublingTeacher()
    photo = np.random.default_rng(1).integers(0, 256, (4, 64, 64, 3), np.uint8)
    cached = jax.tree.map(np.asarray, teacher(jnp.asarray(photo, jnp.float32) / 255))
    of_cache = jax.jit(functools.partial(targets, Frozen()))({"targets": cached})
    on_device = jax.jit(functools.partial(targets, Frozen(teacher)))({"image_2x": photo})
    assert of_cache.keys() == on_device.keys() == CHANNELS.keys()
    for level, features in of_cache.items():
        np.testing.assert_allclose(on_device[level], features, rtol=1e-6)


@pytest.mark.long
def test_a_step_with_a_teacher_on_the_device_is_one_with_a_cache() -> None:
    config, teacher = tiny(), DoublingTeacher()
    batch = random_batch(config)
    photo = np.random.default_rng(1).integers(0, 256, (4, 64, 64, 3), np.uint8)
    cached = jax.tree.map(np.asarray, teacher(jnp.asarray(photo, jnp.float32) / 255))
    _, with_cache = run_steps(config, 1, batch={**batch, "targets": cached})
    del batch["targets"]
    _, on_device = run_steps(config, 1, Frozen(teacher), {**batch, "image_2x": photo})
    assert_metrics_close(on_device[0], with_cache[0], 1e-6)


def schedule_of(config: Config, steps_per_epoch: int = 100) -> Schedule:
    return resolve_schedule(config, steps_per_epoch)


def test_schedule_converts_epochs_and_drops_the_learning_rate() -> None:
    config = tiny("schedule.unit=epochs", "schedule.length=4", "schedule.learning_rate_drops=2,3", "schedule.prior_loss_until=3")
    schedule = schedule_of(config)
    assert (schedule.length, schedule.drops, schedule.prior_loss_until) == (400, (200, 300), 300)
    rates = [float(learning_rate(schedule, jnp.asarray(step))) for step in (0, 199, 200, 299, 300)]
    assert rates == pytest.approx([1e-4, 1e-4, 1e-5, 1e-5, 1e-6])
    assert [float(prior_switch(schedule, jnp.asarray(step))) for step in (299, 300)] == [1, 0]


def test_learning_rate_scales_with_the_batch_where_asked() -> None:
    assert schedule_of(tiny("train.batch_size=32", "schedule.base_batch_size=8")).learning_rate == pytest.approx(4e-4)
    assert schedule_of(tiny("train.batch_size=32")).learning_rate == pytest.approx(1e-4)


def test_prior_loss_is_reported_but_not_learnt_after_its_end() -> None:
    graph, _ = new_state(tiny("schedule.prior_loss_until=1"))
    batch = random_batch(tiny())
    images, maps = jnp.zeros((4, 1, 32, 32, 3)), {3: jnp.zeros((4, 1, 8, 8, 7))}
    output = SPNOutput(image=images, prior={}, distilled=maps, posterior=None)
    predicted = Predicted(output, DiscriminatorOutput(logits=jnp.zeros((4, 2, 2, 1)), features=()), vgg=())
    floats = {"image": jnp.ones((4, 32, 32, 3)), "mask": jnp.ones((4, 32, 32, 1))}
    references, diversity = References(teacher=batch["targets"], discriminator=(), vgg=()), diversity_of_batch(graph)
    (on, terms), (off, _) = (generator_loss(graph, jnp.asarray(s), floats, predicted, references, diversity) for s in (0, 1))
    assert float(terms["generator/prior"]) > 0
    assert float(on - off) == pytest.approx(float(terms["generator/prior"]), rel=1e-5)


@functools.cache
def lowered(platform: str) -> str:
    """The program of a step for "cpu", "gpu" or "tpu"."""
    graph, state = new_state(tiny())
    with compiled_for(platform):
        traced = jax.jit(train_step, static_argnums=0, donate_argnums=1).trace(graph, state, Frozen(), random_batch(tiny()))
    return traced.lower(lowering_platforms=("cuda" if platform == "gpu" else platform,)).as_text()


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_step_has_plain_convolutions_on_accelerators(platform: str) -> None:
    """The stem at 2P = 64: one convolution there, and on the CPU one of which the kernel's
    columns are features.
    """
    width = tiny().model.width
    plain = f"(tensor<4x70x70x4xf32>, tensor<7x7x4x{width}xf32>) -> tensor<4x64x64x{width}xf32>"
    columns = f"(tensor<4x70x64x28xf32>, tensor<7x1x28x{width}xf32>) -> tensor<4x70x64x{width}xf32>"
    text, on_cpu = lowered(platform), lowered("cpu")
    assert (text.count(plain), text.count(columns)) == (1, 0)
    assert (on_cpu.count(plain), on_cpu.count(columns)) == (0, 1)
    assert "stablehlo.case" not in text + on_cpu


def test_exactly_one_generator_forward_a_step() -> None:
    """The output convolution of the generator is the only one whose result has the photo's
    shape.
    """
    width = tiny().model.width
    assert lowered("gpu").count(f"(tensor<4x38x38x{width}xf32>, tensor<7x7x{width}x3xf32>) -> tensor<4x32x32x3xf32>") == 1


def precisions(text: str) -> dict[str, set[str]]:
    """The precisions of all convolutions and products by the part of the step that they are in, of
    a program's text with its locations.
    """
    places = dict(re.findall(r"^(#loc\d+) = loc\(([^\n]*)", text, re.MULTILINE))
    found: dict[str, set[str]] = {}
    for operation, place in re.findall(r"stablehlo\.(?:convolution|dot_general)([^\n]*) loc\((#loc\d+)\)", text):
        parts = [part for part in ("teacher", "vgg19", "discriminator", "prior_learner", "generator") if part in places[place]]
        precision = "HIGHEST" if "HIGHEST" in operation else "DEFAULT"
        found.setdefault(parts[0] if parts else "elsewhere", set()).add(precision)
    return found


def test_vgg19_and_the_teacher_compute_at_highest_precision_on_a_gpu_and_the_trained_networks_at_default() -> None:
    rng = np.random.default_rng(0)
    frozen = Frozen(TResNetTrunk((1, 2, 3), rng=rng, dtype=jnp.float32), VGG19(rng=rng, dtype=jnp.float32))
    config = tiny(*PROBABILISTIC)
    graph, state = create_state(config, resolve_schedule(config, 10), *build_networks(config, TRESNET_CHANNELS))
    batch = random_batch(config) | {"image_2x": np.zeros((4, 64, 64, 3), np.uint8)}
    del batch["targets"]
    with compiled_for("gpu"):
        traced = jax.jit(lambda *arguments: train_step(graph, *arguments)).trace(state, frozen, batch)
    found = precisions(traced.lower(lowering_platforms=("cuda",)).as_text(debug_info=True))
    found.pop("elsewhere", None)
    assert found == {
        "teacher": {"HIGHEST"},
        "vgg19": {"HIGHEST"},
        "discriminator": {"DEFAULT", "HIGHEST"},  # singular values
        "prior_learner": {"DEFAULT"},
        "generator": {"DEFAULT"},
    }


@pytest.mark.parametrize("options", [(), pytest.param(PROBABILISTIC, marks=pytest.mark.long)], ids=["spn", "probabilistic"])
def test_the_accelerators_program_computes_what_the_cpus_does(options: tuple[str, ...]) -> None:
    """It is run here, on the CPU, which is what the context is told otherwise."""
    config, frozen = tiny(*options), Frozen(vgg=Perceiver() if options else None)
    batch = random_batch(config)
    if options:  # samples that differ visibly, or the diversity loss would magnify rounding
        batch["noise"] = 100 * noise(config, 0)
    graph, state = new_state(config)
    with compiled_for("gpu"):
        _, plain = jax.jit(lambda *arguments: train_step(graph, *arguments))(state, frozen, batch)
    ours = run_steps(config, 1, frozen, batch)[1][0]
    for name, value in plain.items():
        assert ours[name] == pytest.approx(float(value), rel=1e-2 if name.endswith("/update_norm") else 2e-5), name


def norm(tree: nnx.State) -> float:
    return float(np.sqrt(sum(np.square(np.asarray(x, np.float64)).sum() for x in jax.tree.leaves(tree))))


def test_without_a_first_moment_adam_makes_the_same_update() -> None:
    config = tiny()
    graph, state = new_state(config)
    gradients = jax.jit(lambda tree: jax.tree.map(lambda x: jnp.sin(100 * x), tree))(state.model)
    theirs = optax.scale_by_adam(config.optimizer.beta1, config.optimizer.beta2, config.optimizer.epsilon)
    wanted, kept = jax.jit(theirs.update)(gradients, theirs.init(state.model))
    found = jax.jit(lambda *trees: update(graph, state.step, "generator", *trees))(state.model, state.model_optimizer, gradients)
    for old, new, direction in zip(*map(jax.tree.leaves, (state.model, found.parameters, wanted)), strict=True):
        np.testing.assert_allclose(np.asarray(old) - np.asarray(new), 1e-4 * np.asarray(direction), rtol=1e-3, atol=1e-7)
    assert not hasattr(state.model_optimizer, "mu")
    assert hasattr(create_state(tiny("optimizer.beta1=0.5"), graph.schedule, *build_networks(config, CHANNELS))[1].model_optimizer, "mu")
    assert float(found.norms["generator/gradient_norm"]) == pytest.approx(norm(gradients), rel=1e-5)
    assert float(found.norms["generator/update_norm"]) == pytest.approx(1e-4 * norm(wanted), rel=1e-4)
    assert int(kept.count) == int(found.optimizer.count)  # type: ignore[attr-defined]


def test_equal_graphs_share_a_compiled_step() -> None:
    (graph, _), (same, _) = new_state(tiny()), new_state(tiny())
    assert isinstance(graph, StepGraph)
    assert hash(graph) == hash(same)
    assert graph == same


def test_compiled_step_gives_back_the_states_memory() -> None:
    graph, state = new_state(tiny())
    compiled_step(graph)(state, Frozen(), random_batch(tiny()))
    assert all(x.is_deleted() for x in jax.tree.leaves(state.model))


@pytest.mark.gpu
@pytest.mark.parametrize("settings", [(), ("train.precision=highest",), ("train.compute_dtype=bfloat16",), PROBABILISTIC], ids=str)
def test_losses_stay_finite_on_a_gpu(settings: tuple[str, ...]) -> None:
    state, history = run_steps(tiny(*settings), 5, Frozen(vgg=Perceiver()))
    assert all(np.isfinite(value) for metrics in history for value in metrics.values())
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(state))


@pytest.mark.gpu
def test_a_gpus_step_overwrites_the_old_state() -> None:
    """The memory in use does not grow, and nothing of the state before is left."""
    graph, state = new_state(tiny())
    batch, used = random_batch(tiny()), []
    for _ in range(4):
        before = jax.tree.leaves(state)
        state, metrics = compiled_step(graph)(state, Frozen(), batch)
        jax.block_until_ready((state, metrics))
        assert all(x.is_deleted() for x in before)
        del metrics
        used.append(memory())
    assert used[1] == used[2] == used[3]


REPEATED = """
import hashlib, sys, jax, numpy as np
from tests.tiny import run_steps, tiny
state, _ = run_steps(tiny(*sys.argv[1:]), 3)
print(hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(state))).hexdigest())
"""


@pytest.mark.gpu
@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_a_run_on_a_gpu_repeats_bit_for_bit_with_the_flags_that_the_pages_name(compute_dtype: str) -> None:
    flags = {"XLA_FLAGS": "--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    command = [sys.executable, "-c", REPEATED, f"train.compute_dtype={compute_dtype}"]
    first, second = (
        subprocess.run(command, cwd=ROOT, env=os.environ | flags, capture_output=True, text=True, check=True).stdout for _ in range(2)
    )
    assert len(first.split()[-1]) == 64
    assert first == second


# --- the probabilistic model ---


@pytest.fixture(scope="module")
def sampled() -> tuple[TrainState, list]:
    """Two steps of the probabilistic model on two batches."""
    return run_steps(tiny(*PROBABILISTIC), 2, Frozen(vgg=Perceiver()))


def test_probabilistic_loss_is_the_weighted_sum_of_its_terms(sampled: tuple) -> None:
    factors = {"adversarial": 1, "reconstruction": 10, "prior": 1, "feature_matching": 10, "perceptual": 10, "diversity": 1, "kl": 0.05}
    for metrics in sampled[1]:
        assert all(np.isfinite(value) for value in metrics.values())
        total = sum(factor * metrics[f"generator/{name}"] for name, factor in factors.items())
        assert metrics["generator/loss"] == pytest.approx(total, rel=1e-6)


def test_every_parameter_of_the_probabilistic_model_gets_a_gradient(sampled: tuple) -> None:
    sizes = {name: float(np.abs(g).max()) for name, g in named_arrays(sampled[0].model_optimizer.nu).items()}
    silent = {name for name, size in sizes.items() if size == 0}
    # Their loss-free biases: a normalisation without parameters takes every constant away.
    assert all(name.endswith(".bias") for name in silent)
    assert not [name for name in silent if "variational" in name or "prior_blocks" in name]


def noise(config: Config, step: int) -> jax.Array:
    """What a step draws where no noise is given."""
    return jax.random.normal(jax.random.fold_in(jax.random.key(config.train.seed), step), (4, 2, 1, 1, 6))


@pytest.mark.long
def test_bfloat16_changes_the_probabilistic_losses_little(sampled: tuple) -> None:
    low = run_steps(tiny(*PROBABILISTIC, "train.compute_dtype=bfloat16"), 1, Frozen(vgg=Perceiver()))[1][0]
    for name in ("adversarial", "reconstruction", "prior", "feature_matching", "perceptual", "kl"):
        assert low[f"generator/{name}"] == pytest.approx(sampled[1][0][f"generator/{name}"], rel=0.05), name
    assert np.isfinite(low["generator/diversity"])


@pytest.mark.long
def test_noise_follows_from_seed_and_step_and_may_be_given(sampled: tuple) -> None:
    config, vgg = tiny(*PROBABILISTIC), Frozen(vgg=Perceiver())
    same, later = (run_steps(config, 1, vgg, random_batch(config) | {"noise": noise(config, i)})[1][0] for i in (0, 1))
    # At first the samples hardly differ, and the diversity loss magnifies the rounding of that.
    assert same["generator/diversity"] == pytest.approx(sampled[1][0]["generator/diversity"], rel=1e-2)
    for name in ("reconstruction", "feature_matching", "perceptual"):
        assert same[f"generator/{name}"] == pytest.approx(sampled[1][0][f"generator/{name}"], rel=1e-6)
        assert later[f"generator/{name}"] != pytest.approx(sampled[1][0][f"generator/{name}"], rel=1e-6)


@pytest.mark.long
def test_gradient_accumulation_of_the_probabilistic_model_equals_one_large_batch() -> None:
    """The diversity loss is no mean over photos, and holes of different size make its parts
    unlike.
    """
    config, vgg = tiny(*PROBABILISTIC), Frozen(vgg=Perceiver())
    batch = random_batch(config) | {"noise": 100 * noise(config, 0)}  # samples that differ visibly
    batch["mask"][:2, :, 8:] = 0
    whole, metrics = run_steps(config, 1, vgg, batch)
    accumulated, metrics_of_parts = run_steps(tiny(*PROBABILISTIC, "train.micro_batches=2"), 1, vgg, batch)
    assert_metrics_close(metrics_of_parts[0], metrics[0], 1e-4)
    assert gradient_difference(accumulated, whole) < 1e-4


def test_feature_matching_compares_with_the_photos_features_before_the_discriminators_update() -> None:
    config = tiny(*PROBABILISTIC)
    graph, before = new_state(config)
    batch = random_batch(config)
    after, metrics = run_steps(config, 1, Frozen(vgg=Perceiver()), batch)
    image, mask = jnp.asarray(batch["image"], jnp.float32) / 255, jnp.asarray(batch["mask"], jnp.float32)

    @jax.jit
    def expected(before: TrainState, after: TrainState) -> list[jax.Array]:
        once = power_iteration(graph, before.discriminator, before.spectral)
        real = discriminate(graph, DiscriminatorState(before.discriminator, once), image).features
        fakes = merge_samples(nnx.merge(graph.model, before.model)(image, mask, noise(config, 0)).image)
        fake = discriminate(graph, DiscriminatorState(after.discriminator, after.spectral), fakes).features
        return [jnp.abs(split_samples(f, 2) - r[:, None]).mean() for f, r in zip(fake, real, strict=True)]

    distances = list(map(float, expected(before, after)))
    assert metrics[0]["generator/feature_matching"] == pytest.approx(np.mean(distances), rel=1e-4)


def test_photos_are_judged_once_a_step() -> None:
    """Feature matching judges them again with the same kernels; the compiler must see that it is
    the same.
    """
    graph, state = new_state(tiny(*PROBABILISTIC))
    lowered = compiled_step(graph).lower(state, Frozen(vgg=Perceiver()), random_batch(tiny()))
    lines = str(lowered.compile().as_text()).splitlines()
    assert sum("f32[4,16,16,4]{3,2,1,0} convolution(" in line and "size=4x4 stride=2x2" in line for line in lines) == 1


def test_step_of_spl_has_one_prior_and_trains_everything() -> None:
    config = tiny("model.decoder=region_norm", "model.prior_levels=3", "model.prior_encoder_slope=0.1")
    batch = random_batch(config)
    batch["targets"] = {3: batch["targets"][3]}
    state, history = run_steps(config, 1, batch=batch)
    assert history[0]["generator/prior"] == history[0]["generator/prior_level_3"]
    total = history[0]["generator/adversarial"] + 10 * history[0]["generator/reconstruction"] + history[0]["generator/prior"]
    assert history[0]["generator/loss"] == pytest.approx(total, rel=1e-6)
    silent = [name for name, g in named_arrays(state.model_optimizer.nu).items() if float(np.abs(g).max()) == 0]
    assert all(name.endswith(".bias") for name in silent), silent


def test_eight_bit_targets_become_numbers_on_the_device() -> None:
    rng = np.random.default_rng(0)
    codes = {"codes": rng.integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)}
    codes |= {name: rng.standard_normal((2, 3)).astype(np.float32) for name in ("low", "step")}
    plain = rng.standard_normal((2, 4, 4, 5)).astype(np.float32)
    found = jax.jit(lambda batch: targets(Frozen(), batch))({"targets": {2: codes, 3: plain}})
    expected = [codes["low"][i] + codes["step"][i] * codes["codes"][i] for i in range(2)]
    np.testing.assert_allclose(found[2], np.stack(expected), rtol=1e-6)
    np.testing.assert_array_equal(found[3], plain)
    halves = split_batch({"targets": {2: codes}}, 2)["targets"][2]
    assert {name: array.shape for name, array in halves.items()} == {"codes": (2, 1, 4, 4, 3), "low": (2, 1, 3), "step": (2, 1, 3)}


def test_a_part_of_a_batch_takes_photos_from_all_over_it() -> None:
    """So that each part stays spread over all devices, which hold consecutive photos."""
    parts = split_batch({"image": jnp.arange(8)}, 2)["image"]
    np.testing.assert_array_equal(parts, [[0, 2, 4, 6], [1, 3, 5, 7]])
