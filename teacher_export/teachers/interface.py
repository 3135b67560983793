"""Defines what a teacher is, for whoever adds one.

A teacher is a function from photos to feature maps, with a note of its weights. In a file of your
own, say `my_teacher.py`:

    import torch
    from teacher_export.teachers.interface import Extractor

    def load(weights, seed, device):
        network = torch.hub.load("owner/repository", "model").to(device).eval()

        def forward(photos):
            # photos: float (b, 3, 2P, 2P) on `device`, in [0, 1]; mean and std are applied here
            return network.stages(photos)  # a list of maps (b, c, h, w), finest first, of any size

        return Extractor(
            forward=forward,
            weights_origin="owner/repository v1",
            weights_sha256="v1",
            names=("a", "b", "c"),
        )

A `forward` that stores nothing between its calls (hooks would) may set `parallel=True`: the export
then uses all cores of a CPU. `python -m teacher_export --config ... teacher.name=my_teacher.py`
runs it, and training reads the result; nothing else has to be changed. A trial pass finds each
map's channels and size, and the scale of the prior that it serves.
"""

import contextlib
import dataclasses
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from spn_jax.config import TeacherConfig
from spn_jax.errors import InputError
from teacher_export.frameworks import torch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extractor:
    """A function from photos to feature maps, and facts about it."""

    # (b, 3, 2P, 2P) in [0, 1] -> maps (b, c, h, w)
    forward: Callable[[torch.Tensor], Sequence[torch.Tensor]]
    weights_origin: str  # the weights' origin, for people
    weights_sha256: str  # equal for equal features
    names: tuple[str, ...] = ()  # names of the maps; by default map_0, map_1, ...
    model: Any = None  # the network behind `forward`, if there is one
    # whether threads may call `forward` at the same time; hooks that store maps would mix up their
    # photos
    parallel: bool = False


@dataclasses.dataclass(frozen=True)
class Choice:
    """The map for a level of the prior."""

    index: int  # index in the result of `forward`
    name: str
    size: tuple[int, int]  # the map's height and width
    # None: the map is stored as it is, and the trainer enlarges it by a whole factor
    resize_to: tuple[int, int] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Teacher:
    """A frozen network whose maps are assigned to the levels of the prior."""

    name: str
    device: torch.device
    extractor: Extractor
    choices: Mapping[int, Choice]  # {level: choice}, ascending
    resize: str
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock, repr=False, compare=False)

    @property
    def weights_origin(self) -> str:
        """The origin of the weights, for people."""
        return self.extractor.weights_origin

    @property
    def weights_sha256(self) -> str:
        """The hash of the used part of the network."""
        return self.extractor.weights_sha256

    @property
    def layers(self) -> dict[int, str]:
        """{level: name of its map}."""
        return {level: choice.name for level, choice in self.choices.items()}

    @property
    def resized(self) -> dict[int, str]:
        """{level: how its map was resized}, such as "area 75x75 to 64x64"; empty if it was not."""
        return {
            level: "{} {}x{} to {}x{}".format(self.resize, *choice.size, *choice.resize_to) if choice.resize_to else ""
            for level, choice in self.choices.items()
        }

    @torch.inference_mode()
    def __call__(self, photos: torch.Tensor) -> dict[int, torch.Tensor]:
        """Maps photos (b, h, w, 3) with values in [0, 1] to {level: (b, h', w', c)}, both on
        `device`. Several threads may call it.

        Raises:
            InputError: `forward` returns other maps than it did for one photo.
        """
        with contextlib.nullcontext() if self.extractor.parallel else self.lock:
            maps = self.extractor.forward(photos.permute(0, 3, 1, 2))
        require_maps(self.name, maps)
        if len(maps) <= max(choice.index for choice in self.choices.values()) or any(len(m) != len(photos) for m in maps):
            shown = ", ".join(str(tuple(m.shape)) for m in maps)
            raise InputError(f"teacher.name={self.name} returns maps {shown} for {len(photos)} photos; each must have one entry a photo")
        return {level: self._at_level(maps[choice.index], choice).permute(0, 2, 3, 1) for level, choice in self.choices.items()}

    def _at_level(self, features: torch.Tensor, choice: Choice) -> torch.Tensor:
        if choice.resize_to is None:
            return features
        if self.resize == "bilinear":
            return torch.nn.functional.interpolate(features, choice.resize_to, mode="bilinear", antialias=True)
        return torch.nn.functional.interpolate(features, choice.resize_to, mode={"nearest": "nearest-exact", "area": "area"}[self.resize])


def assign(name: str, extractor: Extractor, settings: TeacherConfig, device: torch.device, image_size: int) -> Teacher:
    """Makes a teacher by a trial pass on a blank photo, which finds the maps for the prior's
    levels.

    Level l has the side P / 2^(l-1). It gets the map that teacher.layers names. Otherwise, starting
    at the coarsest level, it gets the map whose side is nearest by ratio; among several, one that
    serves no coarser level, and among those the deepest. The map is stored as it is if
    teacher.resize is `nearest` and the level's side is a whole multiple of its own (the released
    rule: the trainer enlarges it). Otherwise it is resized to the level's side by that rule.

    Raises:
        InputError: `forward` does not return a list of square maps, or teacher.layers names maps
            that it lacks.
    """
    with torch.inference_mode():
        maps = extractor.forward(torch.zeros(1, 3, 2 * image_size, 2 * image_size, device=device))
    check_maps(name, maps)
    names = extractor.names or tuple(f"map_{i}" for i in range(len(maps)))
    if len(names) != len(maps):
        raise InputError(f"teacher.name={name} names {len(names)} maps and returns {len(maps)}; correct it")
    sides = [features.shape[-1] for features in maps]
    if settings.layers:
        listed = ", ".join(
            f"{n} ({features.shape[1]} channels, {features.shape[-1]} pixels)" for n, features in zip(names, maps, strict=True)
        )
        if unknown := [layer for layer in settings.layers if layer not in names]:
            raise InputError(f"teacher.layers: {', '.join(unknown)} not among the maps of {name}, which are {listed}")
        chosen = {level: names.index(layer) for level, layer in zip(settings.levels, settings.layers, strict=True)}
    else:
        chosen = nearest_maps(sides, {level: image_size // 2 ** (level - 1) for level in settings.levels})
    choices = {
        level: _choice(names[i], i, sides[i], image_size // 2 ** (level - 1), settings.resize) for level, i in sorted(chosen.items())
    }
    return Teacher(name=name, device=device, extractor=extractor, choices=choices, resize=settings.resize)


def nearest_maps(sides: Sequence[int], wanted: Mapping[int, int]) -> dict[int, int]:
    """Returns {level: index of the map} by the rule of `assign`; `wanted` is the side of each
    level.
    """
    chosen: dict[int, int] = {}
    for level in sorted(wanted, reverse=True):

        def rank(i: int, side: int = wanted[level]) -> tuple[float, bool, int]:
            return abs(math.log2(sides[i] / side)), i in chosen.values(), -i

        chosen[level] = min(range(len(sides)), key=rank)
    return chosen


def _choice(name: str, index: int, side: int, wanted: int, rule: str) -> Choice:
    as_it_is = side == wanted or (rule == "nearest" and wanted % side == 0)
    return Choice(index, name, (side, side), None if as_it_is else (wanted, wanted))


def check_maps(name: str, maps: Any) -> None:
    """Raises InputError unless `maps` is a valid result of `Extractor.forward` for one photo."""
    require_maps(name, maps)
    wrong = [tuple(m.shape) for m in maps if m.ndim != 4 or len(m) != 1 or m.shape[-1] != m.shape[-2] or 0 in m.shape]
    if wrong:
        raise InputError(f"teacher.name={name} returns maps of the shape {wrong[0]} for one square photo; they must be (1, channels, h, h)")


def require_maps(name: str, maps: Any) -> None:
    """Raises InputError unless `maps` is a list of tensors."""
    if not isinstance(maps, list | tuple) or not maps or not all(isinstance(m, torch.Tensor) for m in maps):
        raise InputError(f"teacher.name={name} must return a list of feature maps for a batch of photos; it returns {type(maps).__name__}")


def need(weights: str | None, name: str, choice: str) -> str:
    """Returns `weights`, which this teacher needs. Raises InputError, which names the choice, if
    there are none.
    """
    if weights is None:
        raise InputError(f"teacher.name={name} needs weights; add --weights {choice}")
    return weights


def refuse(weights: str | None, name: str, reason: str) -> None:
    """Raises InputError if weights are given, which this teacher cannot use."""
    if weights is not None:
        raise InputError(f"teacher.name={name} takes no --weights ({reason}); leave it out")


def normalise(photos: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Returns (photos - mean) / std by channel, (b, 3, h, w)."""
    shift, scale = (torch.tensor(values, dtype=photos.dtype, device=photos.device)[:, None, None] for values in (mean, std))
    return (photos - shift) / scale
