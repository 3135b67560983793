"""Several devices and several processes compute what one device does, and take over each other's
checkpoints.
"""

import json
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from spn_jax.checkpoints.store import FOLDER, newest_checkpoint
from tests import trainer
from tests.trainer import Inputs, finish_both, last_arrays, metrics, start_two, wait_for


def without_updates(line: dict[str, float]) -> dict[str, float]:
    """A line of the log without the norms of Adam's updates, in which gradients that are nothing
    but rounding count like others.
    """
    return {name: value for name, value in line.items() if not name.endswith("/update_norm")}


def assert_close(workdir: Path, reference: Path, steps: int, exact: int = 1) -> None:
    """The first lines of both logs: equal to 1e-5 up to the first step that the runs do not share,
    to 1e-3 at those after it.
    """
    ours, theirs = ([line for line in metrics(folder) if line["step"] <= steps] for folder in (workdir, reference))
    assert [line.keys() for line in ours] == [line.keys() for line in theirs]
    assert ours
    for our, their in zip(ours, theirs, strict=True):
        assert without_updates(our) == pytest.approx(without_updates(their), rel=1e-5 if their["step"] <= exact else 1e-3), their["step"]


def resumed_at(step: int, reference: Path, workdir: Path) -> Path:
    """A work directory whose newest checkpoint is the reference run's of `step`."""
    shutil.copytree(reference, workdir, ignore=lambda folder, names: [n for n in names if n.isdigit() and int(n) > step])
    return workdir


@pytest.mark.long
def test_four_devices_compute_what_one_does_and_take_over_from_it(inputs: Inputs, reference: Path, tmp_path: Path) -> None:
    workdir = resumed_at(4, reference, tmp_path / "run")
    output, _ = trainer.run(inputs.arguments(workdir), devices=4)
    assert "devices: 4 x cpu, mesh data=4, 1 process(es)" in output and "continues at step 4" in output
    assert_close(workdir, reference, trainer.STEPS, exact=5)


def split_run(inputs: Inputs, reference: Path, folder: Path) -> Path:
    """Returns a run in which four devices, with a part of the parameters each, go on from one."""
    workdir = resumed_at(4, reference, folder / "run")
    trainer.run(inputs.arguments(workdir, "train.shard_parameters=true", *trainer.EVERY_STEP), devices=4)
    return workdir


def test_a_split_state_computes_what_a_whole_one_does(inputs: Inputs, reference: Path, tmp_path: Path) -> None:
    assert_close(split_run(inputs, reference, tmp_path), reference, trainer.STEPS, exact=5)


@pytest.mark.long
def test_one_device_takes_over_from_a_split_state(inputs: Inputs, reference: Path, tmp_path: Path) -> None:
    whole = resumed_at(5, split_run(inputs, reference, tmp_path), tmp_path / "whole")
    output, _ = trainer.run_here(inputs.arguments(whole))
    assert "continues at step 5" in output
    assert_close(whole, reference, trainer.STEPS, exact=5)


# Trains up to the first step, and prints what each device holds then: in all, and of what the step
# is given.
HELD = """
import math, sys, jax
from pathlib import Path
from spn_jax.config import load_config
from spn_jax.training import loop

def held(arrays):
    found = dict.fromkeys(jax.devices(), 0)
    for array in arrays:
        shape = array.sharding.shard_shape(array.shape)
        for device in array.sharding.device_set:
            found[device] += array.dtype.itemsize * math.prod(shape)
    return [found[device] for device in jax.devices()]

def first_step(*given):
    everything = jax.live_arrays()
    print(held(everything), held(jax.tree.leaves(given)), sum(x.nbytes for x in jax.tree.leaves(given[0])), sep=";", flush=True)
    sys.exit()

loop.compile_train_step = lambda *arguments: first_step
loop.train(load_config(sys.argv[2], sys.argv[5:]), Path(sys.argv[4]))
"""


def test_no_device_holds_more_of_a_split_state_than_its_part_when_training_begins(inputs: Inputs, tmp_path: Path) -> None:
    arguments = inputs.arguments(tmp_path / "run", "train.shard_parameters=true", "train.batch_size=8", "eval.batch_size=8")
    output, _ = trainer.run(arguments, devices=8, program=("-c", HELD))
    everything, given, whole = map(json.loads, output.splitlines()[-1].split(";"))
    assert len(given) == 8
    assert max(given) < 0.4 * whole  # the rest of the tiny model is vectors and small kernels, which every device has
    assert [x - y for x, y in zip(everything, given, strict=True)] == pytest.approx([0] * 8, abs=0.01 * whole)


def test_two_processes_train_stop_at_sigterm_to_one_and_are_continued_by_one(inputs: Inputs, reference: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    processes = start_two(inputs.arguments(workdir, "schedule.length=1000"))
    wait_for(processes[0], "step 4/")
    processes[1].send_signal(signal.SIGTERM)
    (first, _), (second, _) = finish_both(processes, 143, 143)
    newest = newest_checkpoint(workdir / FOLDER)
    assert newest is not None
    step = int(newest.name)
    assert f"stopped by SIGTERM after step {step}; the same command continues there" in first
    assert "step 4  evaluation" in first
    assert "step" not in second  # the first alone reports
    assert len(list((workdir / "tensorboard").iterdir())) == 1
    assert [line["step"] for line in metrics(workdir) if "eval/psnr" not in line] == list(range(1, step + 1))
    assert_close(workdir, reference, 4)

    last = max(step + 1, trainer.STEPS)
    output, _ = trainer.run_here(inputs.arguments(workdir, f"schedule.length={last}"))
    assert "1 process(es)" in output and f"continues at step {step}" in output
    assert metrics(workdir)[-1]["step"] == last
    assert_close(workdir, reference, trainer.STEPS if last == trainer.STEPS else 5)


@pytest.mark.long
def test_ctrl_c_to_all_processes_or_to_one_stops_in_order(inputs: Inputs, reference: Path, tmp_path: Path) -> None:
    """A terminal sends it to every process that was started there."""
    workdir = tmp_path / "run"

    def interrupted(numbers: tuple[int, ...], at: str, statuses: tuple[int, int]) -> int:
        """The step of the newest checkpoint after Ctrl-C to these processes."""
        processes = start_two(inputs.arguments(workdir, "schedule.length=1000", "train.checkpoint_every=1000", "train.eval_every=1000"))
        wait_for(processes[0], at)
        for number in numbers:
            processes[number].send_signal(signal.SIGINT)
        (first, errors), (second, _) = finish_both(processes, *statuses)
        newest = newest_checkpoint(workdir / FOLDER)
        assert newest is not None and second.count("step") == 0 and "Traceback" not in errors
        sent = "SIGINT" if 0 in numbers else "SIGTERM"  # as which the others are told
        assert f"stopped by {sent} after step {newest.name}; the same command continues there" in first
        return int(newest.name)

    step = interrupted((0, 1), "step 2/", (130, 130))
    assert step >= 2
    later = interrupted((1,), f"step {step + 1}/", (143, 130))
    assert later > step
    assert [line["step"] for line in metrics(workdir)] == list(range(1, later + 1))
    assert_close(workdir, reference, 1)


# Starts a process as the command line does, and says when it begins to wait for the others.
WAITING = """
import jax
from spn_jax import train
from spn_jax.errors import run_command
initialize = jax.distributed.initialize
def told(*where, **options):
    print("waiting", flush=True)
    initialize(*where, **options)
jax.distributed.initialize = told
run_command(train.main)
"""


def test_ctrl_c_ends_a_process_that_waits_for_the_others(inputs: Inputs, tmp_path: Path) -> None:
    """JAX waits up to five minutes, in which Python's handler does not run."""
    places = ["--coordinator", trainer.free_address(), "--processes", "2", "--process", "1"]
    process = trainer.start([*inputs.arguments(tmp_path / "run"), *places], program=("-c", WAITING))
    wait_for(process, "waiting")
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    try:
        process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == -signal.SIGINT  # 130 to a shell


@pytest.mark.long
@pytest.mark.parametrize("split", ["false", "true"])
def test_two_processes_start_from_another_run_and_continue(inputs: Inputs, reference: Path, tmp_path: Path, split: str) -> None:
    workdir, splitting = tmp_path / "run", f"train.shard_parameters={split}"
    (first, _), _ = finish_both(start_two(inputs.arguments(workdir, "schedule.length=1", splitting, "--init", str(reference))))
    assert "starts from the parameters of" in first
    ours, theirs = last_arrays(workdir), last_arrays(reference)
    difference = np.abs(ours["model/generator.output.kernel"] - theirs["ema/generator.output.kernel"])
    assert 0 < difference.max() < 1.1e-4  # one step of Adam

    (first, _), _ = finish_both(start_two(inputs.arguments(workdir, "schedule.length=2", splitting, "--init", str(reference))))
    assert f"continues at step 1; --init {reference} was for the first start" in first
    assert [line["step"] for line in metrics(workdir) if "eval/psnr" not in line] == [1, 2]


@pytest.mark.long
def test_batch_that_does_not_divide_over_processes(inputs: Inputs, tmp_path: Path) -> None:
    processes = start_two(inputs.arguments(tmp_path / "run", "train.batch_size=3"))
    for _, errors in finish_both(processes, 2, 2):
        assert "error: train.batch_size=3 does not divide over 2 devices; the nearest that does is 2 or 4" in errors
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_an_error_in_one_process_ends_the_other(inputs: Inputs, tmp_path: Path) -> None:
    """Process 1 alone meets a photo that cannot be read."""
    broken = tmp_path / "broken"
    shutil.copytree(inputs.train, broken)
    for photo in broken.iterdir():
        # same size: the cache still fits
        photo.write_bytes(photo.read_bytes()[:100].ljust(photo.stat().st_size, b"x"))
    first, second = start_two(inputs.arguments(tmp_path / "run"), [], [f"data.train_photos={broken}"])
    with ThreadPoolExecutor(2) as pool:
        outputs = list(pool.map(lambda process: process.communicate(timeout=150), (first, second)))
    assert second.returncode == 2 and "cannot be read as an image" in outputs[1][1]
    assert first.returncode != 0 and "Traceback" not in outputs[0][1]
