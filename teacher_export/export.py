"""Runs a teacher over the training photos and fills the feature cache that the trainer reads."""

import contextlib
import itertools
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from spn_jax.config import Config
from spn_jax.data.cache_writer import CacheWriter
from spn_jax.data.images import PhotoSource, checksum, open_photos, teacher_photo
from spn_jax.data.manifest import DTYPES, Level, Manifest, describe_levels, export_command
from spn_jax.data.shards import BeingWritten
from spn_jax.data.teacher import orientations, preparation
from spn_jax.errors import InputError
from spn_jax.runtime.progress import Progress
from teacher_export.frameworks import torch
from teacher_export.processes import Share
from teacher_export.teachers import Teacher

Result = TypeVar("Result")

SAMPLE_PHOTOS = 4  # number of photos whose compressed size is taken for all


def export(config: Config, teacher: Teacher, share: Share = Share(), *, verify: bool = False) -> Manifest:  # noqa: B008, it is frozen
    """Completes the cache in `config.teacher.cache` and returns its manifest.

    Of several processes each writes its own shards. The one that finds all shards complete verifies
    every record and writes the manifest. The others return a manifest without shards.

    Args:
        config: all settings.
        teacher: the teacher to run.
        share: the share of this process.
        verify: whether to read every record of a complete cache again, and restore damaged ones.

    Raises:
        InputError: the photos, the cache folder or the disk do not allow it. CacheWriter explains
            what a restart may change.
    """
    if not config.teacher.cache:
        raise InputError(f"teacher.cache is not set; run {export_command('FOLDER')}")
    # On the CPU each batch has a core to itself. Threads inside an operation would wait for each
    # other in every operation (ten times slower if other programs want the cores too), and the
    # features' last bits would depend on their number.
    torch.set_num_threads(1)
    photos = open_photos(config.data.train_photos, "data.train_photos")
    with CacheWriter(config.teacher.cache, make_plan(config, teacher, photos), share.process, share.processes) as writer:
        plan = writer.plan
        print(f"teacher {plan.teacher}, weights {plan.weights_origin}, sha256 {plan.weights_sha256[:12]}, {share.describe()}")
        print(f"levels: {describe_levels(plan.levels)}", flush=True)
        if writer.complete and not verify:
            print(f"{config.teacher.cache} is complete: {plan.photo_count:,} photos, nothing to do", flush=True)
            return writer.finish()
        if writer.unfinished:
            require_space(config, teacher, photos, writer)
            write_shards(config, teacher, photos, writer, writer.unfinished)
        if missing := writer.missing():
            print(f"{len(missing)} shards of other processes are not there yet; the process that ends last verifies the cache", flush=True)
            return plan
        return complete(config, teacher, photos, writer)


def complete(config: Config, teacher: Teacher, photos: PhotoSource, writer: CacheWriter) -> Manifest:
    """Verifies every record of a cache with all shards, rewrites damaged shards, and then writes
    the manifest.

    Returns a manifest without shards if another process is already doing this.

    Raises:
        InputError: a rewritten shard is damaged again.
    """
    with writer.verification() as mine:
        if not mine:
            print("another process verifies the cache", flush=True)
            return writer.plan
        for attempt in range(2):
            print(f"verifying {writer.plan.record_count:,} records", flush=True)
            progress = Progress(0, writer.plan.record_count, unit="records")
            damaged = writer.damage(config.data.threads, progress.add)
            for index, wrong in damaged.items():
                print(f"shard {writer.path(index)} is damaged ({wrong}) and is written again", flush=True)
                writer.remove(index)
            if not damaged:
                break
            if attempt:
                raise InputError(f"the disk of teacher.cache={writer.folder} loses what is written to it; choose another one")
            write_shards(config, teacher, photos, writer, list(damaged))
        manifest = writer.finish()
    print(f"{writer.folder} is complete: {sum(s.bytes for s in manifest.shards):,} bytes in {len(manifest.shards)} shards", flush=True)
    return manifest


def make_plan(config: Config, teacher: Teacher, photos: PhotoSource) -> Manifest:
    """Plans the content of the cache. A trial pass gives the features' shapes."""
    size = config.data.image_size
    if size % 4:
        raise InputError(f"data.image_size={size} must be divisible by 4 to have features at a quarter of it")
    blank = np.zeros((1, 2 * size, 2 * size, 3), np.uint8)
    shapes = {level: features.shape[1:] for level, features in run_teacher(teacher, blank, config.teacher.dtype, "float32").items()}
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
        compression=config.teacher.compression,
        compute_dtype=config.teacher.compute_dtype,
        photos_per_shard=max(1, config.teacher.records_per_shard // count),
        levels=tuple(
            Level(level=level, name=teacher.layers[level], height=h, width=w, channels=c, resized=teacher.resized.get(level, ""))
            for level, (h, w, c) in sorted(shapes.items())
        ),
    )


def run_teacher(teacher: Teacher, photos: np.ndarray, dtype: str, compute_dtype: str) -> dict[int, np.ndarray]:
    """Maps uint8 photos (b, 2P, 2P, 3) to {level: (b, h, w, c)} in `dtype`, float32 for uint8.
    Raises InputError if a value is not finite.

    If the compute type is bfloat16, convolutions and matrix products run in it (autocast).
    """
    # A mirrored batch is a view with negative strides, which torch refuses.
    batch = torch.from_numpy(np.ascontiguousarray(photos))
    with own_stream(teacher.device), torch.autocast(teacher.device.type, torch.bfloat16, enabled=compute_dtype == "bfloat16"):
        if teacher.device.type == "cuda":
            batch = batch.pin_memory().to(teacher.device, non_blocking=True)
        try:
            features = teacher(batch.to(teacher.device).float() / 255)
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"{teacher.device} has too little memory for teacher.batch_size={len(photos)}; choose a smaller one"
            ) from error
        if not all(torch.isfinite(f).all() for f in features.values()):
            raise InputError(
                f"teacher {teacher.name} with weights {teacher.weights_origin} gives features that are not finite; check the weights"
            )
        return to_numpy(features, dtype)


_streams = threading.local()


def own_stream(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Returns the context of the calling thread's own stream on a GPU, so that one batch is copied
    while another is computed.
    """
    if device.type != "cuda":
        return contextlib.nullcontext()
    if not hasattr(_streams, "stream"):
        _streams.stream = torch.cuda.Stream(device)
    return torch.cuda.stream(_streams.stream)


def to_numpy(features: dict[int, torch.Tensor], dtype: str) -> dict[int, np.ndarray]:
    """Copies features to the host in `dtype`; those that become 8-bit codes later stay float32."""
    # Rounding on the device halves the bytes to copy. NumPy has no bfloat16 of its own, so the bits
    # are copied as integers.
    narrow = {
        level: f.to(torch.bfloat16).contiguous().view(torch.int16) if dtype == "bfloat16" else f.float().contiguous()
        for level, f in features.items()
    }
    if any(f.device.type == "cuda" for f in narrow.values()):
        pinned = {level: torch.empty(f.shape, dtype=f.dtype, pin_memory=True).copy_(f, non_blocking=True) for level, f in narrow.items()}
        torch.cuda.current_stream().synchronize()
        narrow = pinned
    arrays = {level: f.cpu().numpy() for level, f in narrow.items()}
    return {level: a.view(DTYPES["bfloat16"]) if dtype == "bfloat16" else a for level, a in arrays.items()}


def records(teacher: Teacher, photos: np.ndarray, plan: Manifest) -> Iterator[dict[int, np.ndarray]]:
    """Yields the records of a batch of photos in order: each photo as it is and (with two
    orientations) mirrored.

    The mirrored photo goes through the teacher by itself; features are never mirrored.
    """
    views = [photos, photos[:, :, ::-1]][: plan.orientations]
    features = [run_teacher(teacher, view, plan.dtype, plan.compute_dtype) for view in views]
    for row in range(len(photos)):
        for orientation in features:
            yield {level: array[row] for level, array in orientation.items()}


def require_space(config: Config, teacher: Teacher, photos: PhotoSource, writer: CacheWriter) -> None:
    """Prints the bytes that the remaining shards need and the disk has. Raises InputError if they
    are too few.
    """
    plan = writer.plan
    remaining = sum(len(plan.shard_photos(index)) for index in writer.missing()) * plan.orientations
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


def write_shards(config: Config, teacher: Teacher, photos: PhotoSource, writer: CacheWriter, shards: Sequence[int]) -> None:
    """Writes `shards`. A pool of threads prepares photos and runs the teacher, some batches ahead
    of the writing.

    Shards that another process is writing are left to it.
    """
    plan, seconds = writer.plan, Seconds()
    # Batches never cross a shard: their content must not depend on where an earlier run stopped.
    batches = {index: _split(plan.shard_photos(index), config.teacher.batch_size) for index in shards}
    total = sum(len(plan.shard_photos(index)) for index in shards)
    progress = Progress(0, total)

    def run(batch: Sequence[int]) -> list[tuple[dict[int, np.ndarray], int]]:
        with seconds.of("decode"):
            files = [photos.read(photo) for photo in batch]
            images = np.stack([teacher_photo(photos.decode(photo, file), config) for photo, file in zip(batch, files, strict=True)])
        with seconds.of("teacher"):
            features = records(teacher, images, plan)
            return [(next(features), checksum(file)) for file in files for _ in range(plan.orientations)]

    workers = _workers(config, teacher)
    pool = ThreadPoolExecutor(workers)
    try:
        finished = run_ahead(pool, run, itertools.chain(*batches.values()), ahead=workers)
        for index, shard_batches in batches.items():
            try:
                with contextlib.ExitStack() as stack:
                    write = stack.enter_context(writer.shard(index))
                    for batch in shard_batches:
                        ready = next(finished)
                        with seconds.of("write"):
                            for features, photo in ready:
                                write(features, photo)
                        progress.add(len(batch))
                    with seconds.of("write"):
                        stack.close()
            except BeingWritten:
                print(f"shard {writer.path(index)} is being written by another process and left to it", flush=True)
                for batch in shard_batches:
                    next(finished)
                    progress.add(len(batch))
    finally:
        pool.shutdown(cancel_futures=True)
    print(f"time: {seconds.shares()}; {total / max(progress.seconds(), 1e-9):.1f} photos/s", flush=True)


class Seconds:
    """The time of each part of the work, summed over all threads."""

    def __init__(self) -> None:
        self._parts: dict[str, float] = {}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Adds the time spent inside to `part`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self._parts[part] = self._parts.get(part, 0.0) + time.perf_counter() - start

    def shares(self) -> str:
        """Returns the shares as text, such as "decode 21 %, teacher 70 %, write 9 %"."""
        total = sum(self._parts.values()) or 1.0
        return ", ".join(f"{part} {100 * spent / total:.0f} %" for part, spent in self._parts.items())


def _split(photos: range, size: int) -> list[range]:
    return [photos[start : start + size] for start in range(0, len(photos), size)]


def _workers(config: Config, teacher: Teacher) -> int:
    """Returns the number of concurrent batches: one for each core of a CPU, enough to keep an
    accelerator busy.
    """
    if teacher.device.type != "cpu":
        return config.data.threads
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_ahead(
    pool: ThreadPoolExecutor, run: Callable[[Sequence[int]], Result], batches: Iterable[Sequence[int]], ahead: int
) -> Iterator[Result]:
    """Yields `run(batch)` for every batch, in order. At most `ahead` of them are running or waiting
    besides the one yielded.
    """
    waiting: deque[Future[Result]] = deque()
    for batch in batches:
        waiting.append(pool.submit(run, batch))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
