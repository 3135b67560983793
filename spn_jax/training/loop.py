"""Runs the training loop."""

import contextlib
import functools
from pathlib import Path

import jax

from spn_jax.checkpoints.store import BEST_METRIC, Checkpoints, read_info, restore
from spn_jax.config import Config
from spn_jax.data.pipeline import steps_per_epoch
from spn_jax.runtime.device import on_host
from spn_jax.runtime.log import MetricsLog, StepClock
from spn_jax.runtime.sharding import check_divisible, make_mesh, place, replicate, shard_batch, state_sharding
from spn_jax.training.held_out import HeldOut, due_at, due_at_start, evaluated_model
from spn_jax.training.inputs import checked_masks, open_data, open_distillation_targets, open_frozen, read_batches
from spn_jax.training.processes import Stop, Stopped, only_run_in
from spn_jax.training.reports import Say, StepReports, check_finite, out_of_memory_in_words, summary, write_descriptions
from spn_jax.training.resume import changed_protocol, check_same_run, checkpoint_info, find_beginning, initialise_from
from spn_jax.training.state import TrainState, build_networks, create_state, resolve_schedule
from spn_jax.training.step import compile_train_step, matmul_precision


def train(config: Config, workdir: Path, *, config_file: str = "configs/NAME.py", init: str | None = None) -> TrainState:
    """Trains until the schedule's end and returns the last state.

    Args:
        config: all settings.
        workdir: receives checkpoints, metrics.jsonl, TensorBoard events, the resolved config and
            the table of parameters.
        config_file: named in errors.
        init: checkpoint whose parameters a new run starts from; a run with checkpoints of its own
            continues from those.

    Raises:
        InputError: settings, data or checkpoint are wrong; a loss is not finite; a file cannot be
            written.
        Stopped: SIGTERM or Ctrl-C came; the state is saved if there was a step.
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

    # Networks, and the state of a new run, which no device holds as a whole if it is to be split
    frozen, origins = open_frozen(config)
    distillation = open_distillation_targets(config, data, frozen, origins.teacher)
    with on_host():
        graph, state = create_state(config, schedule, *build_networks(config, distillation.channels))
    is_split = config.train.shard_parameters
    sharding = state_sharding(state, mesh, is_split)
    for line in summary(config, state, mesh, data, distillation, schedule.length, origins.vgg):
        say(line)

    with contextlib.ExitStack() as stack:
        # The start: this run's newest checkpoint, another run's parameters, or new ones. The folder
        # is locked first, because a run that is about to end may still write to it.
        if is_main:
            stack.enter_context(only_run_in(workdir))
        info = checkpoint_info(config, data, distillation, origins.vgg)
        newest, is_evaluated = find_beginning(workdir)
        if newest is not None:
            stored = read_info(newest)
            check_same_run(stored, info, config, workdir)
            state = restore(newest, state, mesh, is_split)
            say(f"continues at step {newest.name}" + (f"; --init {init} was for the first start and is not read again" if init else ""))
            for line in changed_protocol(stored, config, workdir):
                say(line)
        else:
            if init is not None:
                with on_host():
                    state = initialise_from(state, init, schedule.learning_rate, say)
            state = place(state, sharding)
        start = int(state.step)
        if start >= schedule.length and is_evaluated:
            say(f"finished: {workdir} has all {schedule.length} steps; raise schedule.length to train on")
            return state
        first_due = due_at_start(start, schedule.length, config.train, is_evaluated=is_evaluated, is_initialised=init is not None)

        # What is open while the loop runs
        if is_main:
            write_descriptions(workdir, config, state.model)
        log = stack.enter_context(MetricsLog(workdir, start)) if is_main else None
        checkpoints = stack.enter_context(Checkpoints(workdir, config.train.keep_last, config.train.keep_best, config))
        stop = stack.enter_context(Stop())
        batches = stack.enter_context(contextlib.closing(read_batches(config, data, start, schedule.length)))
        stack.enter_context(matmul_precision(config))
        train_step, frozen = compile_train_step(graph, mesh, sharding if is_split else None), replicate(frozen, mesh)
        clock = StepClock(start, schedule.length)
        reports = StepReports(config.train.log_every, log, clock, say)
        held_out = HeldOut(config, mesh, data, log, say, stop)

        # The loop. What is due at a step is done before it, with the state before it, so that a run
        # stopped before an evaluation makes it after its restart. A step is reported while the next
        # one runs, so that the device never waits.
        for step in range(start, schedule.length + 1):
            due = first_due if step == start else due_at(step, schedule.length, config.train)
            stopping = stop(step)
            failure = checkpoints.background_failure()
            if due.evaluation or due.picture or due.checkpoint or stopping or failure:
                # The lines about all steps so far must be on the disk before their checkpoint.
                reports.flush()
                scores = None
                with clock.paused():
                    if not stopping and (due.evaluation or due.picture):
                        model = evaluated_model(graph, state, mesh)
                        held_out.draw_if_due(step, due, model)
                        scores = held_out.evaluate_if_due(step, due, model)
                        del model  # its memory is needed for the step
                    stopping = stopping or stop.came_here()
                    if failure is not None:
                        say(f"{failure}. The present state is saved instead")
                    if due.checkpoint or failure or (stopping and step > 0):
                        check_finite(step, state)
                        checkpoints.save(step, state, {**info, "step": step}, scores)
                    if failure is not None:
                        checkpoints.wait()  # if there is still no room, the run ends here
            if stopping or step == schedule.length:
                break
            with out_of_memory_in_words(config.train):
                state, metrics = train_step(state, frozen, shard_batch(next(batches), mesh))
                if step == start:
                    jax.block_until_ready(metrics)
                    clock.restart(step + 1)
            reports.add(step + 1, metrics)

        checkpoints.wait()
        if checkpoints.best:
            say(f"best checkpoint by {BEST_METRIC}: {checkpoints.best}")
        if stopping:
            say(f"stopped by {stop.signal.name} after step {step}; the same command continues there")
            raise Stopped(stop.signal)
    return state
