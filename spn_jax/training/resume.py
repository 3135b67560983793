"""Where a run starts: what its checkpoints say about it, whether they are of the same run, and parameters of another one."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from spn_jax import __version__
from spn_jax.checkpoints.parameters import named_arrays, with_named_arrays
from spn_jax.checkpoints.store import find_checkpoint, load_discriminator, load_parameters, stored_metadata
from spn_jax.config import Config, changed_settings, from_dict, to_dict
from spn_jax.errors import InputError
from spn_jax.runtime.sharding import replicate
from spn_jax.training.inputs import Data, Lessons, weights_identity
from spn_jax.training.reports import Say
from spn_jax.training.step import TrainState

HEADS = "prior_learner.distillation_heads."


def checkpoint_info(config: Config, data: Data, lessons: Lessons, vgg_origin: str | None) -> dict[str, Any]:
    """What every checkpoint of the run says about itself."""
    return {
        "model": config.model.kind,
        "version": __version__,
        "config": to_dict(config),
        "teacher": {
            "channels": {str(level): channels for level, channels in lessons.channels.items()},
            "origin": lessons.origin,
            "identity": lessons.identity,
        },
        "vgg": vgg_origin,
        "data": {
            "photos": digest(data.photos.names),
            "masks": digest(data.masks.names),
            "photo files": data.photos.fingerprint()[:12],
            "mask files": data.masks.fingerprint()[:12],
        },
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
    changed = [kind for kind in now if before.get(kind, now[kind]) != now[kind]]  # older checkpoints know the names alone
    lines += [f"training {kind}: {before[kind]} -> {now[kind]}" for kind in changed]
    if lines:
        raise InputError(
            f"{workdir} holds a run with other settings ({'; '.join(lines)}); "
            "give the settings back their values, or choose another --workdir (with --init to start from its parameters)"
        )


def head_names(folder: Path) -> list[str]:
    """Parameters of the distillation heads in a checkpoint."""
    return sorted(name for name in stored_metadata(folder).metadata["model"] if name.startswith(HEADS))


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
