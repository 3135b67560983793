"""Seconds, memory and arithmetic rate of the forward pass and of the training step, on drawn data.

Imports no data loader, so that it runs on a bare accelerator image.
"""

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from spn_jax.config import Config, apply_overrides, load_config
from spn_jax.models.vgg import VGG19
from spn_jax.sharding import make_mesh, replicate, shard_batch
from spn_jax.step import Frozen, build_networks, compile_train_step, create_state, resolve_schedule

ROOT = Path(__file__).resolve().parent.parent
CHANNELS = {1: 76, 2: 76, 3: 152}  # of TResNet-L's features
PASSES = ("forward", "step")
MATRIX = 4096  # side of the matrices whose product tells what the device can do (1024 on a CPU)


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Of one pass over one batch."""

    what: str
    size: int
    batch: int
    numbers: str  # float32, TF32, bf16 passes or bfloat16: what the matrix units compute in
    compile_s: float
    median_s: float
    least_s: float
    largest_s: float
    images_per_s: float
    tflop: float  # floating-point operations, a multiply-add as two
    tflop_per_s: float
    share_of_matrix_product: float  # of the rate of a large matrix product in the same numbers
    memory_gb: float  # arguments, results and temporary memory of the compiled program, on one device


def add_arguments(commands: Any) -> None:
    """Declares `benchmark.py step`."""
    part = commands.add_parser("step", help="seconds, memory and FLOP/s of forward pass and training step")
    part.add_argument("--config", type=Path, default=ROOT / "configs" / "celeba.py")
    part.add_argument("--size", type=int, help="pixels; data.image_size if not given")
    part.add_argument("--batch", type=int, nargs="+", default=[1], help="photos on all devices; several are measured one after the other")
    part.add_argument("--pass", dest="passes", choices=PASSES, nargs="+", default=list(PASSES))
    part.add_argument("--repeats", type=int, default=5, help="timed after one that is not")
    part.add_argument("--json", type=Path, metavar="FILE", help="the numbers as JSON, one line a measurement")
    part.add_argument("overrides", nargs="*", metavar="section.key=value", help="such as train.compute_dtype=bfloat16")
    part.set_defaults(run=run)


def run(options: argparse.Namespace) -> str:
    """The table, in Markdown."""
    config = load_config(options.config, options.overrides)
    if options.size:
        config = apply_overrides(config, [f"data.image_size={options.size}"])
    mesh = make_mesh()
    rate = matrix_rate(config)
    measured = []
    for batch in options.batch:
        for what in options.passes:
            measured.append(measure(what, apply_overrides(config, [f"train.batch_size={batch}"]), mesh, options.repeats, rate))
            print(json.dumps(dataclasses.asdict(measured[-1])), flush=True)
    device = f"{mesh.size} x {jax.devices()[0].device_kind}"
    if options.json:
        options.json.write_text("".join(json.dumps({"device": device, **dataclasses.asdict(m)}) + "\n" for m in measured))
    return table(f"{options.config.stem} on {device}, jax {jax.__version__}", measured)


def measure(what: str, config: Config, mesh: Mesh, repeats: int, rate: float) -> Measurement:
    """Compiles a pass and times it; `rate` is the device's own in operations a second."""
    with jax.default_matmul_precision("highest") if config.train.precision == "highest" else jax.default_matmul_precision(None):
        start = time.perf_counter()
        program, call = {"forward": forward, "step": training_step}[what](config, mesh)
        compiling = time.perf_counter() - start
    call()
    seconds = [timed(call) for _ in range(repeats)]
    cost, memory = program.cost_analysis(), program.memory_analysis()
    operations = (cost[0] if isinstance(cost, list) else cost)["flops"] * mesh.size
    median, batch = statistics.median(seconds), config.train.batch_size
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes + memory.temp_size_in_bytes
    return Measurement(
        what=what,
        size=config.data.image_size,
        batch=batch,
        numbers=numbers(config),
        compile_s=round(compiling, 2),
        median_s=median,
        least_s=min(seconds),
        largest_s=max(seconds),
        images_per_s=batch / median,
        tflop=operations / 1e12,
        tflop_per_s=operations / median / 1e12,
        share_of_matrix_product=operations / median / rate,
        memory_gb=held / 1e9,
    )


def timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def numbers(config: Config) -> str:
    """What matrix units compute in."""
    if config.train.compute_dtype == "bfloat16":
        return "bfloat16"
    if config.train.precision == "highest":
        return "float32"
    return {"gpu": "TF32", "tpu": "bf16 passes"}.get(jax.default_backend(), "float32")


def draw_batch(config: Config) -> dict[str, Any]:
    """A batch of noise with the features of a teacher."""
    random, b, p = np.random.default_rng(0), config.train.batch_size, config.data.image_size
    batch: dict[str, Any] = {
        "image": random.integers(0, 256, (b, p, p, 3), np.uint8),
        "mask": (random.random((b, p, p, 1)) < 0.3).astype(np.uint8),
    }
    sides = {1: p // 2, 2: p // 2, 3: p // 4}
    targets = {level: random.standard_normal((b, sides[level], sides[level], CHANNELS[level])) for level in config.model.prior_levels}
    return batch | {"targets": {level: features.astype(jnp.bfloat16) for level, features in targets.items()}}


def forward(config: Config, mesh: Mesh) -> tuple[Any, Callable[[], Any]]:
    """The completed images of a batch, compiled, and a call that waits for them."""
    model, _ = build_networks(config, {level: CHANNELS[level] for level in config.model.prior_levels})
    graph, state = nnx.split(model)
    batch = draw_batch(config)
    image, mask = (shard_batch(batch[name].astype(np.float32) / scale, mesh) for name, scale in (("image", 255), ("mask", 1)))
    noise = None
    if model.variational:
        noise = shard_batch(np.asarray(model.draw_noise(jax.random.key(0), len(batch["image"]), 1, *batch["image"].shape[1:3])), mesh)
    arguments = (replicate(nnx.as_pure(state), mesh), image, mask, noise)
    compiled = jax.jit(lambda state, image, mask, noise: nnx.merge(graph, state)(image, mask, noise).image).lower(*arguments).compile()
    return compiled, lambda: jax.block_until_ready(compiled(*arguments))


def training_step(config: Config, mesh: Mesh) -> tuple[Any, Callable[[], Any]]:
    """The training step, compiled, and a call that makes one and waits for it."""
    networks = build_networks(config, {level: CHANNELS[level] for level in config.model.prior_levels})
    graph, state = create_state(config, resolve_schedule(config, 1000), *networks)
    frozen = Frozen()
    if config.loss.perceptual or config.loss.diversity:
        frozen = Frozen(vgg=VGG19(rng=np.random.default_rng(0), dtype=jnp.float32))
    state, frozen, batch = replicate(state, mesh), replicate(frozen, mesh), shard_batch(draw_batch(config), mesh)
    compiled = compile_train_step(mesh).lower(graph, state, frozen, batch).compile()  # type: ignore[attr-defined]

    def call() -> None:
        nonlocal state
        state, metrics = compiled(state, frozen, batch)
        jax.block_until_ready((state, metrics))

    return compiled, call


def matrix_rate(config: Config) -> float:
    """Operations a second of a large matrix product on one device, in the numbers that the networks compute in."""
    side = MATRIX if jax.default_backend() != "cpu" else MATRIX // 4
    matrix = jnp.ones((side, side), jnp.dtype(config.train.compute_dtype))
    precision = "highest" if config.train.precision == "highest" else None
    product = jax.jit(lambda a: jnp.matmul(a, a, precision=precision))
    jax.block_until_ready(product(matrix))
    best = min(timed(lambda: jax.block_until_ready(product(matrix))) for _ in range(5))
    return 2 * side**3 / best * len(jax.devices())


def table(title: str, measured: Sequence[Measurement]) -> str:
    """One line a measurement."""
    return "\n".join([title, "", *rows(measured)])


def rows(measured: Sequence[Measurement]) -> Iterator[str]:
    yield "| pass | pixels | batch | numbers | compile s | median s | from - to s | images/s | TFLOP/s | of matmul | memory GB |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    for m in measured:
        seconds = f"{m.compile_s:.1f} | {m.median_s:.4f} | {m.least_s:.4f} - {m.largest_s:.4f}"
        rates = f"{m.images_per_s:.2f} | {m.tflop_per_s:.3f} | {m.share_of_matrix_product:.0%}"
        yield f"| {m.what} | {m.size} | {m.batch} | {m.numbers} | {seconds} | {rates} | {m.memory_gb:.2f} |"
