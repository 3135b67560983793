"""Trains SPN: `python -m spn_jax.train --config configs/celeba.py [--workdir DIR] [section.key=value ...]`.

The same command continues a run that was stopped or killed, exactly: everything random follows from the seeds and the step.
"""

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NamedTuple, NoReturn, Self

import jax
import jax.numpy as jnp
import numpy as np
from clu import parameter_overview
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh

import spn_jax
from spn_jax.checkpoint import (
    BEST_METRIC,
    FOLDER,
    Checkpoints,
    find_checkpoint,
    load_discriminator,
    load_parameters,
    newest_checkpoint,
    read_info,
    restore,
    stored_metadata,
)
from spn_jax.config import Config, TrainConfig, changed_settings, describe, from_dict, load_config, to_dict
from spn_jax.data.images import KeptPhotos, PhotoSource, open_photos
from spn_jax.data.masks import MaskSource, open_test_masks, open_train_masks
from spn_jax.data.pipeline import evaluation_batches, steps_per_epoch, training_batches
from spn_jax.data.teacher import TeacherCache
from spn_jax.errors import InputError, find_input_error, run_command
from spn_jax.evaluate import evaluate_model, sample_grid, summarise
from spn_jax.files import lock_folder, write_atomically
from spn_jax.log import MetricsLog, Progress, has_evaluation, quiet_libraries
from spn_jax.models.spn import SPN
from spn_jax.models.tresnet import TResNetTrunk
from spn_jax.pairs import draw_pairs
from spn_jax.parameters import named_arrays, with_named_arrays
from spn_jax.runtime import set_up
from spn_jax.sharding import check_divisible, gather, make_mesh, replicate, shard_batch, state_sharding
from spn_jax.step import (
    Frozen,
    Metrics,
    StepGraph,
    TrainState,
    build_networks,
    compile_train_step,
    create_state,
    matmul_precision,
    resolve_schedule,
)
from spn_jax.weights import load_tresnet, load_vgg19

Say = Callable[[str], None]


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


@dataclasses.dataclass(frozen=True)
class Data:
    """Photos and masks of training and of evaluation, and the teacher's features of the former (None: no prior loss)."""

    photos: PhotoSource
    masks: MaskSource
    cache: TeacherCache | None
    test_photos: PhotoSource
    test_masks: MaskSource


def open_data(config: Config, config_file: str) -> Data:
    """Opens all data of a run; InputError if something is missing or does not fit."""
    photos = open_photos(config.data.train_photos, "data.train_photos")
    return Data(
        photos=KeptPhotos(photos, config.data.keep_decoded * 10**6),
        masks=open_train_masks(config),
        cache=open_cache(config, photos, config_file),
        test_photos=open_photos(config.data.test_photos, "data.test_photos"),
        test_masks=open_test_masks(config),
    )


def open_cache(config: Config, photos: PhotoSource, config_file: str) -> TeacherCache | None:
    """The teacher's cached features, checked against config and photos; None without a prior loss, or where the teacher itself runs."""
    if config.loss.prior == 0 or is_online(config):
        return None
    cache = TeacherCache.open(config.teacher.cache, config_file)
    cache.check(config, photos)
    return cache


@dataclasses.dataclass(frozen=True)
class Lessons:
    """What the prior learner distils; nothing in a run without a prior loss."""

    channels: Mapping[int, int]  # of the teacher's maps by level
    origin: str | None  # of the teacher's weights, for people
    identity: str | None  # equal where the features are
    summary: str


def open_lessons(config: Config, data: Data, frozen: Frozen, origin: str | None) -> Lessons:
    """Where the targets of the prior loss come from: the cache, or the teacher in `frozen`, whose weights are from `origin`."""
    if data.cache is not None:
        manifest = data.cache.manifest
        line = f"teacher: {manifest.teacher}, weights {manifest.weights_origin}, features in {manifest.dtype}"
        return Lessons(data.cache.channels, manifest.weights_origin, data.cache.identity(), line)
    if frozen.teacher is None:
        return Lessons({}, None, None, "teacher: none (loss.prior=0), trained without distillation")
    assert isinstance(frozen.teacher, TResNetTrunk)
    line = f"teacher: {config.teacher.name}, weights {origin}, run in the step"
    return Lessons(frozen.teacher.channels, origin, f"online {weights_identity(origin)}", line)


class Origins(NamedTuple):
    """Where the weights of frozen networks come from, for people; None for one that is not there."""

    teacher: str | None = None
    vgg: str | None = None


def open_frozen(config: Config) -> tuple[Frozen, Origins]:
    """The networks that the losses need; InputError if they cannot be had.

    All in float32 whatever the trained networks compute in: the targets do not change with a setting for speed, and rounded to
    bfloat16 most pixels of two samples would be equal to VGG19.
    """
    frozen, origins = Frozen(), Origins()
    if is_online(config):
        teacher, origin = load_tresnet(config.teacher.weights, config.model.prior_levels, jnp.float32)
        frozen, origins = frozen._replace(teacher=teacher), origins._replace(teacher=origin)
    if config.loss.perceptual or config.loss.diversity:
        vgg, origin = load_vgg19(config.loss.vgg, config.train.seed, jnp.float32)
        frozen, origins = frozen._replace(vgg=vgg), origins._replace(vgg=origin)
    return frozen, origins


def is_online(config: Config) -> bool:
    """Whether the teacher runs in the step."""
    return config.loss.prior > 0 and config.teacher.mode == "online"


def checkpoint_info(config: Config, data: Data, lessons: Lessons, vgg_origin: str | None) -> dict[str, Any]:
    """What every checkpoint of the run says about itself."""
    return {
        "model": config.model.kind,
        "version": spn_jax.__version__,
        "config": to_dict(config),
        "teacher": {
            "channels": {str(level): channels for level, channels in lessons.channels.items()},
            "origin": lessons.origin,
            "identity": lessons.identity,
        },
        "vgg": vgg_origin,
        "data": {"photos": digest(data.photos.names), "masks": digest(data.masks.names)},
    }


def digest(names: Sequence[str]) -> str:
    """How many names there are and the start of their SHA-256."""
    return f"{len(names):,} ({hashlib.sha256(chr(10).join(names).encode()).hexdigest()[:12]})"


def check_same_run(stored: Mapping[str, Any], info: Mapping[str, Any], config: Config, workdir: Path) -> None:
    """Raises InputError, listing what differs, if a checkpoint belongs to a run with other settings or another teacher."""
    if "converted_from" in stored:
        raise InputError(
            f"{workdir} holds a converted checkpoint, which has nothing to continue; choose another --workdir and start from it with --init"
        )
    lines = changed_settings(from_dict(stored["config"], origin=str(workdir)), config)
    if any(stored["teacher"][key] != info["teacher"][key] for key in ("channels", "identity")):
        lines.append(f"teacher: {stored['teacher']} -> {info['teacher']}")
    if weights_identity(stored.get("vgg")) != weights_identity(info["vgg"]):
        lines.append(f"weights of VGG19: {stored.get('vgg')} -> {info['vgg']}")
    before, now = stored.get("data", info["data"]), info["data"]
    lines += [f"training {kind}: {before[kind]} -> {now[kind]}" for kind in now if before[kind] != now[kind]]
    if lines:
        raise InputError(
            f"{workdir} holds a run with other settings ({'; '.join(lines)}); "
            "give the settings back their values, or choose another --workdir (with --init to start from its parameters)"
        )


def head_names(folder: Path) -> list[str]:
    """Parameters of the distillation heads in a checkpoint."""
    return sorted(name for name in stored_metadata(folder).metadata["model"] if name.startswith(HEADS))


def weights_identity(origin: str | None) -> str | None:
    """What of the text that `load_vgg19` gives does not depend on the name of a file: the weights' hash, or the seed of random ones."""
    return origin.rpartition("sha256 ")[2] if origin else None


def initialise_from(state: TrainState, path: str, mesh: Mesh, say: Say) -> TrainState:
    """The state of a new run that starts from a checkpoint's parameters, those of its discriminator included.

    Distillation heads belong to a teacher: those that do not fit this run's keep their new values. So does the discriminator
    where the checkpoint has none or one of another kind. `say` is told.
    """
    folder = find_checkpoint(path)
    wanted = named_arrays(state.model)
    arrays = {name: np.asarray(array) for name, array in load_parameters(folder, wanted, optional=HEADS).items()}
    model = replicate(with_named_arrays(state.model, {**wanted, **arrays}, what=str(folder)), mesh)
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise InputError(
            f"checkpoint {folder} holds parameters that are not finite, its training diverged; pass an earlier one with --init"
        )
    say(f"starts from the parameters of {folder}")
    if left := [name for name in head_names(folder) if name not in arrays]:
        say(f"these of its distillation heads do not fit this run and are left out: {', '.join(left)}")
    if anew := [name for name in wanted if name not in arrays]:
        say(f"these of this run's start anew: {', '.join(anew)}")
    ema = None if state.ema is None else jax.tree.map(jnp.copy, model)  # the step overwrites both, so they must not share memory
    state = dataclasses.replace(state, model=model, ema=ema)

    judge = load_discriminator(folder)
    kernels, vectors = named_arrays(state.discriminator), named_arrays(state.spectral)
    if judge is None or shapes(judge) != shapes({**kernels, **vectors}):
        say(f"the discriminator starts anew: the checkpoint has {'none' if judge is None else 'another kind'}")
        return state
    discriminator, spectral = (
        replicate(with_named_arrays(tree, {name: np.asarray(judge[name]) for name in names}, what=str(folder)), mesh)
        for tree, names in ((state.discriminator, kernels), (state.spectral, vectors))
    )
    return dataclasses.replace(state, discriminator=discriminator, spectral=spectral)


def shapes(arrays: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of every named array."""
    return {name: np.shape(array) for name, array in arrays.items()}


HEADS = "prior_learner.distillation_heads."


def evaluated_model(graph: StepGraph, state: TrainState, mesh: Mesh) -> SPN:
    """The model that evaluations and pictures use, whole on every device: the moving average where there is one."""
    return nnx.merge(graph.model, gather(state.model if state.ema is None else state.ema, mesh))


def read_batches(config: Config, data: Data, start: int, steps: int) -> Any:
    """This process's part of the batches of steps start, ..., steps - 1."""
    return training_batches(
        config,
        data.photos,
        data.masks,
        data.cache,
        start_step=start,
        steps=steps,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        with_2x=is_online(config),
    )


@dataclasses.dataclass(frozen=True)
class Due:
    """What there is to do after a step."""

    evaluation: bool
    picture: bool
    checkpoint: bool


def due_after(step: int, steps: int, train: TrainConfig) -> Due:
    """Every so often, as the settings say, and all of it after the last of `steps` steps; every evaluation has its checkpoint."""

    def is_time(every: int) -> bool:
        return step == steps or step % every == 0

    evaluation = is_time(train.eval_every)
    return Due(evaluation=evaluation, picture=is_time(train.image_every), checkpoint=evaluation or is_time(train.checkpoint_every))


class EvaluationGivenUp(Exception):
    """SIGTERM came during an evaluation."""


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """The photos that the run is evaluated on, and where the scores go."""

    config: Config
    mesh: Mesh
    data: Data
    log: MetricsLog | None  # None in all processes but the first
    say: Say
    stopped: "Stop"

    def look(self, step: int, due: Due, model: SPN) -> dict[str, float] | None:
        """Draws the picture and makes the evaluation that are due after `step`; returns the scores of the latter.

        SIGTERM ends the evaluation early; then there are no scores.
        """
        if due.picture:
            grid = sample_grid(model, self.batches(PICTURES), self.mesh, self.config)
            if self.log:
                self.log.write_image(step, "eval/samples", grid)
        if not due.evaluation:
            return None
        try:
            batches = self.until_stopped(self.batches(self.config.eval.photos))
            records = evaluate_model(model, batches, self.mesh, self.config, self.data.test_masks.tenths(self.pairs))
        except EvaluationGivenUp:
            return None
        scores = summarise(records)
        self.say(f"step {step}  evaluation  " + "  ".join(f"{name} {scores[name]:.4g}" for name in SCORES_SHOWN))
        if self.log:
            self.log.write(step, scores)
        return scores

    @functools.cached_property
    def pairs(self) -> np.ndarray:
        """The number of each photo's mask."""
        return draw_pairs(len(self.data.test_photos), len(self.data.test_masks), self.config.eval.seed)

    def until_stopped(self, batches: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The batches; EvaluationGivenUp once SIGTERM came."""
        for batch in batches:
            if self.stopped.during_evaluation():
                raise EvaluationGivenUp
            yield batch

    def batches(self, limit: int | None) -> Iterator[dict[str, Any]]:
        """The first `limit` photos, each with the mask that config.eval.seed gives it."""
        return evaluation_batches(
            self.config,
            self.data.test_photos,
            self.data.test_masks,
            self.pairs,
            self.config.eval.batch_size,
            limit=limit,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )


PICTURES = 8  # photos in the grids that training draws
SCORES_SHOWN = ("eval/psnr", "eval/ssim", "eval/mae")


class StepReports:
    """Checks and logs the metrics of each step once the next one has been started."""

    def __init__(self, log_every: int, log: MetricsLog | None, progress: Progress, say: Say):
        self._log_every, self._log, self._progress, self._say = log_every, log, progress, say
        self._pending: tuple[int, Metrics] | None = None

    def add(self, step: int, metrics: Metrics) -> None:
        """Takes the metrics of a step that has just been started and reports those of the step before; InputError as `flush`."""
        self.flush()
        self._pending = step, metrics

    def flush(self) -> None:
        """Reports what was added last, waiting for its step.

        Raises:
            InputError: a loss is not finite.
        """
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        stop_unless_finite(step, [name for name, value in values.items() if not math.isfinite(value)])
        if step % self._log_every == 0:
            if self._log:
                rate = self._progress.rate(step)
                self._log.write(step, values | ({"time/steps_per_second": rate} if rate else {}))
            self._say(self._progress.line(step, values))


def stop_unless_finite(step: int, broken: Sequence[str]) -> None:
    """Raises InputError if there are names of broken values."""
    if broken:
        raise InputError(
            f"at step {step} these values are not finite: {', '.join(broken)}; the last checkpoint is from before. "
            "Lower optimizer.learning_rate, or use train.compute_dtype=float32, and start the command again"
        )


def check_finite(step: int, state: TrainState) -> None:
    """Raises InputError for a state that must not be saved: a finite loss can have a gradient that is not."""
    finite = all_finite({"prior learner and generator": state.model, "discriminator": state.discriminator})
    stop_unless_finite(step, [f"parameters of the {name}" for name, value in finite.items() if not value])


@jax.jit
def all_finite(trees: dict[str, Any]) -> dict[str, jax.Array]:
    """For each tree whether all of its numbers are finite."""
    return {name: jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]).all() for name, tree in trees.items()}


@contextlib.contextmanager
def only_run_in(workdir: Path) -> Iterator[None]:
    """Makes the work directory and locks it until the process ends; InputError if it cannot be made or another run is in it."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        handle = os.open(workdir, os.O_RDONLY)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"--workdir {workdir} cannot be written ({reason}); choose another folder or free space") from error
    try:
        lock_folder(handle, f"another run is writing to --workdir {workdir}; wait for it or stop it")
        yield
    finally:
        os.close(handle)


def write_descriptions(workdir: Path, config: Config, parameters: nnx.State) -> None:
    """Writes the resolved settings and the table of parameters, for people to read."""
    write_atomically(workdir / "parameters.txt", parameter_overview.get_parameter_overview(named_arrays(parameters)) + "\n")
    write_atomically(workdir / "config.txt", "\n".join(describe(config)) + "\n")


def summary(
    config: Config, state: TrainState, mesh: Mesh, data: Data, lessons: Lessons, steps: int, vgg_origin: str | None
) -> Iterator[str]:
    """The lines a run begins with: parameters by part, devices, sizes of the data."""
    for network, tree in ("", state.model), ("discriminator.", state.discriminator):
        counts: dict[str, int] = {}
        for name, array in named_arrays(tree).items():
            part = network + ".".join(name.split(".")[:2])
            counts[part] = counts.get(part, 0) + math.prod(array.shape)
        yield from (f"{part:42}{count:>14,} parameters" for part, count in counts.items())
        yield f"{'total ' + (network.rstrip('.') or 'prior learner and generator'):42}{sum(counts.values()):>14,} parameters"
    kind = jax.devices()[0].device_kind
    yield f"devices: {mesh.size} x {kind}, mesh data={mesh.size}, {jax.process_count()} process(es)"
    yield f"photos: {len(data.photos):,} for training, {len(data.test_photos):,} held out"
    yield f"masks: {len(data.masks):,} for training, {len(data.test_masks):,} held out"
    yield lessons.summary
    if vgg_origin:
        yield f"VGG19: weights {vgg_origin}"
    train = config.train
    completions = f", {train.samples} completions each," if train.samples > 1 else ""
    yield f"steps: {steps:,} of {train.batch_size} photos{completions} in {train.micro_batches} part(s), computed in {train.compute_dtype}"


class Stop:
    """Whether to stop, because SIGTERM came here or (agreed on by all) in any process."""

    def __init__(self) -> None:
        self._came = False

    def __call__(self, step: int) -> bool:
        """After a step. Every process must ask after every step."""
        if jax.process_count() > 1:  # jax.distributed has installed a handler that tells the other processes
            return multihost_utils.reached_preemption_sync_point(step)
        return self._came

    def during_evaluation(self) -> bool:
        """At any time. Several processes could not agree in the middle of a step, so there it is False."""
        return self._came

    def __enter__(self) -> Self:
        if jax.process_count() == 1:
            self._previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, self._previous)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._came = True


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m spn_jax.train", description=__doc__)
    parser.add_argument("--config", required=True, help="a file of configs/")
    parser.add_argument("--workdir", type=Path, help="folder for checkpoints and logs; default runs/<name of the config>")
    parser.add_argument("--init", metavar="CHECKPOINT", help="start a new run from these parameters (fine-tuning)")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0, for a run of several processes")
    parser.add_argument("--processes", type=int, help="number of processes")
    parser.add_argument("--process", type=int, help="number of this process, from 0")
    parser.add_argument("--cluster", action="store_true", help="several processes that SLURM, MPI or a TPU pod tells about each other")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that differ from the config file")
    return parser.parse_intermixed_args(arguments)


def main(arguments: Sequence[str]) -> None:
    """The command line."""
    quiet_libraries()
    options = parse_arguments(arguments)
    config = load_config(options.config, options.overrides)
    join_processes(options)
    workdir = options.workdir or Path("runs") / Path(options.config).stem
    try:
        train(config, workdir, config_file=options.config, init=options.init)
    except Exception as error:
        if jax.process_count() == 1:
            raise
        end_all_processes(error)


def join_processes(options: argparse.Namespace) -> None:
    """Joins the other processes of the run, if the command line says that there are any; InputError if that does not work."""
    by_hand = {"--coordinator": options.coordinator, "--processes": options.processes, "--process": options.process}
    missing = [name for name, value in by_hand.items() if value is None]
    if options.cluster and len(missing) < len(by_hand):
        raise InputError("--cluster finds out about the other processes by itself; leave out --coordinator, --processes and --process")
    if len(missing) == len(by_hand) and not options.cluster:
        return
    if missing and not options.cluster:
        raise InputError(f"a run of several processes needs {', '.join(by_hand)} in each of them; missing here: {', '.join(missing)}")
    try:
        jax.distributed.initialize(options.coordinator, options.processes, options.process, heartbeat_timeout_seconds=30)
    except (ValueError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"the processes of the run did not find each other ({reason}); check --coordinator, --processes, --process"
        ) from error


LAST_WORDS = 5  # seconds in which other processes that meet the same error may say so


def end_all_processes(error: Exception) -> NoReturn:
    """Reports an error and ends this process at once, which ends the others.

    The ordinary way out would wait for them, and they wait for this one in the middle of a step.
    """
    wrong_input = find_input_error(error)
    if wrong_input is None:
        traceback.print_exception(error)
    else:
        print(f"error: {wrong_input}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.process_index() == 0:  # with it goes the service that joins them, and then the others are aborted
        time.sleep(LAST_WORDS)
    os._exit(1 if wrong_input is None else 2)


if __name__ == "__main__":
    set_up(training=True)
    run_command(main)
