"""Measures time, memory and arithmetic rate of forward pass and training step, on random data.

It imports no data loader, so that it runs on a minimal accelerator image.
"""

import argparse
import contextlib
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from scripts import benchmark_kinds
from spn_jax.config import Config, apply_overrides, load_config
from spn_jax.errors import InputError
from spn_jax.models.convolution import AN_ACCELERATOR, compiled_for
from spn_jax.models.vgg import VGG19
from spn_jax.runtime.compiling import compile_timed
from spn_jax.runtime.device import only_cpu
from spn_jax.runtime.sharding import check_divisible, make_mesh, replicate, shard_batch, state_sharding
from spn_jax.training.state import Frozen, StepGraph, build_networks, create_state, resolve_schedule
from spn_jax.training.step import compile_train_step, matmul_precision

ROOT = Path(__file__).resolve().parent.parent
CHANNELS = {1: 76, 2: 76, 3: 152}  # channels of TResNet-L's features
PASSES = ("forward", "step")
TRACED = 5  # calls that a profile is kept of
MATRIX = 4096  # side of the matrices whose product measures the device's peak rate (1024 on a CPU)
NUMBERS = {
    "float32": ("train.compute_dtype=float32", "train.precision=highest"),
    "default": ("train.compute_dtype=float32", "train.precision=default"),
    "bfloat16": ("train.compute_dtype=bfloat16", "train.precision=default"),
}


@dataclasses.dataclass(frozen=True)
class Measurement:
    """The measurements of one pass over one batch."""

    what: str
    size: int
    batch: int
    numbers: str  # float32, TF32, bf16 passes or bfloat16: the matrix units' type
    trace_s: float  # as in `compile_timed`
    compile_s: float
    median_s: float
    least_s: float
    largest_s: float
    images_per_s: float
    tflop: float  # floating-point operations that the result needs, a multiply-add as two
    tflop_per_s: float
    share_of_matrix_product: float  # share of the rate of a large matrix product in the same type
    # arguments, results and temporary memory of the compiled program, on one device
    memory_gb: float
    # most memory that one device held since the program began; None if the device does not report
    # it
    peak_gb: float | None


class Compiled(NamedTuple):
    """A compiled program, and the cost of making it."""

    program: Any
    operations: float  # floating-point operations of all devices together
    trace_s: float
    compile_s: float


def add_arguments(part: argparse.ArgumentParser) -> None:
    """Declares `benchmark.py step`."""
    part.add_argument("--config", type=Path, default=ROOT / "configs" / "celeba.py")
    part.add_argument("--size", type=int, help="pixels; data.image_size if not given")
    part.add_argument("--batch", type=int, nargs="+", default=[1], help="photos on all devices; several are measured one after the other")
    part.add_argument("--pass", dest="passes", choices=PASSES, nargs="+", default=list(PASSES))
    part.add_argument(
        "--numbers",
        choices=NUMBERS,
        nargs="+",
        help="what to compute in, one after the other: float32 at highest precision, the device's default for float32 (TF32 on a GPU, "
        "bf16 passes on a TPU), bfloat16; the config's if not given",
    )
    part.add_argument("--devices", type=int, metavar="N", help="the first N devices; a CPU plays as many. All of them if not given")
    part.add_argument("--repeats", type=int, default=5, help="timed after one that is not")
    part.add_argument(
        "--trace",
        type=Path,
        metavar="DIR",
        help="profiles of five more repeats of each, for TensorBoard or Perfetto, and a table of where the time goes",
    )
    part.add_argument("--json", type=Path, metavar="FILE", help="the numbers as JSON, one line a measurement")
    part.add_argument("overrides", nargs="*", metavar="section.key=value", help="such as train.compute_dtype=bfloat16")
    part.set_defaults(run=run)


def run(options: argparse.Namespace) -> str:
    """Returns the table in Markdown."""
    config = load_config(options.config, options.overrides)
    if options.size:
        config = apply_overrides(config, [f"data.image_size={options.size}"])
    mesh = mesh_of(options.devices)
    device = f"{mesh.size} x {jax.devices()[0].device_kind}"
    measured = []
    for chosen in options.numbers or [None]:
        in_numbers = apply_overrides(config, NUMBERS[chosen]) if chosen else config
        name = chosen or numbers(config).replace(" ", "-")
        rate = matrix_rate(in_numbers, mesh)
        for batch in options.batch:
            check_divisible(batch, mesh.size, "--batch", config.train.micro_batches)
            for what in options.passes:
                sized = apply_overrides(in_numbers, [f"train.batch_size={batch}"])
                trace = options.trace / f"{what}-{name}-{batch}" if options.trace else None
                measured.append(measure(what, sized, mesh, options.repeats, rate, trace))
                print(json.dumps(dataclasses.asdict(measured[-1])), flush=True)
                if options.json:  # now, because the next one may not fit into memory
                    options.json.write_text("".join(json.dumps({"device": device, **dataclasses.asdict(m)}) + "\n" for m in measured))
    return table(f"{options.config.stem} on {device}, jax {jax.__version__}", measured)


def mesh_of(devices: int | None) -> Mesh:
    """Makes a mesh of the first so many devices, or all. A CPU simulates them if JAX has not begun
    yet. Raises InputError if there are fewer.
    """
    if devices is not None and devices < 1:
        raise InputError(f"--devices {devices}: there must be one at least")
    if devices is not None and only_cpu():
        with contextlib.suppress(RuntimeError):  # JAX has begun, so its devices are fixed
            jax.config.update("jax_num_cpu_devices", devices)
    if devices is not None and devices > jax.device_count():
        raise InputError(f"--devices {devices}: there are {jax.device_count()} here; ask for so many at most")
    return make_mesh(devices)


def measure(what: str, config: Config, mesh: Mesh, repeats: int, rate: float, trace: Path | None = None) -> Measurement:
    """Compiles a pass and times it. `rate` is the devices' own, in operations a second. Profiles
    are written to the folder `trace`, and a table of them is printed.
    """
    needed = needed_operations(what, config, mesh)
    compiled, call = compile_pass(what, config, mesh)
    call()
    seconds = [timed(call) for _ in range(repeats)]
    if trace is not None:
        print(where_time_goes(what, compiled.program.as_text(), call, trace), flush=True)
    memory, operations = compiled.program.memory_analysis(), compiled.operations if needed is None else needed
    median, batch = statistics.median(seconds), config.train.batch_size
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes + memory.temp_size_in_bytes
    return Measurement(
        what=what,
        size=config.data.image_size,
        batch=batch,
        numbers=numbers(config),
        trace_s=round(compiled.trace_s, 2),
        compile_s=round(compiled.compile_s, 2),
        median_s=median,
        least_s=min(seconds),
        largest_s=max(seconds),
        images_per_s=batch / median,
        tflop=operations / 1e12,
        tflop_per_s=operations / median / 1e12,
        share_of_matrix_product=operations / median / rate,
        memory_gb=held / 1e9,
        peak_gb=peak_gb(mesh),
    )


def where_time_goes(what: str, program: str, call: Callable[[], Any], folder: Path) -> str:
    """Profiles some calls, each into a folder of its own, and returns a table of the least times of
    their operations.
    """
    folders = [folder / str(i) for i in range(TRACED)]
    for one in folders:
        with jax.profiler.trace(one):
            call()
    return (
        benchmark_kinds.table(
            f"where a {what}'s time goes", benchmark_kinds.by_kind(program, benchmark_kinds.seconds_of_instructions(folders))
        )
        + "\n"
    )


def peak_gb(mesh: Mesh) -> float | None:
    """Returns the most memory that any device held since the program began, which only accelerators
    report.
    """
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in mesh.local_devices]
    return max(peaks) / 1e9 if any(peaks) else None


def timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def numbers(config: Config) -> str:
    """Returns the type that matrix units compute in."""
    if config.train.compute_dtype == "bfloat16":
        return "bfloat16"
    if config.train.precision == "highest":
        return "float32"
    return {"gpu": "TF32", "tpu": "bf16 passes"}.get(jax.default_backend(), "float32")


def draw_batch(config: Config) -> dict[str, Any]:
    """Draws a batch of noise with the features of a teacher."""
    random, b, p = np.random.default_rng(0), config.train.batch_size, config.data.image_size
    batch: dict[str, Any] = {
        "image": random.integers(0, 256, (b, p, p, 3), np.uint8),
        "mask": (random.random((b, p, p, 1)) < 0.3).astype(np.uint8),
    }
    sides = {1: p // 2, 2: p // 2, 3: p // 4}
    targets = {level: random.standard_normal((b, sides[level], sides[level], CHANNELS[level])) for level in config.model.prior_levels}
    return batch | {"targets": {level: features.astype(jnp.bfloat16) for level, features in targets.items()}}


def compile_pass(what: str, config: Config, mesh: Mesh) -> tuple[Compiled, Callable[[], Any]]:
    """Compiles one of PASSES. Also returns a call that runs it once and waits."""
    return {"forward": forward, "step": training_step}[what](config, mesh)


def forward(config: Config, mesh: Mesh) -> tuple[Compiled, Callable[[], Any]]:
    """Compiles the completion of a batch. Also returns a call that runs it and waits."""
    program, arguments = forward_program(config, mesh)
    compiled = compile_program(program, arguments, config)
    return compiled, lambda: jax.block_until_ready(compiled.program(*arguments))


def training_step(config: Config, mesh: Mesh) -> tuple[Compiled, Callable[[], Any]]:
    """Compiles the training step. Also returns a call that makes one step and waits."""
    batch = draw_batch(config)
    compiled, step = stepper(config, mesh, channels_of(config), batch, draw_frozen(config))
    on_devices = shard_batch(batch, mesh)
    return compiled, lambda: jax.block_until_ready(step(on_devices))


def compile_program(function: Any, arguments: Sequence[Any], config: Config) -> Compiled:
    """Compiles a jitted function for these arguments."""
    with matmul_precision(config):
        made = compile_timed(function, *arguments)
    return Compiled(made.program, operations_of(made.lowered), made.trace_s, made.compile_s)


def operations_of(lowered: Any) -> float:
    """Counts floating-point operations of a program that is not yet compiled nor divided among
    devices.

    In a compiled program, convolutions on a GPU are library calls, and XLA counts none of their
    operations.
    """
    return float(lowered.cost_analysis()["flops"])


def needed_operations(what: str, config: Config, mesh: Mesh) -> float | None:
    """Counts the operations that the result of a pass needs, if its own program would give another
    count; else None.

    Micro-batches and rematerialisation compute parts of the forward pass again, which is no
    progress, and XLA counts the body of a loop once. On a CPU convolutions have forms with more
    products or, by Winograd, fewer; those of an accelerator are counted, so that a faster form
    does not show as less work.
    """
    plain = apply_overrides(config, ["train.micro_batches=1", "train.rematerialise=false"])
    if plain == config and mesh.devices.flat[0].platform != "cpu":
        return None
    if what == "forward":
        program, arguments = forward_program(plain, mesh)
    else:
        program, arguments = step_program(plain, mesh, channels_of(plain), draw_batch(plain), draw_frozen(plain))
    with matmul_precision(plain), compiled_for(AN_ACCELERATOR):
        return operations_of(program.lower(*arguments))


def channels_of(config: Config) -> dict[int, int]:
    """Returns the channels, by level, of the teacher's maps that this config's prior imitates."""
    return {level: CHANNELS[level] for level in config.model.prior_levels}


def forward_program(config: Config, mesh: Mesh) -> tuple[Any, tuple[Any, ...]]:
    """Returns the completion of a batch as a jitted function, and its arguments."""
    model, _ = build_networks(config, channels_of(config))
    graph, state = nnx.split(model)
    batch = draw_batch(config)
    image, mask = (shard_batch(batch[name].astype(np.float32) / scale, mesh) for name, scale in (("image", 255), ("mask", 1)))
    noise = None
    if model.variational:
        noise = shard_batch(np.asarray(model.draw_noise(jax.random.key(0), len(batch["image"]), 1, *batch["image"].shape[1:3])), mesh)
    arguments = (replicate(nnx.as_pure(state), mesh), image, mask, noise)
    return jax.jit(lambda state, image, mask, noise: nnx.merge(graph, state)(image, mask, noise).image), arguments


def step_program(config: Config, mesh: Mesh, channels: Mapping[int, int], batch: Any, frozen: Frozen) -> tuple[Any, tuple[Any, Any, Any]]:
    """Returns the trainer's step as a jitted function, and its arguments: state, frozen networks,
    batch. Channels are as in `stepper`.
    """
    graph, state = create_state(config, resolve_schedule(config, 1000), *build_networks(config, channels))
    program, sharding = jitted_step(config, graph, state, mesh)
    return program, (jax.device_put(state, sharding), replicate(frozen, mesh), shard_batch(batch, mesh))


def draw_frozen(config: Config) -> Frozen:
    """Makes VGG19 with random weights if a loss needs it."""
    needed = config.loss.perceptual or config.loss.diversity
    return Frozen(vgg=VGG19(rng=np.random.default_rng(0), dtype=jnp.float32)) if needed else Frozen()


def stepper(config: Config, mesh: Mesh, channels: Mapping[int, int], batch: Any, frozen: Frozen) -> tuple[Compiled, Callable[[Any], Any]]:
    """Compiles the training step for batches like this one. Also returns a function that starts it
    on a batch (on the devices) and returns its metrics.

    `channels` are those of the teacher's maps by level.
    """
    program, (state, frozen, example) = step_program(config, mesh, channels, batch, frozen)
    compiled = compile_program(program, (state, frozen, example), config)

    def step(batch: Any) -> Any:
        nonlocal state
        state, metrics = compiled.program(state, frozen, batch)
        return metrics

    return compiled, step


def jitted_step(config: Config, graph: StepGraph, state: Any, mesh: Mesh) -> tuple[Any, Any]:
    """Returns the trainer's step, not yet compiled, and the sharding of its state between steps."""
    split = config.train.shard_parameters
    sharding = state_sharding(state, mesh, split)
    return compile_train_step(graph, mesh, sharding if split else None), sharding


def matrix_rate(config: Config, mesh: Mesh) -> float:
    """Measures operations a second of a large matrix product, in the networks' type, of all devices
    together.

    Simulated devices share the CPU's cores, and one of them uses all.
    """
    side = MATRIX if jax.default_backend() != "cpu" else MATRIX // 4
    matrix = jnp.ones((side, side), jnp.dtype(config.train.compute_dtype))
    precision = "highest" if config.train.precision == "highest" else None
    product = jax.jit(lambda a: jnp.matmul(a, a, precision=precision))
    jax.block_until_ready(product(matrix))
    best = min(timed(lambda: jax.block_until_ready(product(matrix))) for _ in range(5))
    return 2 * side**3 / best * (mesh.size if jax.default_backend() != "cpu" else 1)


def table(title: str, measured: Sequence[Measurement]) -> str:
    """Formats one line a measurement."""
    return "\n".join([title, "", *rows(measured)])


def rows(measured: Sequence[Measurement]) -> Iterator[str]:
    yield (
        "| pass | pixels | batch | numbers | trace s | compile s | median s | from - to s | images/s | TFLOP/s | of matmul | memory GB "
        "| peak GB |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|---|"
    for m in measured:
        seconds = f"{m.trace_s:.1f} | {m.compile_s:.1f} | {m.median_s:.4f} | {m.least_s:.4f} - {m.largest_s:.4f}"
        rates = f"{m.images_per_s:.2f} | {m.tflop_per_s:.3f} | {m.share_of_matrix_product:.0%}"
        peak = "-" if m.peak_gb is None else f"{m.peak_gb:.2f}"
        yield f"| {m.what} | {m.size} | {m.batch} | {m.numbers} | {seconds} | {rates} | {m.memory_gb:.2f} | {peak} |"
