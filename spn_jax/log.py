"""Where a run's numbers go: JSON lines, TensorBoard, and the progress line on the terminal."""

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from tensorboardX import SummaryWriter


class MetricsLog:
    """metrics.jsonl (one JSON object a line, key "step" and path-like names) and TensorBoard events of a work directory.

    Opening it for a run restored at step n removes every line after n, so that a killed and restarted run leaves the same
    file as an uninterrupted one. Lines reach the disk before `write` returns.
    """

    def __init__(self, workdir: Path, restored_step: int):
        self.path = workdir / "metrics.jsonl"
        cut_back(self.path, restored_step)
        self._file = self.path.open("a", encoding="utf-8")
        self._tensorboard = SummaryWriter(str(workdir / "tensorboard"), purge_step=restored_step + 1, max_queue=1000)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends one line and one point a metric to each scalar's curve."""
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        for name, value in metrics.items():
            self._tensorboard.add_scalar(name, value, step)

    def write_image(self, step: int, name: str, image: np.ndarray) -> None:
        """Adds a picture (h, w, 3) uint8 to TensorBoard."""
        self._tensorboard.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        self._file.close()
        self._tensorboard.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def cut_back(path: Path, step: int) -> None:
    """Removes every line after `step`, and a half-written last one, from a JSON-lines file; a missing file stays missing."""
    if not path.exists():
        return
    kept = [line for line in path.read_text(encoding="utf-8").splitlines() if is_up_to(line, step)]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    temporary.replace(path)


def is_up_to(line: str, step: int) -> bool:
    """Whether a line is a complete record of a step no later than `step`."""
    try:
        return json.loads(line)["step"] <= step
    except ValueError:  # the line that was being written when the run was killed
        return False


class Progress:
    """Rate and time left, from the steps made since this object was created."""

    def __init__(self, step: int, total: int):
        self._first, self._total, self._start = step, total, time.monotonic()

    def rate(self, step: int) -> float:
        """Steps per second since the start of this process's work, the first compilation left out by `restart`."""
        elapsed = time.monotonic() - self._start
        return (step - self._first) / elapsed if elapsed > 0 else math.nan

    def restart(self, step: int) -> None:
        """Begins the measurement anew; called once the first step, with its compilation, is done."""
        self._first, self._start = step, time.monotonic()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside, on evaluations and checkpoints, does not count."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._start += time.monotonic() - began

    def line(self, step: int, metrics: Mapping[str, float]) -> str:
        """One line for the terminal."""
        rate = self.rate(step)
        left = f"{duration((self._total - step) / rate)} left" if rate > 0 else "measuring speed"
        shown = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items() if name in SHOWN)
        return f"step {step}/{self._total}  {rate:.2f} steps/s  {left}  {shown}"


SHOWN = ("generator/loss", "generator/reconstruction", "generator/prior", "generator/adversarial", "discriminator/loss")


def duration(seconds: float) -> str:
    """1:02:03 or 2:03."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
