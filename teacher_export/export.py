"""Runs a teacher over the training photos and fills the feature cache that the trainer reads."""

import dataclasses
import itertools
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from typing import TypeVar

import numpy as np

from spn_jax.config import Config
from spn_jax.data.images import PhotoSource, open_photos, teacher_photo
from spn_jax.data.teacher import DTYPES, CacheWriter, Level, Manifest, export_command, orientations, preparation
from spn_jax.errors import InputError
from teacher_export.frameworks import torch
from teacher_export.teachers import Teacher

Result = TypeVar("Result")

SECONDS_BETWEEN_LINES = 10.0
SAMPLE_PHOTOS = 4  # whose compressed size stands for all


def export(config: Config, teacher: Teacher) -> Manifest:
    """Brings the cache in `config.teacher.cache` to completion and returns its manifest.

    Raises:
        InputError: the photos, the cache folder or the disk do not allow it; see CacheWriter for what a restart may change.
    """
    if not config.teacher.cache:
        raise InputError(f"teacher.cache is not set; run {export_command('FOLDER')}")
    # On the CPU each batch has a core to itself. Threads inside an operation would wait for each other at every one of
    # them (ten times slower where other programs want the cores too), and the features' last bits would depend on their number.
    torch.set_num_threads(1)
    photos = open_photos(config.data.train_photos, "data.train_photos")
    plan = make_plan(config, teacher, photos)
    with CacheWriter(config.teacher.cache, plan) as writer:
        print(f"teacher {plan.teacher}, weights {plan.weights_origin}, sha256 {plan.weights_sha256[:12]}")
        if writer.complete:
            print(f"{config.teacher.cache} is complete: {plan.photo_count:,} photos, nothing to do", flush=True)
            return writer.finish()
        if writer.unfinished:
            require_space(config, teacher, photos, writer)
            write_shards(config, teacher, photos, writer)
        manifest = writer.finish()
    print(
        f"{config.teacher.cache} is complete: {sum(s.bytes for s in manifest.shards):,} bytes in {len(manifest.shards)} shards", flush=True
    )
    return manifest


def make_plan(config: Config, teacher: Teacher, photos: PhotoSource) -> Manifest:
    """What the cache will hold. The features' shapes are those of one trial pass."""
    size = config.data.image_size
    if size % 4:
        raise InputError(f"data.image_size={size} must be divisible by 4 to have features at a quarter of it")
    blank = np.zeros((1, 2 * size, 2 * size, 3), np.uint8)
    shapes = {level: features.shape[1:] for level, features in run_teacher(teacher, blank, config.teacher.dtype).items()}
    count = orientations(config)
    return Manifest(
        teacher=teacher.name,
        weights_origin=teacher.weights_origin,
        weights_sha256=teacher.weights_sha256,
        photos_sha256=photos.fingerprint(),
        photo_count=len(photos),
        orientations=count,
        image_size=size,
        preparation=preparation(config),
        dtype=config.teacher.dtype,
        photos_per_shard=max(1, config.teacher.records_per_shard // count),
        levels=tuple(
            Level(level=level, name=teacher.layers[level], height=h, width=w, channels=c) for level, (h, w, c) in sorted(shapes.items())
        ),
    )


def run_teacher(teacher: Teacher, photos: np.ndarray, dtype: str) -> dict[int, np.ndarray]:
    """uint8 photos (b, 2P, 2P, 3) -> {level: (b, h, w, c)} in `dtype`. InputError if a value is not finite."""
    # A mirrored batch is a view with negative strides, which torch refuses.
    images = torch.from_numpy(np.ascontiguousarray(photos)).to(teacher.device).float() / 255
    try:
        features = teacher(images)
    except torch.OutOfMemoryError as error:
        raise InputError(f"{teacher.device} has too little memory for teacher.batch_size={len(photos)}; choose a smaller one") from error
    if not all(torch.isfinite(f).all() for f in features.values()):
        raise InputError(
            f"teacher {teacher.name} with weights {teacher.weights_origin} gives features that are not finite; check the weights"
        )
    return {level: _to_numpy(f, dtype) for level, f in features.items()}


def _to_numpy(features: torch.Tensor, dtype: str) -> np.ndarray:
    if dtype == "float32":
        return features.cpu().numpy()
    # Rounded on the device, half the bytes to move; numpy has no bfloat16 of its own, so the bits travel as integers.
    return features.to(torch.bfloat16).contiguous().view(torch.int16).cpu().numpy().view(DTYPES[dtype])


def records(teacher: Teacher, photos: np.ndarray, plan: Manifest) -> Iterator[dict[int, np.ndarray]]:
    """The records of a batch of photos in their order: photo by photo, as it is and (with two orientations) mirrored.

    The mirrored photo goes through the teacher by itself; features are never mirrored.
    """
    views = [photos, photos[:, :, ::-1]][: plan.orientations]
    features = [run_teacher(teacher, view, plan.dtype) for view in views]
    for row in range(len(photos)):
        for orientation in features:
            yield {level: array[row] for level, array in orientation.items()}


def require_space(config: Config, teacher: Teacher, photos: PhotoSource, writer: CacheWriter) -> None:
    """Prints the bytes that the remaining shards need and the disk has. InputError if it has fewer."""
    plan = writer.plan
    remaining = sum(len(plan.shard_photos(index)) for index in writer.unfinished) * plan.orientations
    chosen = np.unique(np.linspace(0, len(photos) - 1, SAMPLE_PHOTOS).astype(int))
    sample = [record for index in chosen for record in records(teacher, teacher_photo(photos.load(int(index)), config)[None], plan)]
    needed = int(remaining * writer.compressed_bytes(sample))
    free = shutil.disk_usage(writer.folder).free
    print(
        f"{remaining:,} of {plan.record_count:,} records to write, {len(plan.levels)} levels in {plan.dtype}: "
        f"about {needed:,} bytes needed ({remaining * plan.record_bytes:,} before compression), {free:,} bytes free",
        flush=True,
    )
    if needed > free:
        raise InputError(
            f"teacher.cache={writer.folder} needs about {needed:,} bytes and its disk has {free:,} free; "
            "free some space, choose another folder, or set teacher.dtype=bfloat16, data.flip=none or a smaller data.image_size"
        )


def write_shards(config: Config, teacher: Teacher, photos: PhotoSource, writer: CacheWriter) -> None:
    """Writes every unfinished shard; a pool of threads prepares photos and runs the teacher, some batches ahead of the writing."""
    plan = writer.plan
    # Batches never cross a shard: what a batch holds must not depend on where an earlier run stopped.
    batches = {index: _split(plan.shard_photos(index), config.teacher.batch_size) for index in writer.unfinished}
    progress = Progress(plan.photo_count - sum(len(plan.shard_photos(index)) for index in batches), plan.photo_count)

    def run(batch: Sequence[int]) -> list[dict[int, np.ndarray]]:
        return list(records(teacher, np.stack([teacher_photo(photos.load(photo), config) for photo in batch]), plan))

    workers = _workers(config, teacher)
    pool = ThreadPoolExecutor(workers)
    try:
        finished = run_ahead(pool, run, itertools.chain(*batches.values()), ahead=workers)
        for index, shard_batches in batches.items():
            with writer.shard(index) as write:
                for batch in shard_batches:
                    for record in next(finished):
                        write(record)
                    progress.add(len(batch))
    finally:
        pool.shutdown(cancel_futures=True)


def _split(photos: range, size: int) -> list[range]:
    return [photos[start : start + size] for start in range(0, len(photos), size)]


def _workers(config: Config, teacher: Teacher) -> int:
    """Batches in work at once: a core each on the CPU, enough to keep it fed on an accelerator."""
    if teacher.device.type != "cpu":
        return config.data.threads
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_ahead(
    pool: ThreadPoolExecutor, run: Callable[[Sequence[int]], Result], batches: Iterable[Sequence[int]], ahead: int
) -> Iterator[Result]:
    """`run(batch)` for every batch, in their order, with at most `ahead` of them in work or waiting besides the one handed out."""
    waiting: deque[Future[Result]] = deque()
    for batch in batches:
        waiting.append(pool.submit(run, batch))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@dataclasses.dataclass
class Progress:
    """Prints a line every ten seconds and at the end: lines, so that a log file reads as well as a terminal."""

    done: int  # photos
    total: int
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._first, self._start = self.done, self.clock()
        self._printed = self._start

    def add(self, photos: int) -> None:
        """Counts photos that were written."""
        self.done += photos
        now = self.clock()
        if now - self._printed >= SECONDS_BETWEEN_LINES or self.done == self.total:
            self._printed = now
            rate = (self.done - self._first) / max(now - self._start, 1e-9)
            left = timedelta(seconds=round((self.total - self.done) / rate))
            print(f"{self.done:,}/{self.total:,} photos, {rate:.1f} photos/s, {left} left", flush=True)
