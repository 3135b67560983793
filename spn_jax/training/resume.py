"""Finds the checkpoint that a run starts from, and checks that it belongs to the same run.

A new run may also start from the parameters of another one.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from spn_jax import __version__
from spn_jax.checkpoints.parameters import named_arrays, with_named_arrays
from spn_jax.checkpoints.store import (
    FOLDER,
    checkpoint_step,
    find_checkpoint,
    load_discriminator,
    load_parameters,
    newest_checkpoint,
    read_info,
    stored_metadata,
)
from spn_jax.config import Config, from_dict
from spn_jax.errors import InputError
from spn_jax.runtime.log import has_evaluation
from spn_jax.settings import ANOTHER_BEST, changed_settings, to_dict
from spn_jax.training.inputs import Data, DistillationTargets, weights_identity
from spn_jax.training.reports import Say
from spn_jax.training.state import TrainState, learning_rate, placed, resolve_schedule

HEADS = "prior_learner.distillation_heads."


def checkpoint_info(config: Config, data: Data, distillation: DistillationTargets, vgg_origin: str | None) -> dict[str, Any]:
    """Returns the description that every checkpoint of the run stores."""
    return {
        "model": config.model.kind,
        "version": __version__,
        "config": to_dict(config),
        "teacher": {
            "channels": {str(level): channels for level, channels in distillation.channels.items()},
            "origin": distillation.origin,
            "identity": distillation.identity,
        },
        "vgg": vgg_origin,
        "data": {
            "photos": digest(data.photos.names),
            "masks": digest(data.masks.names),
            "photo files": data.photos.fingerprint()[:12],
            "mask files": data.masks.fingerprint()[:12],
        },
    }


class Beginning(NamedTuple):
    """Describes the state of a run when a process starts."""

    checkpoint: Path | None  # the newest; None in a new run
    is_evaluated: bool  # whether the log holds the scores of that checkpoint


def find_beginning(workdir: Path) -> Beginning:
    """Finds the newest checkpoint in a work directory. The first process decides for all, because
    machines that share a file system may see different files.
    """
    newest = newest_checkpoint(workdir / FOLDER)
    step = -1 if newest is None else int(newest.name)
    is_evaluated = has_evaluation(workdir, step)
    if jax.process_count() > 1:
        decided = multihost_utils.broadcast_one_to_all(np.array([step, is_evaluated], np.int32))
        step, is_evaluated = int(decided[0]), bool(decided[1])
    return Beginning(None if step < 0 else workdir / FOLDER / str(step), is_evaluated)


def digest(names: Sequence[str]) -> str:
    """Returns the number of names and the start of their SHA-256."""
    return f"{len(names):,} ({hashlib.sha256(chr(10).join(names).encode()).hexdigest()[:12]})"


def check_same_run(stored: Mapping[str, Any], info: Mapping[str, Any], config: Config, workdir: Path) -> None:
    """Raises InputError, listing the differences, if a checkpoint belongs to a run with other
    settings, data or networks.
    """
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
    # older checkpoints store only the names
    changed = [kind for kind in now if before.get(kind, now[kind]) != now[kind]]
    lines += [f"training {kind}: {before[kind]} -> {now[kind]}" for kind in changed]
    if lines:
        raise InputError(
            f"{workdir} holds a run with other settings ({'; '.join(lines)}); "
            "give the settings back their values, or choose another --workdir (with --init to start from its parameters)"
        )


def changed_protocol(stored: Mapping[str, Any], config: Config, workdir: Path) -> Iterator[str]:
    """Yields a line if a resumed run evaluates with other settings than before."""
    if lines := changed_settings(from_dict(stored["config"], origin=str(workdir)), config, ANOTHER_BEST):
        yield f"evaluations change ({'; '.join(lines)}): their scores are not compared with earlier ones to find the best checkpoint"


def head_names(folder: Path) -> list[str]:
    """Returns the names of the distillation heads' parameters in a checkpoint."""
    return sorted(name for name in stored_metadata(folder).metadata["model"] if name.startswith(HEADS))


def initialise_from(state: TrainState, path: str, rate: float, say: Say) -> TrainState:
    """Returns the state of a new run that starts from the parameters of a checkpoint, including its
    discriminator.

    Args:
        state: state before the first step, whole in every process, as is the returned one.
        path: the checkpoint, or a run that has some.
        rate: this run's learning rate.
        say: prints what is taken over, and a warning where the learning rate is higher than the one
            that the checkpoint ended with.

    Distillation heads belong to a teacher: those that do not fit this run's teacher keep their
    initial values. So does the discriminator where the checkpoint has none or one of another kind.
    """
    folder = find_checkpoint(path)
    wanted = named_arrays(state.model)
    arrays = {name: np.asarray(array) for name, array in load_parameters(folder, wanted, optional=HEADS).items()}
    model = jax.tree.map(placed, with_named_arrays(state.model, {**wanted, **arrays}, what=str(folder)))
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise InputError(
            f"checkpoint {folder} holds parameters that are not finite, its training diverged; pass an earlier one with --init"
        )
    say(f"starts from the parameters of {folder}")
    before = final_learning_rate(folder)
    if before is not None and rate > 1.001 * before:
        say(
            f"warning: the learning rate {rate:g} is higher than the {before:g} that the checkpoint ended with, so scores may fall at "
            f"first; optimizer.learning_rate={before:g} goes on more gently"
        )
    if left := [name for name in head_names(folder) if name not in arrays]:
        say(f"these of its distillation heads do not fit this run and are left out: {', '.join(left)}")
    if anew := [name for name in wanted if name not in arrays]:
        say(f"these of this run's start anew: {', '.join(anew)}")
    # The step donates both, so they must not share memory.
    ema = None if state.ema is None else jax.tree.map(placed, model)
    state = dataclasses.replace(state, model=model, ema=ema)

    stored = load_discriminator(folder)
    kernels, vectors = named_arrays(state.discriminator), named_arrays(state.spectral)
    if stored is None or shapes(stored) != shapes({**kernels, **vectors}):
        say(f"the discriminator starts anew: the checkpoint has {'none' if stored is None else 'another kind'}")
        return state
    discriminator, spectral = (
        jax.tree.map(placed, with_named_arrays(tree, {name: np.asarray(stored[name]) for name in names}, what=str(folder)))
        for tree, names in ((state.discriminator, kernels), (state.spectral, vectors))
    )
    return dataclasses.replace(state, discriminator=discriminator, spectral=spectral)


def final_learning_rate(folder: Path) -> float | None:
    """Returns the learning rate of the last step before a checkpoint or a model file, or None where
    that is unknown: in a converted one, or where epochs are counted and the number of photos is not
    stored.
    """
    info = read_info(folder)
    if "converted_from" in info:
        return None
    try:
        config = from_dict(info["config"], origin=str(folder))
    except InputError:  # settings of another version, which its parameters do not depend on
        return None
    photos = info.get("data", {}).get("photos", "").partition(" ")[0].replace(",", "")
    if config.schedule.unit == "epochs" and not photos.isdigit():
        return None
    steps_per_epoch = max(1, int(photos) // config.train.batch_size) if photos.isdigit() else 1
    last_step = max(checkpoint_step(folder, info) - 1, 0)
    return float(learning_rate(resolve_schedule(config, steps_per_epoch), jnp.asarray(last_step)))


def shapes(arrays: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every named array."""
    return {name: np.shape(array) for name, array in arrays.items()}
