"""Measures how fast photos, masks and features are read, in parts and in whole batches.

Each part runs on one core; batches come from the trainer's threads, alone and beside a step. The
data are the config's: `make demo` makes some for configs/demo.py.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from scripts.benchmark_step import ROOT, stepper
from spn_jax.config import Config, load_config
from spn_jax.data.images import prepare_photo
from spn_jax.errors import InputError
from spn_jax.runtime.sharding import check_divisible, make_mesh, shard_batch
from spn_jax.training.inputs import Data, open_data, open_distillation_targets, open_frozen, read_batches

WARM_UP = 2  # number of batches and of steps before the timed ones


@dataclasses.dataclass(frozen=True)
class Rate:
    """The rate of one part of the input, or of a loop."""

    part: str
    photos: int
    seconds: float
    cpu_seconds: float  # processor time of all threads of this process

    @property
    def photos_per_s(self) -> float:
        return self.photos / self.seconds

    @property
    def photos_per_cpu_s(self) -> float:
        """Photos a second that one core delivers."""
        return self.photos / self.cpu_seconds


def add_arguments(part: argparse.ArgumentParser) -> None:
    """Declares `benchmark.py input`."""
    part.add_argument("--config", type=Path, default=ROOT / "configs" / "demo.py")
    part.add_argument("--batches", type=int, default=20, help="timed after two that are not")
    part.add_argument(
        "--step", action="store_true", help="then the training step, on one batch again and again and on the data as they come"
    )
    part.add_argument("--json", type=Path, metavar="FILE", help="the numbers as JSON, one line a part")
    part.add_argument("overrides", nargs="*", metavar="section.key=value", help="such as data.train_photos=DIR data.threads=8")
    part.set_defaults(run=run)


def run(options: argparse.Namespace) -> str:
    """Returns the table in Markdown."""
    if options.batches < 1:
        raise InputError(f"--batches {options.batches}: there must be one at least")
    config = load_config(options.config, options.overrides)
    data = open_data(config, str(options.config))
    rates = [*parts(config, data, options.batches * config.train.batch_size), whole_batches(config, data, options.batches)]
    if options.step:
        rates += steps(config, data, options.batches)
    if options.json:
        lines = [
            dataclasses.asdict(rate) | {"photos_per_s": rate.photos_per_s, "photos_per_cpu_s": rate.photos_per_cpu_s} for rate in rates
        ]
        options.json.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return "\n".join(report(config, data, rates))


def parts(config: Config, data: Data, photos: int) -> Iterator[Rate]:
    """Times each part alone, in this thread, over so many photos, which are repeated if there are
    fewer.
    """
    order = list(itertools.islice(itertools.cycle(range(len(data.photos))), photos))
    size, crop, resize_filter = config.data.image_size, config.data.crop, config.data.resize_filter
    yield timed("photos: read", data.photos.read, order)
    files = [data.photos.read(i) for i in order[:1000]]
    yield timed("photos: decoded", lambda n: data.photos.decode(order[n], files[n]), range(len(files)))
    decoded = [data.photos.decode(i, file) for i, file in zip(order[:100], files, strict=False)]
    yield timed("photos: cropped and resized", lambda n: prepare_photo(decoded[n], size, crop, resize_filter), range(len(decoded)))
    spread = max(1, len(data.masks) // photos)  # covers all hole ratios, since sets are ordered by them
    yield timed("masks", lambda i: data.masks.load(i * spread % len(data.masks)), range(photos))
    if (cache := data.cache) is not None:
        yield timed("features", lambda i: cache.features(i, False), order)


def timed(part: str, work: Callable[[int], Any], over: Any) -> Rate:
    """Times `work` on each of `over`, after one untimed call."""
    work(over[0])
    wall, cpu = time.perf_counter(), time.process_time()
    for i in over:
        work(i)
    return Rate(part, len(over), time.perf_counter() - wall, time.process_time() - cpu)


def whole_batches(config: Config, data: Data, batches: int) -> Rate:
    """Times batches from the trainer's threads, with no other load."""
    # batches read ahead before the clock starts would count as free
    ahead = WARM_UP + config.data.prefetch
    steps = ahead + batches + config.data.prefetch  # the threads must not run out of work at the end either
    with contextlib.closing(read_batches(config, data, 0, steps)) as iterator:
        for _ in range(ahead):
            next(iterator)
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(batches):
            next(iterator)
        return Rate("whole batches", batches * config.train.batch_size, time.perf_counter() - wall, time.process_time() - cpu)


def steps(config: Config, data: Data, batches: int) -> list[Rate]:
    """Times the trainer's step on one batch, and on the data. Each step is waited for once the next
    has started.
    """
    mesh = make_mesh()
    check_divisible(config.train.batch_size, mesh.size, "train.batch_size", config.train.micro_batches)
    frozen, origins = open_frozen(config)
    distillation = open_distillation_targets(config, data, frozen, origins.teacher)
    with contextlib.closing(read_batches(config, data, 0, 1)) as iterator:
        batch = next(iterator)
    _, step = stepper(config, mesh, distillation.channels, batch, frozen)
    alone = loop("steps on one batch", step, itertools.repeat(batch), batches, config, mesh)
    ahead = config.data.prefetch  # the threads must not run out of work at the end
    with contextlib.closing(read_batches(config, data, 0, WARM_UP + batches + ahead)) as iterator:
        return [alone, loop("steps on the data", step, iterator, batches, config, mesh)]


def loop(part: str, step: Callable[[Any], Any], batches: Iterator[Any], count: int, config: Config, mesh: Mesh) -> Rate:
    """Times so many steps, after two untimed ones."""
    before = None
    for number in range(WARM_UP + count):
        if number == WARM_UP:
            jax.block_until_ready(before)
            wall, cpu = time.perf_counter(), time.process_time()
        metrics = step(shard_batch(next(batches), mesh))
        jax.block_until_ready(before)
        before = metrics
    jax.block_until_ready(before)
    return Rate(part, count * config.train.batch_size, time.perf_counter() - wall, time.process_time() - cpu)


def report(config: Config, data: Data, rates: Sequence[Rate]) -> Iterator[str]:
    """Yields the lines of the table."""
    features = "no features" if data.cache is None else f"features in {data.cache.manifest.dtype}"
    photos, masks = f"{len(data.photos):,} photos", f"{len(data.masks):,} masks"
    yield f"{config.data.train_photos} at {config.data.image_size} pixels: {photos}, {masks}, {features}"
    yield (
        f"batches of {config.train.batch_size}, {config.data.threads} threads, {config.data.prefetch} batches ahead, "
        f"{os.cpu_count()} cores, {jax.device_count()} x {jax.devices()[0].device_kind}"
    )
    yield ""
    yield "| part | photos/s | CPU ms a photo | photos/s a core |"
    yield "|---|---|---|---|"
    for rate in rates:
        yield f"| {rate.part} | {rate.photos_per_s:.1f} | {1000 / rate.photos_per_cpu_s:.2f} | {rate.photos_per_cpu_s:.1f} |"
    speeds = {rate.part: rate.photos_per_s for rate in rates}
    if alone := speeds.get("steps on one batch"):
        yield ""
        yield (
            f"The input brings {speeds['whole batches'] / alone:.1f} times what the step takes; "
            f"on the data the step is at {speeds['steps on the data'] / alone:.0%} of its speed on one batch."
        )
