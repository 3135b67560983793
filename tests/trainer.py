"""What tests of the trainer share: random photos, a cache of random features, and the real command
line in a process of its own.
"""

import contextlib
import dataclasses
import functools
import io
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from orbax.checkpoint import v1 as ocp
from PIL import Image

from spn_jax import train
from spn_jax.checkpoints.store import FOLDER, newest_checkpoint
from spn_jax.config import load_config
from spn_jax.data.cache_writer import CacheWriter
from spn_jax.data.images import checksum, open_photos
from spn_jax.data.manifest import DTYPES, Level, Manifest
from spn_jax.data.teacher import orientations, preparation
from spn_jax.errors import run_command
from spn_jax.training import loop
from spn_jax.training.state import Batch, Frozen, StepGraph, TrainState
from spn_jax.training.step import compile_train_step

ROOT = Path(__file__).resolve().parent.parent
CONFIG_FILE = "configs/tiny.py"
STEPS = 6  # of configs/tiny.py
SETTINGS = ("train.ema_decay=0.5", "train.checkpoint_every=100", "train.eval_every=4")
# The settings of a run from whose every step a test can start. Saving the smallest model takes half
# a second, so other runs save where they evaluate, stop or end.
EVERY_STEP = ("train.checkpoint_every=1", "train.keep_last=100")
PHOTOS = 12
LEVELS = tuple(
    Level(level=level, name=f"layer{level}", channels=channels, height=size, width=size)
    for level, channels, size in ((1, 5, 16), (2, 3, 16), (3, 7, 8))
)


def make_photos(folder: Path, count: int, seed: int) -> Path:
    """A folder of `count` small photos of noise."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (40, 36, 3), np.uint8)).save(folder / f"{i:02d}.png")
    return folder


def make_cache(folder: Path, photos: Path, seed: int = 0, broken_photo: int | None = None, **changes: Any) -> Path:
    """A teacher's cache of random numbers for `photos`; of `broken_photo` every number is NaN.
    `changes` go into the manifest.
    """
    source = open_photos(str(photos), "data.train_photos")
    config = load_config(ROOT / CONFIG_FILE, [])
    plan = Manifest(
        teacher="tresnet_l",
        weights_origin=f"random(seed={seed})",
        weights_sha256=f"weights {seed}",
        photos_sha256=source.fingerprint(),
        photo_count=len(source),
        orientations=orientations(config),
        image_size=config.data.image_size,
        preparation=preparation(config),
        dtype="bfloat16",
        compression="zstd",
        compute_dtype="float32",
        photos_per_shard=8,
        levels=LEVELS,
    )
    rng = np.random.default_rng(seed)
    with CacheWriter(str(folder), dataclasses.replace(plan, **changes)) as writer:
        for shard in writer.unfinished:
            with writer.shard(shard) as write:
                for photo in writer.plan.shard_photos(shard):
                    scale = np.nan if photo == broken_photo else 1
                    for _ in range(writer.plan.orientations):
                        write(
                            {
                                v.level: (scale * rng.standard_normal((v.height, v.width, v.channels))).astype(DTYPES["bfloat16"])
                                for v in LEVELS
                            },
                            checksum(source.read(photo)),
                        )
        writer.finish()
    return folder


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The folders a run reads."""

    train: Path
    test: Path
    cache: Path

    @classmethod
    def of(cls, folder: Path) -> "Inputs":
        return cls(train=folder / "train", test=folder / "test", cache=folder / "cache")

    def arguments(self, workdir: Path, *more: str) -> list[str]:
        """Command line of a run on these inputs; what comes last counts."""
        paths = [f"data.train_photos={self.train}", f"data.test_photos={self.test}", f"teacher.cache={self.cache}"]
        return ["--config", CONFIG_FILE, "--workdir", str(workdir), *SETTINGS, *paths, *more]


def make_inputs(folder: Path) -> Inputs:
    inputs = Inputs.of(folder)
    make_photos(inputs.train, PHOTOS, seed=0)
    make_photos(inputs.test, 6, seed=1)
    make_cache(inputs.cache, inputs.train)
    return inputs


def start(
    arguments: Sequence[str],
    *,
    devices: int = 1,
    program: Sequence[str] = ("-m", "spn_jax.train"),
    cwd: Path = ROOT,
) -> subprocess.Popen[str]:
    """Starts a command in a process of its own, on some devices that the CPU plays."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *program, *arguments]
    return subprocess.Popen(command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str], status: int = 0) -> tuple[str, str]:
    """What a process writes to stdout and stderr until it ends with the expected status."""
    output, errors = process.communicate(timeout=300)
    assert process.returncode == status, f"exit status {process.returncode}\n{output}\n{errors}"
    return output, errors


def wait_for(process: subprocess.Popen[str], text: str) -> str:
    """Reads a process's output up to a line that contains `text`; returns that line."""
    assert process.stdout is not None
    for line in process.stdout:
        if text in line:
            return line
    raise AssertionError(f"{text!r} never came\n{process.communicate()[1]}")


def run(arguments: Sequence[str], status: int = 0, **options: Any) -> tuple[str, str]:
    """Runs a command to its end: (stdout, stderr)."""
    return finish(start(arguments, **options), status)


@functools.cache
def shared_step(graph: StepGraph, mesh: Mesh) -> Any:
    """One compiled step for all runs of this process that have the same graph."""
    return compile_train_step(graph, mesh)


def run_here(arguments: Sequence[str], status: int = 0) -> tuple[str, str]:
    """Runs the trainer's command in this process, on one device: (stdout, stderr).

    It spares the imports, and the tracing of a step that another run has made already. A test whose
    matter is a kill, or what a second process sees, takes `run`.
    """

    def compiled(graph: StepGraph, mesh: Mesh, sharding: Any) -> Any:
        return shared_step(graph, mesh) if sharding is None else compile_train_step(graph, mesh, sharding)

    output, errors = io.StringIO(), io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(sys, "argv", ["train", *arguments]))
        if loop.compile_train_step is compile_train_step:  # no test has put another in its place
            stack.enter_context(mock.patch.object(loop, "compile_train_step", compiled))
        stack.enter_context(contextlib.redirect_stdout(output))
        stack.enter_context(contextlib.redirect_stderr(errors))
        stopped = stack.enter_context(pytest.raises(SystemExit))
        run_command(train.main)
    assert stopped.value.code == status, f"exit status {stopped.value.code}\n{output.getvalue()}\n{errors.getvalue()}"
    return output.getvalue(), errors.getvalue()


def idle_step(graph: StepGraph, mesh: Mesh, sharding: Any) -> Any:
    """Stands for `compile_train_step` where a test looks at what happens around the steps: one that
    only counts.
    """
    return lambda state, frozen, batch: (dataclasses.replace(state, step=state.step + 1), {"generator/loss": np.float32(1)})


def traced_step(graph: StepGraph, mesh: Mesh, sharding: Any) -> Any:
    """The same, where the real step must fit the batches: it is traced, which sees every shape, and
    neither compiled nor run.
    """
    real, idle = shared_step(graph, mesh), idle_step(graph, mesh, sharding)

    def step(state: TrainState, frozen: Frozen, batch: Batch) -> Any:
        jax.eval_shape(real, state, frozen, batch)
        return idle(state, frozen, batch)

    return step


def free_address() -> str:
    """An address on this machine at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def start_two(arguments: list[str], *more: list[str]) -> list[subprocess.Popen[str]]:
    """Two processes of one run, that talk over this machine's network, each with `more` arguments
    of its own.
    """
    address = free_address()
    own = more or ([], [])
    return [start([*arguments, *own[i], "--coordinator", address, "--processes", "2", "--process", str(i)]) for i in range(2)]


def finish_both(processes: list[subprocess.Popen[str]], *statuses: int) -> list[tuple[str, str]]:
    """Their (stdout, stderr), read side by side, since a process whose output nobody reads may wait
    for ever. `statuses` are those that they must end with; 0 if none are given.
    """
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(finish, processes, statuses or (0, 0)))


def metrics(workdir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without the fields that tell times."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if not name.startswith("time/")} for line in lines]


def saved_arrays(checkpoint: Path) -> dict[str, np.ndarray]:
    """Every array of a checkpoint by part and name."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    parts = ocp.checkpointables_metadata(checkpoint.absolute()).metadata
    wanted = {
        part: {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here) for name, leaf in parts[part].items()}
        for part in ("model", "ema", "training")
        if part in parts
    }
    loaded = ocp.load_checkpointables(checkpoint.absolute(), wanted)
    return {f"{part}/{name}": np.asarray(array) for part, arrays in loaded.items() for name, array in arrays.items()}


def last_arrays(workdir: Path) -> dict[str, np.ndarray]:
    newest = newest_checkpoint(workdir / FOLDER)
    assert newest is not None
    return saved_arrays(newest)


def assert_same_run(workdir: Path, reference: Path) -> None:
    """Equal to the last bit: the log, and all that the last checkpoint holds."""
    assert metrics(workdir) == metrics(reference)
    ours, theirs = last_arrays(workdir), last_arrays(reference)
    assert ours.keys() == theirs.keys()
    assert not [name for name in theirs if ours[name].tobytes() != theirs[name].tobytes()]
