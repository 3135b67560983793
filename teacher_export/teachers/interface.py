"""What a teacher is, for whoever adds one.

A teacher is a function from photos to feature maps, with a note of its weights. In a file of your
own, say `my_teacher.py`:

    import torch
    from teacher_export.teachers.interface import Extractor

    def load(weights, seed, device):
        network = torch.hub.load("owner/repository", "model").to(device).eval()

        def forward(photos): # float (b, 3, 2P, 2P) on `device`, in [0, 1]; mean and std are the
        teacher's business
            return network.stages(photos) # a list of maps (b, c, h, w), finest first, of any sizes
            and channels

        return Extractor(forward=forward, weights_origin="owner/repository v1", weights_sha256="v1",
        names=("a", "b", "c"))

A `forward` that keeps nothing between its calls, as hooks would, may say `parallel=True`: the
export then uses all cores of a CPU.
`python -m teacher_export --config ... teacher.name=my_teacher.py` runs it, and training reads what
it wrote: nothing else has to know of it. How many channels a map has, how large it is and which
scale of the prior it serves is found out by a trial pass.
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
    """Photos in, feature maps out."""

    # (b, 3, 2P, 2P) in [0, 1] -> maps (b, c, h, w)
    forward: Callable[[torch.Tensor], Sequence[torch.Tensor]]
    weights_origin: str  # for people
    weights_sha256: str  # equal for equal features
    names: tuple[str, ...] = ()  # of the maps; none: map_0, map_1, ...
    model: Any = None  # the network behind `forward`, if there is one
    # threads may call `forward` at the same time; hooks that store maps would mix up their photos
    parallel: bool = False


@dataclasses.dataclass(frozen=True)
class Choice:
    """The map that serves a level of the prior."""

    index: int  # in what `forward` returns
    name: str
    size: tuple[int, int]  # of the map
    # None: it is stored as it is, and the trainer enlarges it by a whole factor
    resize_to: tuple[int, int] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Teacher:
    """A frozen network whose maps are assigned to the levels of the prior."""

    name: str
    device: torch.device
    extractor: Extractor
    choices: Mapping[int, Choice]  # by level, ascending
    resize: str
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock, repr=False, compare=False)

    @property
    def weights_origin(self) -> str:
        """For people."""
        return self.extractor.weights_origin

    @property
    def weights_sha256(self) -> str:
        """Of the part of the network that is used."""
        return self.extractor.weights_sha256

    @property
    def layers(self) -> dict[int, str]:
        """Level -> name of the map."""
        return {level: choice.name for level, choice in self.choices.items()}

    @property
    def resized(self) -> dict[int, str]:
        """Level -> how its map's size was changed, such as "area 75x75 to 64x64"; empty where it
        was not.
        """
        return {
            level: "{} {}x{} to {}x{}".format(self.resize, *choice.size, *choice.resize_to) if choice.resize_to else ""
            for level, choice in self.choices.items()
        }

    @torch.inference_mode()
    def __call__(self, photos: torch.Tensor) -> dict[int, torch.Tensor]:
        """Photos (b, h, w, 3) with values in [0, 1] -> {level: (b, h', w', c)}, both on `device`.
        May be called from several threads.

        Raises:
            InputError: what `forward` returns is not what it was for one photo.
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
    """The teacher whose maps, found by a trial pass on a blank photo, serve the levels of the
    prior.

    Level l has the side P / 2^(l-1). It gets the map that teacher.layers names; otherwise, from the
    coarsest level on, the map whose side is nearest by ratio, of several the one that serves no
    coarser level, and of those the deepest. The map is stored as it is if teacher.resize is
    `nearest` and the level's side a whole multiple of its own (the released rule: the trainer
    enlarges it); otherwise it is brought to the level's side by that rule.

    Raises:
        InputError: what `forward` returns is no list of square maps; teacher.layers names others
            than it has.
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
    """{level: index of the map} by the rule of `assign`; `wanted` is the side of each level."""
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
    """Raises InputError unless `maps` is what `Extractor.forward` must return for one photo."""
    require_maps(name, maps)
    wrong = [tuple(m.shape) for m in maps if m.ndim != 4 or len(m) != 1 or m.shape[-1] != m.shape[-2] or 0 in m.shape]
    if wrong:
        raise InputError(f"teacher.name={name} returns maps of the shape {wrong[0]} for one square photo; they must be (1, channels, h, h)")


def require_maps(name: str, maps: Any) -> None:
    """Raises InputError unless `maps` is a list of tensors."""
    if not isinstance(maps, list | tuple) or not maps or not all(isinstance(m, torch.Tensor) for m in maps):
        raise InputError(f"teacher.name={name} must return a list of feature maps for a batch of photos; it returns {type(maps).__name__}")


def need(weights: str | None, name: str, choice: str) -> str:
    """`weights`, which this teacher needs. InputError, naming the choice, if there are none."""
    if weights is None:
        raise InputError(f"teacher.name={name} needs weights; add --weights {choice}")
    return weights


def refuse(weights: str | None, name: str, reason: str) -> None:
    """Raises InputError if there are weights, which this teacher has no use for."""
    if weights is not None:
        raise InputError(f"teacher.name={name} takes no --weights ({reason}); leave it out")


def normalise(photos: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """(photos - mean) / std by channel, (b, 3, h, w)."""
    shift, scale = (torch.tensor(values, dtype=photos.dtype, device=photos.device)[:, None, None] for values in (mean, std))
    return (photos - shift) / scale
