"""The trainer through its command line: interrupted runs end as uninterrupted ones, and wrong input
is one sentence.

Only what is killed, told to stop or short of disk space runs in a process of its own.
"""

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils
from PIL import Image

from spn_jax import train
from spn_jax.checkpoints.store import FOLDER, newest_checkpoint
from spn_jax.config import TrainConfig, load_config
from spn_jax.errors import InputError, run_command
from spn_jax.training import loop, processes
from spn_jax.training.held_out import Due, HeldOut, due_at, due_at_start
from spn_jax.training.inputs import open_data, read_batches
from spn_jax.training.processes import Stop, Stopped, join_processes, only_run_in, own_gpus
from spn_jax.training.reports import check_finite, out_of_memory_in_words
from spn_jax.training.resume import final_learning_rate
from tests import trainer
from tests.trainer import STEPS, Inputs, assert_same_run, last_arrays, make_cache, make_inputs, make_photos, metrics, saved_arrays

# Runs the trainer as its command line does, but on a disk where no file may grow beyond 100 kB: a
# checkpoint does, a log does not.
SMALL_DISK = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
import jax
jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)  # no compiled program is written either
from spn_jax import train
from spn_jax.errors import run_command
run_command(train.main)
"""


def steps(workdir: Path) -> list[int]:
    """Steps of the complete checkpoints."""
    return sorted(int(path.name) for path in (workdir / FOLDER).iterdir() if path.name.isdigit())


def copy_at(reference: Path, workdir: Path, step: int) -> Path:
    """A work directory as the reference run left it when the checkpoint of `step` was the last it
    had.
    """
    shutil.copytree(reference, workdir)
    for later in steps(workdir):
        if later > step:
            shutil.rmtree(workdir / FOLDER / str(later))
    return workdir


def test_a_run_writes_what_it_says(reference: Path) -> None:
    lines = metrics(reference)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 4, 5, 6, 6]
    assert [line["step"] for line in lines if "eval/psnr" in line] == [4, 6]
    assert all(np.isfinite(value) for line in lines for value in line.values())
    assert "train.ema_decay = 0.5" in (reference / "config.txt").read_text()
    assert "prior_learner.stem.kernel" in (reference / "parameters.txt").read_text()
    assert steps(reference) == [1, 2, 3, 4, 5, 6]


def test_the_moving_average_follows_the_parameters(reference: Path) -> None:
    before, after = (saved_arrays(reference / FOLDER / str(step)) for step in (5, 6))
    averages = [name for name in after if name.startswith("ema/")]
    assert averages
    for name in averages:
        expected = 0.5 * before[name] + 0.5 * after[name.replace("ema/", "model/")]
        np.testing.assert_allclose(after[name], expected, rtol=1e-5, atol=1e-7)


def kill_while_saving(process: subprocess.Popen[str], workdir: Path, delay: float) -> None:
    """SIGKILL `delay` seconds after a checkpoint has begun to be written; the process may end
    before.
    """
    folder = workdir / FOLDER
    while process.poll() is None:
        if folder.is_dir() and any("tmp" in path.name for path in folder.iterdir()):
            time.sleep(delay)
            break
        time.sleep(0.001)
    process.kill()
    process.communicate()


def test_killed_while_saving_and_restarted_equals_uninterrupted(inputs: Inputs, reference: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    process = trainer.start(inputs.arguments(workdir, *trainer.EVERY_STEP))
    trainer.wait_for(process, "step 4/")
    kill_while_saving(process, workdir, delay=0)
    assert process.returncode == -signal.SIGKILL
    assert 1 <= steps(workdir)[-1] < STEPS
    output, errors = trainer.run_here(inputs.arguments(workdir))
    assert "continues at step" in output and not errors
    assert_same_run(workdir, reference)
    assert not [path for path in (workdir / FOLDER).iterdir() if not path.name.isdigit()]


@pytest.mark.long
def test_ten_kills_and_restarts_equal_uninterrupted(inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["schedule.length=60", "train.checkpoint_every=2", "train.eval_every=6"]
    trainer.run(inputs.arguments(tmp_path / "whole", *more))
    chance = random.Random(time.time_ns())
    workdir, report = tmp_path / "run", []
    for kill in range(10):
        process = trainer.start(inputs.arguments(workdir, *more))
        how = ("saving", "after a step", "any moment")[kill % 3]
        reached = steps(workdir)[-1] if (workdir / FOLDER).is_dir() and steps(workdir) else 0
        if how == "any moment":
            time.sleep(chance.uniform(1, 12))
        else:
            trainer.wait_for(process, f"step {min(reached + chance.randint(4, 10), 58)}/")
        if how == "after a step":
            time.sleep(chance.uniform(0, 0.5))
        if how == "saving":
            kill_while_saving(process, workdir, chance.uniform(0, 0.1))
        process.kill()
        process.communicate()
        report.append(f"{how}: status {process.returncode}, checkpoints {sorted(p.name for p in (workdir / FOLDER).glob('*'))}")
    trainer.run(inputs.arguments(workdir, *more))
    with capsys.disabled():
        print("\n" + "\n".join(report))
    assert sum("status -9" in line for line in report) == 10
    assert_same_run(workdir, tmp_path / "whole")


def test_stopped_by_sigterm_and_continued_equals_uninterrupted(
    inputs: Inputs, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir = tmp_path / "run"
    process = trainer.start(inputs.arguments(workdir))
    trainer.wait_for(process, "step 1/")
    process.send_signal(signal.SIGTERM)
    output, errors = trainer.finish(process, status=143)
    assert "stopped by SIGTERM after step" in output and not errors
    assert steps(workdir)[-1] < 4

    # At steps with an evaluation, the last one among them: the checkpoint comes first, the
    # evaluation with the next start.
    for step in 4, STEPS:
        with monkeypatch.context() as patched:
            patched.setattr(Stop, "__call__", lambda stop, now, last=step: now == last)
            output, _ = trainer.run_here(inputs.arguments(workdir), status=143)
        assert f"stopped by SIGTERM after step {step}" in output
        assert steps(workdir)[-1] == step
        assert not any(line["step"] == step and "eval/psnr" in line for line in metrics(workdir))
    output, _ = trainer.run_here(inputs.arguments(workdir))
    assert f"step {STEPS}  evaluation" in output
    assert_same_run(workdir, reference)


def test_finished_run_started_again_says_so_and_changes_nothing(inputs: Inputs, reference: Path, tmp_path: Path) -> None:
    workdir = copy_at(reference, tmp_path / "run", STEPS)
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    output, errors = trainer.run_here(inputs.arguments(workdir))
    assert f"finished: {workdir} has all 6 steps; raise schedule.length to train on" in output and not errors
    assert "evaluation" not in output
    assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before


@pytest.mark.long
def test_a_disk_that_fills_up_while_saving_spoils_nothing(inputs: Inputs, reference: Path, tmp_path: Path) -> None:
    workdir = copy_at(reference, tmp_path / "run", 2)
    before = saved_arrays(workdir / FOLDER / "2")

    _, errors = trainer.run(inputs.arguments(workdir), status=2, program=("-c", SMALL_DISK))
    assert re.fullmatch(r"error: a checkpoint could not be written to \S+ \(.*\); earlier checkpoints are intact: .*\n", errors)
    after = saved_arrays(workdir / FOLDER / "2")
    assert steps(workdir) == [1, 2] and all(np.array_equal(before[name], after[name]) for name in before)
    trainer.run_here(inputs.arguments(workdir))
    assert_same_run(workdir, reference)


def test_a_loss_that_is_not_finite_stops_the_run_and_is_never_saved(inputs: Inputs, tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache", inputs.train, broken_photo=0)
    paths = [f"data.train_photos={inputs.train}", f"data.test_photos={inputs.test}", f"teacher.cache={cache}"]
    config = load_config(trainer.CONFIG_FILE, paths)
    batches = read_batches(config, open_data(config, ""), 0, trainer.PHOTOS // config.train.batch_size)
    bad_step = 1 + next(step for step, batch in enumerate(batches) if np.isnan(batch["targets"][3].astype(np.float32)).any())
    arguments = inputs.arguments(tmp_path / "run", f"teacher.cache={cache}", "train.checkpoint_every=1")
    _, errors = trainer.run_here(arguments, status=2)
    assert errors.startswith(f"error: at step {bad_step} these values are not finite: ") and errors.count("\n") == 1
    assert "generator/prior" in errors and "Lower optimizer.learning_rate" in errors
    assert steps(tmp_path / "run") == list(range(max(1, bad_step - 2), bad_step))
    assert [line["step"] for line in metrics(tmp_path / "run")] == list(range(1, bad_step))
    assert all(np.isfinite(array).all() for array in last_arrays(tmp_path / "run").values())


def test_parameters_that_are_not_finite_are_not_saved() -> None:
    class State:
        model = {"kernel": np.ones(3, np.float32)}
        discriminator = {"kernel": np.array([1, np.inf], np.float32)}

        model_optimizer = {"nu": np.ones(3, np.float32)}
        discriminator_optimizer = model_optimizer

    with pytest.raises(InputError, match="at step 7 these values are not finite: parameters of the discriminator;"):
        check_finite(7, State())  # type: ignore[arg-type]
    State.discriminator = State.model
    check_finite(7, State())  # type: ignore[arg-type]
    State.model_optimizer = {"nu": np.array([1, np.inf], np.float32)}
    with pytest.raises(InputError, match="not finite: Adam's moments of the prior learner and generator;"):
        check_finite(7, State())  # type: ignore[arg-type]


def test_ctrl_c_stops_in_order_and_a_second_one_at_once() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Stop() as stop:
        assert not stop(3)
        signal.raise_signal(signal.SIGINT)
        assert stop(3) and stop.came_here() and stop.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert (Stopped(signal.SIGTERM).status, Stopped(signal.SIGINT).status) == (143, 130)


def test_ctrl_c_in_one_of_several_processes_is_told_to_all_as_sigterm(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []  # what the handler of jax.distributed would tell the others
    before = signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", lambda step: bool(told) and step >= 5)
    try:
        with Stop() as stop:
            assert not stop(3)
            signal.raise_signal(signal.SIGINT)
            assert told == [signal.SIGTERM] and stop.signal == signal.SIGINT
            # all stop at the step that they agree on, and none in the middle of an evaluation
            assert not stop(4) and stop(5) and not stop.came_here()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_ctrl_c_before_the_loop_or_a_second_one_ends_one_of_several_processes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A normal end would wait for the others, which wait for this one in the middle of a step."""

    def interrupted(*inputs: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    def ended(status: int) -> None:
        raise SystemExit(f"at once with {status}")

    monkeypatch.setattr(loop, "train", interrupted)
    monkeypatch.setattr(os, "_exit", ended)
    with pytest.raises(KeyboardInterrupt):
        train.main(["--config", trainer.CONFIG_FILE])
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(SystemExit, match="at once with 130"):
        train.main(["--config", trainer.CONFIG_FILE])


def test_a_process_whose_partner_is_gone_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    gloo = "UNKNOWN: Gloo all-reduce failed: [external/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:13493"
    monkeypatch.setattr(os, "_exit", lambda status: (_ for _ in ()).throw(SystemExit(status)))
    monkeypatch.setattr(processes, "LAST_WORDS", 0)
    for error, said in (
        (gloo, "error: another process of this run has ended; its own output says why"),
        ("a fault", "jax.errors.JaxRuntime"),
    ):
        with pytest.raises(SystemExit):
            processes.end_all_processes(jax.errors.JaxRuntimeError(error))
        told = capsys.readouterr().err
        assert told.startswith(said) and told.count("\n") == 1


def test_only_an_evaluation_that_was_missed_is_due_at_the_start() -> None:
    train_config = TrainConfig(eval_every=4, image_every=3, checkpoint_every=2)

    def due(step: int, is_evaluated: bool, is_initialised: bool = False) -> Due:
        return due_at_start(step, 7, train_config, is_evaluated=is_evaluated, is_initialised=is_initialised)

    missed = Due(evaluation=True, checkpoint=True)
    assert (due(4, False), due(7, False)) == (missed, missed)
    assert {due(4, True), due(7, True), due(2, False), due(3, False), due(0, False)} == {Due()}
    # and no checkpoint of another's parameters
    assert due(0, False, is_initialised=True) == Due(evaluation=True)


def test_too_little_memory_is_one_sentence_that_names_what_helps() -> None:
    train_config = TrainConfig(batch_size=8, micro_batches=2)
    with pytest.raises(InputError) as refused, out_of_memory_in_words(train_config):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.\nand more")
    assert "train.micro_batches (2), train.rematerialise=true (false)" in str(refused.value)
    assert "train.compute_dtype=bfloat16 (float32) or a smaller train.batch_size (8)" in str(refused.value)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), out_of_memory_in_words(train_config):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


def test_init_starts_a_new_run_from_the_moving_average(inputs: Inputs, reference: Path, tmp_path: Path) -> None:
    arguments = inputs.arguments(tmp_path / "run", "schedule.length=2", "train.log_every=2", *trainer.EVERY_STEP, "--init", str(reference))
    output, _ = trainer.run_here(arguments)
    assert f"starts from the parameters of {reference / FOLDER / '6'}" in output
    # The parameters that it starts from are scored before the first step.
    assert [line["step"] for line in metrics(tmp_path / "run")] == [0, 2, 2]
    assert metrics(tmp_path / "run")[0] == {**metrics(reference)[-1], "step": 0}
    first = saved_arrays(tmp_path / "run" / FOLDER / "1")
    start, untrained = last_arrays(reference), saved_arrays(reference / FOLDER / "1")
    assert first["training/model_optimizer.count"] == 1
    name = "model/generator.output.kernel"
    step = float(np.abs(first[name] - start[name.replace("model/", "ema/")]).max())
    assert step == pytest.approx(1e-4, rel=1e-2)  # one step of Adam with beta1 = 0 from there
    assert np.abs(first[name] - untrained[name]).max() > 1.5 * step
    output, _ = trainer.run_here(arguments)
    assert "finished" in output and "is not read again" in output
    rate = metrics(reference)[-2]["learning_rate"]
    assert final_learning_rate(reference / FOLDER / "6") == pytest.approx(rate)


def test_init_warns_of_a_higher_learning_rate(inputs: Inputs, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "compile_train_step", trainer.idle_step)
    faster = inputs.arguments(tmp_path / "run", "schedule.length=1", "optimizer.learning_rate=0.01", "--init", str(reference))
    output, _ = trainer.run_here(faster)
    assert re.search(r"warning: the learning rate 0.01 is higher than the \S+ that the checkpoint ended with", output)


def test_without_a_moving_average_none_is_saved(inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "compile_train_step", trainer.idle_step)
    trainer.run_here(inputs.arguments(tmp_path / "run", "train.ema_decay=none", "schedule.length=2"))
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2, 2]
    assert {name.partition("/")[0] for name in last_arrays(tmp_path / "run")} == {"model", "training"}


def error_of(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """The sentence with which the command, run in this process, refuses its arguments with status
    2.
    """
    monkeypatch.setattr(sys, "argv", ["train", *arguments])
    with pytest.raises(SystemExit) as stopped:
        run_command(train.main)
    assert stopped.value.code == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and errors.count("\n") == 1, errors
    return errors.removeprefix("error: ").rstrip("\n")


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], inputs: Inputs, tmp_path: Path):
    """A function of extra arguments: the sentence that refuses them, which leaves no work directory
    behind.
    """

    def refuse(*more: str, workdir: Path | None = None) -> str:
        error = error_of(inputs.arguments(workdir or tmp_path / "run", *more), monkeypatch, capsys)
        assert not (tmp_path / "run").exists()
        return error

    return refuse


def test_misspelt_setting_on_the_real_command_line(inputs: Inputs, tmp_path: Path) -> None:
    _, errors = trainer.run(inputs.arguments(tmp_path / "run", "train.batchsize=4"), status=2)
    assert (
        errors
        == "error: config has no setting 'train.batchsize'; did you mean train.batch_size or eval.batch_size or teacher.batch_size?\n"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("setting", ["data.train_photos", "data.test_photos"])
def test_missing_and_empty_photo_folders(refused, tmp_path: Path, setting: str) -> None:
    assert f"{setting}: {tmp_path / 'none'} does not exist" in refused(f"{setting}={tmp_path / 'none'}")
    (tmp_path / "empty").mkdir()
    assert f"{setting}: folder {tmp_path / 'empty'} holds no photo" in refused(f"{setting}={tmp_path / 'empty'}")
    assert f"{setting} is not set" in refused(f"{setting}=")


def test_fewer_photos_than_a_batch(refused) -> None:
    assert "train.batch_size=16 is more than the 12 photos" in refused("train.batch_size=16")


def test_caches_that_do_not_fit(refused, inputs: Inputs, tmp_path: Path) -> None:
    other_teacher = make_cache(tmp_path / "other teacher", inputs.train, teacher="hrnet")
    assert "teacher.name is hrnet in the cache, tresnet_l here" in refused(f"teacher.cache={other_teacher}")
    other_photos = make_cache(tmp_path / "other photos", make_photos(tmp_path / "photos", 5, seed=2))
    assert "number of photos is 5 in the cache, 12 here" in refused(f"teacher.cache={other_photos}")
    assert "data.image_size is 32 in the cache, 64 here" in refused("data.image_size=64")
    assert f"no teacher features (no manifest.json); make them with `python -m teacher_export --config {trainer.CONFIG_FILE}" in refused(
        f"teacher.cache={tmp_path}"
    )
    truncated = make_cache(tmp_path / "truncated", inputs.train)
    shard = sorted(truncated.glob("*.array_record"))[1]
    shard.write_bytes(shard.read_bytes()[:-100])
    assert f"is damaged: {shard.name} has" in refused(f"teacher.cache={truncated}")


def test_undecodable_training_photo(inputs: Inputs, tmp_path: Path, monkeypatch, capsys) -> None:
    photos = Path(shutil.copytree(inputs.train, tmp_path / "photos"))
    for photo in photos.iterdir():
        photo.write_bytes(b"not a photo")
    cache = make_cache(tmp_path / "cache", photos)
    arguments = inputs.arguments(tmp_path / "run", f"data.train_photos={photos}", f"teacher.cache={cache}")
    error = error_of(arguments, monkeypatch, capsys)
    assert re.search(rf"data.train_photos: photo {photos}/\d\d\.png cannot be read as an image", error)
    assert steps(tmp_path / "run") == []


@pytest.mark.parametrize(
    ("shape", "text"), [((32, 32), "has no hole: no pixel is white"), ((32, 48), "48 x 32 pixels, the photos are 32 x 32")]
)
def test_masks_that_do_not_fit(inputs: Inputs, tmp_path: Path, monkeypatch, capsys, shape: tuple[int, int], text: str) -> None:
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.full(shape, 0 if shape[0] == shape[1] else 255, np.uint8)).save(tmp_path / "masks" / "m.png")
    settings = f"data.train_masks={tmp_path / 'masks'}", "data.mask_fit=refuse"
    error = error_of(inputs.arguments(tmp_path / "run", *settings), monkeypatch, capsys)
    assert str(tmp_path / "masks" / "m.png") in error and text in error


def test_resuming_with_changed_settings_lists_them(refused, reference: Path, tmp_path: Path) -> None:
    workdir = copy_at(reference, tmp_path / "copy", STEPS)
    config = (workdir / "config.txt").read_text()
    error = refused("train.seed=1", "optimizer.beta2=0.99", "train.keep_last=3", workdir=workdir)
    assert f"{workdir} holds a run with other settings (optimizer.beta2: 0.9 -> 0.99; train.seed: 0 -> 1)" in error
    assert (workdir / "config.txt").read_text() == config


def test_resuming_with_another_teacher_cache_is_refused(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(loop, "compile_train_step", trainer.idle_step)
    inputs = make_inputs(tmp_path)
    arguments = inputs.arguments(tmp_path / "run", "schedule.length=1")
    trainer.run_here(arguments)
    shutil.rmtree(inputs.cache)
    make_cache(inputs.cache, inputs.train, seed=1)
    error = error_of(arguments, monkeypatch, capsys)
    assert "teacher: " in error and "random(seed=0)" in error and "random(seed=1)" in error


def test_safe_settings_may_change_on_resume(inputs: Inputs, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "compile_train_step", trainer.traced_step)
    workdir = copy_at(reference, tmp_path / "run", 5)
    output, _ = trainer.run_here(
        inputs.arguments(
            workdir,
            *("schedule.length=7", "train.log_every=7", "train.keep_last=1", "train.keep_best=0", "train.micro_batches=2"),
            "eval.seed=1",
        )
    )
    assert "continues at step 5" in output and "4 photos in 2 part(s)" in output
    assert "evaluations change (eval.seed: 0 -> 1): their scores are not compared with earlier ones to find the best" in output
    assert steps(workdir) == [7]
    assert metrics(workdir)[:6] == metrics(reference)[:6]
    assert [line["step"] for line in metrics(workdir)[6:]] == [7, 7]


def test_init_from_a_model_of_another_size(refused, reference: Path, tmp_path: Path) -> None:
    error = refused("model.width=8", "--init", str(reference))
    assert f"checkpoint {reference / FOLDER / '6'} is of another model than the config describes: " in error
    assert "has shape (3, 3, " in error and "more" in error
    assert "is not a folder" in refused("--init", str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("step", "due"),
    [(1, ()), (2, ("checkpoint",)), (3, ("picture",)), (4, ("evaluation", "checkpoint")), (7, ("evaluation", "picture", "checkpoint"))],
)
def test_what_is_due_at_a_step(step: int, due: tuple[str, ...]) -> None:
    train_config = TrainConfig(eval_every=4, image_every=3, checkpoint_every=2)
    expected = Due(**{name: name in due for name in ("evaluation", "picture", "checkpoint")})
    assert due_at(step, 7, train_config) == expected


def test_evaluation_needs_the_checkpoint_alone(inputs: Inputs, reference: Path, tmp_path: Path) -> None:
    newest = newest_checkpoint(reference / FOLDER)
    assert newest is not None
    copied = Path(shutil.copytree(newest, tmp_path / "elsewhere" / "6"))
    arguments = ["run", "--checkpoint", str(copied), "--output", str(tmp_path / "out")]
    # From another folder, where no config file is.
    output, errors = trainer.run(arguments, program=("-m", "spn_jax.evaluate"), cwd=tmp_path)
    assert "checkpoint of step 6; its teacher's weights: random(seed=0)" in output and not errors
    scores = json.loads((tmp_path / "out" / "results.json").read_text())["images"]["spn"]["psnr"]
    # The training's own evaluation used the moving average; so must this one.
    assert np.mean(scores) == pytest.approx(metrics(reference)[-1]["eval/psnr"], rel=1e-6)


def test_sigterm_during_an_evaluation_gives_it_up_and_saves(
    inputs: Inputs, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    until_stopped = HeldOut.until_stopped

    def interrupted(self: HeldOut, batches: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """SIGTERM comes while the evaluation after step 4 reads its second batch."""
        for batch in until_stopped(self, batches):
            yield batch
            os.kill(os.getpid(), signal.SIGTERM)

    workdir = copy_at(reference, tmp_path / "run", 3)
    with monkeypatch.context() as patched:
        patched.setattr(HeldOut, "until_stopped", interrupted)
        output, _ = trainer.run_here(inputs.arguments(workdir), status=143)
    assert "stopped by SIGTERM after step 4" in output and "evaluation" not in output
    output, _ = trainer.run_here(inputs.arguments(workdir))
    assert "step 4  evaluation" in output
    assert_same_run(workdir, reference)
    assert re.search(r"best checkpoint by eval/psnr: .*checkpoints/[46]\n", output)
    assert "teacher: tresnet_l, weights random(seed=0), features in bfloat16" in output


def test_a_second_run_in_the_same_folder_is_refused(refused, reference: Path, tmp_path: Path) -> None:
    workdir = copy_at(reference, tmp_path / "copy", 5)
    with only_run_in(workdir):
        message = f"another run is writing to --workdir {workdir} (process {os.getpid()} on {socket.gethostname()}); wait for it"
        assert message in refused(workdir=workdir)


def test_init_keeps_new_heads_where_the_teacher_is_another(
    inputs: Inputs, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "compile_train_step", trainer.idle_step)
    output, _ = trainer.run_here(inputs.arguments(tmp_path / "run", "loss.prior=0", "schedule.length=1", "--init", str(reference)))
    assert "starts from the parameters of" in output and "teacher: none" in output
    assert "these of its distillation heads do not fit this run and are left out: prior_learner.distillation_heads.0.bias" in output
    assert not any("distillation_heads" in name for name in last_arrays(tmp_path / "run"))
    assert any("distillation_heads" in name for name in last_arrays(reference))


def test_overrides_may_stand_anywhere() -> None:
    options = train.parse_arguments(["a.b=1", "--config", "C", "c.d=2", "--workdir", "W", "e.f=3"])
    assert (options.config, options.workdir, options.overrides) == ("C", Path("W"), ["a.b=1", "c.d=2", "e.f=3"])


@pytest.mark.parametrize("flags", [("--processes", "2"), ("--coordinator", "127.0.0.1:1"), ("--process", "1", "--processes", "2")])
def test_half_a_description_of_the_processes_is_refused(refused, flags: tuple[str, ...]) -> None:
    assert "needs --coordinator, --processes, --process in each of them; missing here: " in refused(*flags)


def slurm(gpus: str, own: int, tasks: str, node: int = 0) -> dict[str, str]:
    """The variables of a task of SLURM."""
    return {"CUDA_VISIBLE_DEVICES": gpus, "SLURM_LOCALID": str(own), "SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_NODEID": str(node)}


def open_mpi(gpus: str, own: int, processes: int) -> dict[str, str]:
    """The variables of a process of Open MPI, in a job of SLURM with one task."""
    ranks = {"OMPI_COMM_WORLD_LOCAL_RANK": str(own), "OMPI_COMM_WORLD_LOCAL_SIZE": str(processes)}
    return slurm(gpus, 0, "1") | ranks


@pytest.mark.parametrize(
    ("environment", "taken"),
    [
        (slurm("0,1,2,3", 0, "1(x2)", 1), [0, 1, 2, 3]),  # one process a machine takes all
        (slurm("0,1,2,3", 2, "4(x2)", 1), [2]),  # one a GPU, and each sees all
        (slurm("0,1,2,3", 1, "4,2", 1), [2, 3]),
        (slurm("0,1,2,3", 1, "4(x2),2", 2), [2, 3]),
        (slurm("5", 3, "4"), [0]),  # each sees its own alone
        (open_mpi("0,1", 1, 2), [1]),
        (open_mpi("GPU-8932f937-d72c,GPU-f9a1", 0, 1), [0, 1]),
        (slurm("", 0, "1"), None),
        (slurm("0,1", 0, "1", node=7), None),
        ({"SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_NODEID": "0"}, None),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, None),
    ],
)
def test_the_processes_of_a_machine_share_its_gpus(environment: dict[str, str], taken: list[int] | None) -> None:
    assert own_gpus(environment) == taken


@pytest.mark.parametrize("tasks", ["3", "8"])
def test_processes_that_cannot_use_all_gpus_are_refused(tasks: str) -> None:
    said = rf"^{tasks} processes on this machine cannot share the 4 GPUs that each of them sees; start 1 or 4 on each machine$"
    with pytest.raises(InputError, match=said):
        own_gpus(slurm("0,1,2,3", 1, tasks))


@pytest.mark.parametrize(("options", "taken"), [(["--cluster"], [2]), (["--coordinator=h:1", "--processes=2", "--process=1"], None)])
def test_jax_is_told_which_gpus_to_take_where_a_cluster_tells(
    monkeypatch: pytest.MonkeyPatch, options: list[str], taken: list[int] | None
) -> None:
    told: list[list[int] | None] = []
    for name, value in slurm("0,1,2,3", 2, "4").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *where, local_device_ids, **others: told.append(local_device_ids))
    join_processes(train.parse_arguments(["--config", trainer.CONFIG_FILE, *options]))
    assert told == [taken]


def test_cluster_and_explicit_processes_exclude_each_other(refused) -> None:
    assert "--cluster finds out about the other processes by itself" in refused("--cluster", "--process", "0")
