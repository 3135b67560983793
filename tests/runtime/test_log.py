"""metrics.jsonl, TensorBoard events and the progress line."""

import io
import json
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from spn_jax.errors import InputError
from spn_jax.runtime import log
from spn_jax.runtime.log import MetricsLog, StepClock, cut_back, duration, has_evaluation, tensorboard_modules


def lines(workdir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def events(workdir: Path) -> Iterator[Any]:
    """Events of all files, in the order of writing: each record is its length, a checksum, the
    data, another checksum.
    """
    _, event_pb2, _ = tensorboard_modules()
    for path in sorted((workdir / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            yield event_pb2.Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def test_lines_and_scalars(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, 0) as metrics:
        metrics.write(1, {"generator/loss": 2.5, "eval/psnr": 20.0})
        metrics.write(2, {"generator/loss": 1.5})
    assert lines(tmp_path) == [{"step": 1, "generator/loss": 2.5, "eval/psnr": 20.0}, {"step": 2, "generator/loss": 1.5}]
    scalars = [(e.step, v.tag, v.simple_value) for e in events(tmp_path) for v in e.summary.value]
    assert scalars == [(1, "generator/loss", 2.5), (1, "eval/psnr", 20.0), (2, "generator/loss", 1.5)]


def test_picture(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    with MetricsLog(tmp_path, 0) as metrics:
        metrics.write_image(3, "eval/samples", picture)
    (value,) = [v for e in events(tmp_path) if e.step == 3 for v in e.summary.value]
    assert value.tag == "eval/samples"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(value.image.encoded_image_string))), picture)


def test_written_lines_are_on_the_disk_at_once(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, 0) as metrics:
        metrics.write(1, {"loss": 1.0})
        assert lines(tmp_path) == [{"step": 1, "loss": 1.0}]
        assert [e.step for e in events(tmp_path) if e.summary.value] == [1]


def test_a_restart_cuts_back_to_the_restored_step(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, 0) as metrics:
        for step in range(1, 6):
            metrics.write(step, {"loss": float(step)})
    with MetricsLog(tmp_path, 3) as metrics:
        metrics.write(4, {"loss": -4.0})
    assert [line["loss"] for line in lines(tmp_path)] == [1, 2, 3, -4]
    restarts = [e.step for e in events(tmp_path) if e.HasField("session_log")]
    assert restarts == [1, 4]  # readers drop what they have from these steps on


@pytest.mark.parametrize("torn", ['{"step": 3, "lo', '{"step"', '{"step": 3, "loss": 3.0'])
def test_a_half_written_last_line_is_dropped(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 2.0}\n' + torn)
    cut_back(path, 10)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]
    assert path.read_text().endswith("\n") and [child.name for child in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_missing_log_stays_missing(tmp_path: Path) -> None:
    cut_back(tmp_path / "metrics.jsonl", 3)
    assert not list(tmp_path.iterdir())


def test_has_evaluation(tmp_path: Path) -> None:
    assert not has_evaluation(tmp_path, 2)
    (tmp_path / "metrics.jsonl").write_text('{"step": 2, "loss": 1.0}\n{"step": 4, "loss": 1.0}\n{"step": 4, "eval/psnr": 20.0}\n{"st')
    assert has_evaluation(tmp_path, 4)
    assert not has_evaluation(tmp_path, 2)


def full(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("place", ["os.fsync", "tensorboardX.record_writer.RecordWriter.write"])
def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    with MetricsLog(tmp_path, 0) as metrics:
        monkeypatch.setattr(place, full)
        with pytest.raises(
            InputError, match=r"the log in .* could not be written \(No space left on device\); .*run the same command again"
        ):
            metrics.write(1, {"loss": 1.0})
        monkeypatch.undo()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A clock that stands still but for calls of the function it gives."""
    now = [100.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])

    def advance(seconds: float) -> None:
        now[0] += seconds

    return advance


def test_rate_leaves_out_the_first_compilation_and_evaluations(clock: Callable[[float], None]) -> None:
    progress = StepClock(10, 100)
    clock(30)
    progress.restart(11)
    assert progress.rate(11) is None
    clock(4)
    with progress.paused():
        clock(1000)
    clock(1)
    assert progress.rate(21) == pytest.approx(2.0)
    assert progress.line(21, {"generator/loss": 1.5, "learning_rate": 1.0}) == "step 21/100  2.00 steps/s  0:40 left  generator/loss 1.5"


def test_the_recent_rate_is_of_the_steps_since_it_was_last_asked_for(clock: Callable[[float], None]) -> None:
    progress = StepClock(0, 100)
    clock(2)
    assert progress.recent_rate(10) == pytest.approx(5)
    clock(10)
    with progress.paused():
        clock(1000)
    assert progress.recent_rate(20) == pytest.approx(1)
    assert progress.recent_rate(20) is None


def test_first_step_has_no_rate_yet(clock: Callable[[float], None]) -> None:
    progress = StepClock(0, 100)
    progress.restart(1)
    assert progress.line(1, {}) == "step 1/100  measuring speed  "


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (61, "1:01"), (3599.6, "1:00:00"), (100 * 3600 + 62, "100:01:02")])
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_tensorboard_does_not_bring_torch() -> None:
    program = "import sys; from spn_jax.runtime.log import tensorboard_modules; tensorboard_modules(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).resolve().parents[2], check=True)
