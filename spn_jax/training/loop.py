"""The training loop."""

import contextlib
import functools
from pathlib import Path

import jax

from spn_jax.checkpoints.store import BEST_METRIC, FOLDER, Checkpoints, newest_checkpoint, read_info, restore
from spn_jax.config import Config
from spn_jax.data.pipeline import steps_per_epoch
from spn_jax.runtime.log import MetricsLog, Progress, has_evaluation
from spn_jax.runtime.sharding import check_divisible, gather, make_mesh, replicate, shard_batch, state_sharding
from spn_jax.training.held_out import HeldOut, due_after, evaluated_model
from spn_jax.training.inputs import checked_masks, open_data, open_frozen, open_lessons, read_batches
from spn_jax.training.processes import Stop, only_run_in
from spn_jax.training.reports import Say, StepReports, check_finite, summary, write_descriptions
from spn_jax.training.resume import check_same_run, checkpoint_info, initialise_from
from spn_jax.training.step import TrainState, build_networks, compile_train_step, create_state, matmul_precision, resolve_schedule


def train(config: Config, workdir: Path, *, config_file: str = "configs/NAME.py", init: str | None = None) -> TrainState:
    """Trains until the schedule's end, or until SIGTERM, and returns the last state.

    Args:
        config: all settings.
        workdir: receives checkpoints, metrics.jsonl, TensorBoard events, the resolved config and the table of parameters.
        config_file: named in error texts.
        init: checkpoint whose parameters a new run starts from; a run that has checkpoints of its own continues those.

    Raises:
        InputError: wrong settings, data or checkpoint; a loss that is not finite; a file that cannot be written.
    """
    # Devices
    mesh = make_mesh()
    check_divisible(config.train.batch_size, mesh.size, "train.batch_size", config.train.micro_batches)
    check_divisible(config.eval.batch_size, mesh.size, "eval.batch_size")
    is_main = jax.process_index() == 0
    say: Say = functools.partial(print, flush=True) if is_main else lambda text: None

    # Data, and the times of the schedule in steps
    data = open_data(config, config_file)
    for line in checked_masks(config, data) if is_main else ():
        say(line)
    schedule = resolve_schedule(config, steps_per_epoch(config, data.photos))

    # Networks and state
    frozen, origins = open_frozen(config)
    lessons = open_lessons(config, data, frozen, origins.teacher)
    graph, state = create_state(config, schedule, *build_networks(config, lessons.channels))
    split = config.train.shard_parameters
    kept = state_sharding(state, mesh, split)
    state = jax.device_put(state, kept)
    for line in summary(config, state, mesh, data, lessons, schedule.length, origins.vgg):
        say(line)

    # Where to start: from this run's newest checkpoint, from the parameters of another run, or anew
    info = checkpoint_info(config, data, lessons, origins.vgg)
    newest = newest_checkpoint(workdir / FOLDER)
    evaluate_first = False
    if newest is not None:
        stored = read_info(newest)
        check_same_run(stored, info, config, workdir)
        state = restore(newest, state, mesh, split)
        evaluate_first = stored.get("interrupted", False) and not has_evaluation(workdir, int(state.step))
        say(f"continues at step {newest.name}" + (f"; --init {init} was for the first start and is not read again" if init else ""))
    elif init is not None:
        state = jax.device_put(initialise_from(state, init, mesh, say), kept)
    start = int(state.step)
    if start >= schedule.length and not evaluate_first:
        say(f"finished: {workdir} has all {schedule.length} steps; raise schedule.length to train on")
        return state

    # What is open while the loop runs
    with contextlib.ExitStack() as stack:
        parameters = gather(state.model, mesh)
        if is_main:
            stack.enter_context(only_run_in(workdir))
            write_descriptions(workdir, config, parameters)
        log = stack.enter_context(MetricsLog(workdir, start)) if is_main else None
        checkpoints = stack.enter_context(Checkpoints(workdir, config.train.keep_last, config.train.keep_best))
        stopped = stack.enter_context(Stop())
        batches = stack.enter_context(contextlib.closing(read_batches(config, data, start, schedule.length)))
        stack.enter_context(matmul_precision(config))
        train_step, frozen = compile_train_step(mesh, kept if split else None), replicate(frozen, mesh)
        progress = Progress(start, schedule.length)
        reports = StepReports(config.train.log_every, log, progress, say)
        held_out = HeldOut(config, mesh, data, log, say, stopped)

        if evaluate_first:  # SIGTERM came before the evaluation of the step that the run continues at
            held_out.look(start, due_after(start, schedule.length, config.train), evaluated_model(graph, state, mesh))
            say(f"the checkpoint of step {start} was saved before this evaluation, so it cannot be kept as the best one")

        # The loop: a step is reported while the next one runs, so that the device never waits
        for step in range(start + 1, schedule.length + 1):
            state, metrics = train_step(graph, state, frozen, shard_batch(next(batches), mesh))
            reports.add(step, metrics)
            if step == start + 1:
                jax.block_until_ready(metrics)
                progress.restart(step)

            due, stopping = due_after(step, schedule.length, config.train), stopped(step)
            if not (due.evaluation or due.picture or due.checkpoint or stopping):
                continue

            # Every line about the steps up to here is on the disk before their checkpoint is. Who sends SIGTERM does not wait
            # for an evaluation: it is given up, and the next start makes up for it.
            reports.flush()
            with progress.paused():
                scores = None if stopping else held_out.look(step, due, evaluated_model(graph, state, mesh))
                stopping = stopping or stopped.during_evaluation()
                if due.checkpoint or stopping:
                    check_finite(step, state)
                    checkpoints.save(step, state, {**info, "step": step, "interrupted": stopping}, scores)
            if stopping:
                say(f"stopped by SIGTERM after step {step}; the same command continues there")
                break
        checkpoints.wait()
        if checkpoints.best:
            say(f"best checkpoint by {BEST_METRIC}: {checkpoints.best}")
    return state
