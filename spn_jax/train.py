"""Trains SPN: `python -m spn_jax.train --config configs/celeba.py [--workdir DIR] [section.key=value ...]`.

The same command continues a run that was stopped or killed, exactly: everything random follows from the seeds and the step.
"""

import argparse
import contextlib
import functools
import math
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from clu import parameter_overview
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh

import spn_jax
from spn_jax import figures
from spn_jax.checkpoint import Checkpoints, find_checkpoint, load_parameters
from spn_jax.config import Config, changed_settings, describe, from_dict, load_config, to_dict
from spn_jax.data.images import PhotoSource, open_photos
from spn_jax.data.masks import MaskSource, open_test_masks, open_train_masks
from spn_jax.data.pipeline import evaluation_batches, steps_per_epoch, training_batches
from spn_jax.data.teacher import TeacherCache
from spn_jax.errors import InputError, run_command
from spn_jax.evaluate import evaluate_model, scored_batches, summarise
from spn_jax.log import MetricsLog, Progress
from spn_jax.models.spn import SPN
from spn_jax.pairs import draw_pairs
from spn_jax.parameters import named_arrays, with_named_arrays
from spn_jax.sharding import check_divisible, make_mesh, replicate, shard_batch
from spn_jax.step import Frozen, Metrics, StepGraph, TrainState, build_networks, compile_train_step, create_state, resolve_schedule


def train(config: Config, workdir: Path, *, config_file: str = "configs/NAME.py", init: str | None = None) -> TrainState:
    """Trains until the schedule's end, or until SIGTERM, and returns the last state.

    Args:
        config: all settings.
        workdir: receives checkpoints, metrics.jsonl, TensorBoard events, the resolved config and the table of parameters.
        config_file: named in error texts.
        init: checkpoint whose parameters a new run starts from; a run that has checkpoints of its own continues those.

    Raises:
        InputError: wrong settings, data or checkpoint; a loss that is not finite; a checkpoint that cannot be written.
    """
    # Devices
    mesh = make_mesh()
    check_divisible(config.train.batch_size, mesh.size, "train.batch_size", config.train.micro_batches)
    check_divisible(config.eval.batch_size, mesh.size, "eval.batch_size")
    is_main = jax.process_index() == 0
    say: Callable[[str], None] = functools.partial(print, flush=True) if is_main else lambda text: None

    # Data
    photos = open_photos(config.data.train_photos, "data.train_photos")
    masks = open_train_masks(config)
    cache = open_cache(config, photos, config_file)
    held_out = open_photos(config.data.test_photos, "data.test_photos"), open_test_masks(config)
    schedule = resolve_schedule(config, steps_per_epoch(config, photos))

    # Networks and state
    networks = build_networks(config, cache.channels if cache else {})
    graph, state = create_state(config, schedule, *networks)
    state = replicate(state, mesh)
    info = checkpoint_info(config, cache)
    if is_main:
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "parameters.txt").write_text(parameter_overview.get_parameter_overview(named_arrays(state.model)) + "\n")
        (workdir / "config.txt").write_text("\n".join(describe(config)) + "\n")
    for line in summary(config, graph, state, mesh, photos, masks, held_out, schedule.length):
        say(line)

    # Where to start
    checkpoints = Checkpoints(workdir, config.train.keep_last, config.train.keep_best)
    start = checkpoints.latest
    if start is not None:
        check_same_run(checkpoints.info(start), info, config, workdir)
        state = checkpoints.restore(start, state, mesh)
        say(f"continues at step {start}" + (f"; --init {init} was for the first start and is not read again" if init else ""))
    elif init is not None:
        state = initialise_from(state, init, mesh)
        say(f"starts from the parameters of {find_checkpoint(init)}")
    start = start or 0

    # The loop: the log of a step is written while the next one runs
    batches = training_batches(
        config,
        photos,
        masks,
        cache,
        start_step=start,
        steps=schedule.length,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    step_function, frozen = compile_train_step(mesh), Frozen()
    with contextlib.ExitStack() as stack:
        stack.callback(checkpoints.close)
        stack.enter_context(contextlib.closing(batches))
        stack.enter_context(matmul_precision(config))
        stopped = stack.enter_context(stop_on_sigterm())
        log = stack.enter_context(MetricsLog(workdir, start)) if is_main else None
        progress, pending = Progress(start, schedule.length), None

        def report() -> None:
            if pending is not None:
                report_step(*pending, config, log, progress, say)

        for step in range(start + 1, schedule.length + 1):
            state, metrics = step_function(graph, state, frozen, shard_batch(next(batches), mesh))
            report()
            pending = (step, metrics)
            if step == start + 1:
                jax.block_until_ready(metrics)
                progress.restart(step)

            is_last = step == schedule.length
            stopping = stopped(step)
            evaluating = is_last or step % config.train.eval_every == 0
            drawing = is_last or step % config.train.image_every == 0
            if not (evaluating or drawing or stopping or step % config.train.checkpoint_every == 0):
                continue

            # Evaluation, pictures, checkpoint
            report()
            pending, scores = None, None
            with progress.paused():
                if drawing:
                    grid = sample_grid(evaluated_model(graph, state), eval_batches(config, held_out, limit=8), mesh, config)
                    if log:
                        log.write_image(step, "eval/samples", grid)
                if evaluating and not stopping:
                    records = evaluate_model(evaluated_model(graph, state), eval_batches(config, held_out), mesh, config)
                    scores = summarise(records)
                    say(f"step {step}/{schedule.length}  " + "  ".join(f"{name} {value:.4g}" for name, value in scores.items()))
                    if log:
                        log.write(step, scores)
                if evaluating or stopping or step % config.train.checkpoint_every == 0:
                    checkpoints.save(step, state, {**info, "step": step}, scores)
            if stopping:
                say(f"stopped by SIGTERM after step {step}; the same command continues there")
                break
        checkpoints.wait()
    return state


def open_cache(config: Config, photos: PhotoSource, config_file: str) -> TeacherCache | None:
    """The teacher's cached features, checked against config and photos; None where the prior loss has no weight."""
    if config.loss.prior == 0:
        return None
    cache = TeacherCache.open(config.teacher.cache, config_file)
    cache.check(config, photos)
    return cache


def checkpoint_info(config: Config, cache: TeacherCache | None) -> dict[str, Any]:
    """What every checkpoint of the run says about itself."""
    return {
        "model": "spn",
        "version": spn_jax.__version__,
        "config": to_dict(config),
        "teacher": {
            "channels": {str(level): channels for level, channels in cache.channels.items()} if cache else {},
            "origin": cache.manifest.weights_origin if cache else None,
            "identity": cache.identity() if cache else None,
        },
    }


def check_same_run(stored: Mapping[str, Any], info: Mapping[str, Any], config: Config, workdir: Path) -> None:
    """Raises InputError, listing what differs, if a checkpoint belongs to a run with other settings or another teacher."""
    lines = changed_settings(from_dict(stored["config"], origin=str(workdir)), config)
    if stored["teacher"] != info["teacher"]:
        lines.append(f"teacher's cache: {stored['teacher']} -> {info['teacher']}")
    if lines:
        raise InputError(
            f"{workdir} holds a run with other settings ({'; '.join(lines)}); "
            "give the settings back their values, or choose another --workdir (with --init to start from its parameters)"
        )


def initialise_from(state: TrainState, path: str, mesh: Mesh) -> TrainState:
    """The state of a new run whose prior learner and generator start from a checkpoint's parameters."""
    folder = find_checkpoint(path)
    arrays = load_parameters(folder, named_arrays(state.model))
    model = replicate(with_named_arrays(state.model, arrays, what=str(folder)), mesh)
    ema = None if state.ema is None else jax.tree.map(lambda x: x.copy(), model)
    return TrainState(**{**vars(state), "model": model, "ema": ema})


def evaluated_model(graph: StepGraph, state: TrainState) -> SPN:
    """The model that evaluations and pictures use: the moving average where there is one."""
    return nnx.merge(graph.model, state.model if state.ema is None else state.ema)


def sample_grid(model: SPN, batches: Iterator[dict[str, Any]], mesh: Mesh, config: Config) -> np.ndarray:
    """A picture (h, w, 3) of the first batch: input, the coarsest prior's clusters, completed photo, truth."""
    part = next(scored_batches(model, batches, mesh, config, pictures=True))
    rows = {
        "input": [figures.masked_input(*pair) for pair in zip(part["image"], part["mask"], strict=True)],
        "prior": [figures.cluster_map(prior) for prior in part["prior"]],
        "result": list(part["completed"]),
        "truth": list(part["image"]),
    }
    return figures.image_grid(rows)


def eval_batches(config: Config, held_out: tuple[PhotoSource, MaskSource], limit: int | None = None) -> Iterator[dict[str, Any]]:
    """Batches of the held-out photos, each with the mask that config.eval.seed gives it."""
    photos, masks = held_out
    pairs = draw_pairs(len(photos), len(masks), config.eval.seed)
    return evaluation_batches(
        config,
        photos,
        masks,
        pairs,
        config.eval.batch_size,
        limit=config.eval.photos if limit is None else limit,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def report_step(
    step: int, metrics: Metrics, config: Config, log: MetricsLog | None, progress: Progress, say: Callable[[str], None]
) -> None:
    """Checks one step's losses and, every log_every steps, writes them to the log and the terminal.

    Raises:
        InputError: a loss is not finite.
    """
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    broken = [name for name, value in values.items() if not math.isfinite(value)]
    if broken:
        raise InputError(
            f"at step {step} these values are not finite: {', '.join(broken)}; the last checkpoint is from before. "
            "Lower optimizer.learning_rate, or use train.compute_dtype=float32, and start the command again"
        )
    if step % config.train.log_every == 0:
        if log:
            log.write(step, {**values, "time/steps_per_second": progress.rate(step)})
        say(progress.line(step, values))


def summary(
    config: Config,
    graph: StepGraph,
    state: TrainState,
    mesh: Mesh,
    photos: PhotoSource,
    masks: MaskSource,
    held_out: tuple[PhotoSource, MaskSource],
    steps: int,
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
    yield f"photos: {len(photos):,} for training, {len(held_out[0]):,} held out; masks: {len(masks):,} and {len(held_out[1]):,}"
    train = config.train
    yield f"steps: {steps:,} of {train.batch_size} photos in {train.micro_batches} part(s), computed in {train.compute_dtype}"


@contextlib.contextmanager
def stop_on_sigterm() -> Iterator[Callable[[int], bool]]:
    """Yields a function of the step that says whether to stop: SIGTERM came, here or (agreed on by all) in any process."""
    if jax.process_count() > 1:  # jax.distributed has installed a handler that tells the other processes
        yield multihost_utils.reached_preemption_sync_point
        return
    came: list[int] = []
    previous = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        yield lambda step: bool(came)
    finally:
        signal.signal(signal.SIGTERM, previous)


def matmul_precision(config: Config) -> contextlib.AbstractContextManager:
    """The context in which a step is traced with config.train.precision."""
    return jax.default_matmul_precision("highest") if config.train.precision == "highest" else contextlib.nullcontext()


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
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> None:
    """The command line."""
    options = parse_arguments(arguments)
    config = load_config(options.config, options.overrides)
    if options.coordinator or options.cluster:
        jax.distributed.initialize(options.coordinator, options.processes, options.process)
    workdir = options.workdir or Path("runs") / Path(options.config).stem
    train(config, workdir, config_file=options.config, init=options.init)


if __name__ == "__main__":
    run_command(main)
