"""Writes a run's metrics to JSON lines and TensorBoard, and formats its lines for the terminal."""

import contextlib
import json
import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from spn_jax.errors import InputError
from spn_jax.runtime.files import write_atomically


class MetricsLog:
    """Writes metrics.jsonl and TensorBoard events in a work directory.

    A line of metrics.jsonl is one JSON object with the key "step" and path-like names. Opening it
    for a run restored at step n removes every later line, so that a killed and restarted run leaves
    the same file as an uninterrupted one. A method returns when its data is on the disk.

    Raises:
        InputError: a file cannot be written, here or later.
    """

    def __init__(self, workdir: Path, restored_step: int):
        self._path = workdir / "metrics.jsonl"
        with self._disk_errors():
            cut_back(self._path, restored_step)
            self._file = self._path.open("a", encoding="utf-8")
            self._tensorboard = TensorBoard(workdir / "tensorboard", restored_step)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends one line to the file and one point to each scalar's curve."""
        with self._disk_errors():
            # JSON has no infinity
            numbers = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
            self._file.write(json.dumps({"step": step, **numbers}) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
            self._tensorboard.write_scalars(step, metrics)

    def write_image(self, step: int, name: str, image: np.ndarray) -> None:
        """Adds a picture (h, w, 3) uint8 to TensorBoard."""
        with self._disk_errors():
            self._tensorboard.write_image(step, name, image)

    def close(self) -> None:
        """Closes the files. All data has been written before."""
        for file in self._file, self._tensorboard:
            with contextlib.suppress(OSError):  # a full disk was reported when it was met
                file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"the log in {self._path.parent} could not be written ({error.strerror or error}); "
                "earlier checkpoints are intact: free some space and run the same command again"
            ) from error


class TensorBoard:
    """Writes one TensorBoard event file without a thread. tensorboardX's own SummaryWriter hangs
    when its thread dies because the disk is full.
    """

    def __init__(self, folder: Path, restored_step: int):
        self._summary, self._events, writer = tensorboard_modules()
        folder.mkdir(parents=True, exist_ok=True)
        # The default name has a resolution of one second: a process restarted within that second
        # would overwrite the previous file.
        self._writer = writer.EventsWriter(str(folder / "events"), filename_suffix=f".{time.time_ns()}")
        # Tells readers to forget what an earlier, killed process wrote from this step on.
        self._write(restored_step + 1, session_log=self._events.SessionLog(status=self._events.SessionLog.START))

    def write_scalars(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes one point of each metric."""
        for name, value in metrics.items():
            self._write(step, summary=self._summary.scalar(name, value), flush=False)
        self._writer.flush()

    def write_image(self, step: int, name: str, image: np.ndarray) -> None:
        """Writes a picture (h, w, 3) uint8."""
        self._write(step, summary=self._summary.image(name, image, dataformats="HWC"))

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()

    def _write(self, step: int, *, flush: bool = True, **content: Any) -> None:
        self._writer.write_event(self._events.Event(step=step, wall_time=time.time(), **content))
        if flush:
            self._writer.flush()


def tensorboard_modules() -> tuple[Any, Any, Any]:
    """Imports tensorboardX's summary, event and writer modules without torch, and returns them.

    Where torch is installed, tensorboardX imports it for tensors, which are never passed here. That
    would take three seconds and start a pool of threads.
    """
    hide = "torch" not in sys.modules
    if hide:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto import event_pb2
    finally:
        if hide:
            del sys.modules["torch"]
    return summary, event_pb2, event_file_writer


def cut_back(path: Path, step: int) -> None:
    """Removes every line after `step`, and an incomplete last line, from a JSON-lines file. A
    missing file stays missing.
    """
    if path.exists():
        kept = [line for line in path.read_text(encoding="utf-8").splitlines() if is_kept(line, step)]
        write_atomically(path, "".join(line + "\n" for line in kept))


def is_kept(line: str, step: int) -> bool:
    """Returns whether a line of metrics.jsonl is a complete record of a step up to `step`."""
    try:
        return json.loads(line)["step"] <= step
    except ValueError:  # the line that was being written when the run was killed
        return False


def has_evaluation(workdir: Path, step: int) -> bool:
    """Returns whether the log of a work directory holds an evaluation of `step`."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    records = (json.loads(line) for line in lines if is_kept(line, step))
    return any(record["step"] == step and any(name.startswith("eval/") for name in record) for record in records)


def quiet_libraries() -> None:
    """Silences Orbax's log messages: its failures arrive as exceptions, which the command
    reports.
    """
    for name in ("absl", "orbax"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


class StepClock:
    """Measures the speed of a training run and the time left, from the steps made since its
    creation. (`progress` does so for work on files.)
    """

    def __init__(self, step: int, total: int):
        self._total = total
        self.restart(step)

    def rate(self, step: int) -> float | None:
        """Returns steps per second since the start, or None before there are any. `restart`
        excludes the first step's compilation.
        """
        elapsed = time.monotonic() - self._start
        return (step - self._first) / elapsed if elapsed > 0 and step > self._first else None

    def restart(self, step: int) -> None:
        """Restarts the measurement; called after the first step, which includes compilation."""
        self._first, self._start = step, time.monotonic()
        self._window_first, self._window_start = self._first, self._start

    def recent_rate(self, step: int) -> float | None:
        """Returns steps per second since the last call, or None without any. It shows a slow-down
        at once.
        """
        now = time.monotonic()
        steps, seconds = step - self._window_first, now - self._window_start
        self._window_first, self._window_start = step, now
        return steps / seconds if steps > 0 and seconds > 0 else None

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the time spent inside, on evaluations and checkpoints."""
        began = time.monotonic()
        try:
            yield
        finally:
            spent = time.monotonic() - began
            self._start, self._window_start = self._start + spent, self._window_start + spent

    def line(self, step: int, metrics: Mapping[str, float]) -> str:
        """Returns one line for the terminal."""
        rate = self.rate(step)
        speed = f"{rate:.2f} steps/s  {duration((self._total - step) / rate)} left" if rate else "measuring speed"
        shown = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items() if name in SHOWN)
        return f"step {step}/{self._total}  {speed}  {shown}"


SHOWN = ("generator/loss", "generator/reconstruction", "generator/prior", "generator/adversarial", "discriminator/loss")


def duration(seconds: float) -> str:
    """Formats seconds as 1:02:03 or 2:03."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
