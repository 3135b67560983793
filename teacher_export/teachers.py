"""The frozen networks that a prior learner can distil, by the name that `teacher.name` gives.

A teacher maps photos in [0, 1] at 2P (no mean/std normalisation) to one feature map a level of the prior.
To add one, write a function like `load_tresnet_l` and enter it in TEACHERS.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spn_jax.errors import InputError
from teacher_export.frameworks import rename_tresnet, timm, torch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Teacher:
    """A network in evaluation mode with its weights."""

    name: str
    weights_origin: str  # for people
    weights_sha256: str  # of the part of the network that is used
    layers: dict[int, str]  # level -> name of the layer whose output is taken
    device: torch.device
    model: torch.nn.Module
    forward: Callable[[torch.Tensor], list[torch.Tensor]]  # (b, 3, h, w) -> (b, c, h', w') a level, in the order of `layers`

    @torch.inference_mode()
    def __call__(self, photos: torch.Tensor) -> dict[int, torch.Tensor]:
        """Photos (b, h, w, 3) with values in [0, 1] -> {level: (b, h', w', c)}, both on `device`."""
        maps = self.forward(photos.permute(0, 3, 1, 2))
        return {level: features.permute(0, 2, 3, 1) for level, features in zip(self.layers, maps, strict=True)}


def load_teacher(name: str, weights: str, seed: int, device: str) -> Teacher:
    """The teacher `name` on `device` ("cpu", "cuda", ...).

    Args:
        weights: a file of the network's own layout, `timm:MODEL` or `random`.
        seed: of `random`.

    Raises:
        InputError: unknown teacher, weights that cannot be had or do not fit, a device that is not there.
    """
    if name not in TEACHERS:
        raise InputError(f"teacher.name={name} is not known; choose one of {', '.join(sorted(TEACHERS))}")
    return TEACHERS[name](weights, seed, _device(device))


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from error
    # Features must not depend on which machine made them: no TF32, no choice of algorithm by a stopwatch.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    return device


def load_tresnet_l(weights: str, seed: int, device: torch.device) -> Teacher:
    """The trunk of TResNet-L: stem (76 channels), layer1 (76), layer2 (152), at 1/4, 1/4 and 1/8 of the photo's size.

    The stem serves level 1 although it lies at P/2; the trainer enlarges it to P. `random` is the network's usual
    initialisation, which starts every residual branch of layer1 and layer2 at zero.
    """
    model, origin = _tresnet_l(weights, seed)
    # Later stages are neither run nor hashed.
    model.body = model.body[:4]
    model.head = torch.nn.Identity()
    model = model.to(device).eval().requires_grad_(False)

    def forward(photos: torch.Tensor) -> list[torch.Tensor]:
        return model.forward_intermediates(photos, indices=[0, 1, 2], stop_early=True, intermediates_only=True)

    return Teacher(
        name="tresnet_l",
        weights_origin=origin,
        weights_sha256=hash_tensors(trunk_tensors(model.state_dict())),
        layers={1: "stem", 2: "layer1", 3: "layer2"},
        device=device,
        model=model,
        forward=forward,
    )


TEACHERS: dict[str, Callable[[str, int, torch.device], Teacher]] = {"tresnet_l": load_tresnet_l}

TRUNK = ("body.conv1.", "body.layer1.", "body.layer2.")
BEYOND_TRUNK = ("body.layer3", "body.layer4", "head")  # of every complete TResNet file, not used


def _tresnet_l(weights: str, seed: int) -> tuple[Any, str]:
    if weights.startswith("timm:"):
        return _download(weights.removeprefix("timm:"))
    # The seed decides the weights whatever was drawn before, and the caller's random state is left alone.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = timm.create_model("tresnet_l", pretrained=False)
    if weights == "random":
        return model, f"random(seed={seed})"
    _fill_trunk(model, read_state_dict(weights), weights)
    return model, f"file {Path(weights).name}"


def _download(name: str) -> tuple[Any, str]:
    if name.partition(".")[0] != "tresnet_l":
        raise InputError(f"--weights timm:{name} is not a tresnet_l; write timm:tresnet_l.TAG, for example timm:tresnet_l.miil_in1k")
    try:
        model: Any = timm.create_model(name, pretrained=True)
    except Exception as error:  # the hub's client, its network library and timm each have errors of their own
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(
            f"--weights timm:{name} could not be loaded ({reason}); check the name and the internet connection, "
            "or download a weights file elsewhere and pass --weights FILE"
        ) from error
    tag = model.pretrained_cfg.get("tag", "")
    data = "ImageNet-1k, not OpenImages" if "in1k" in tag else "not OpenImages"
    return model, f"timm:tresnet_l.{tag} ({data})"


def read_torch_file(path: str | Path, what: str, layout: str) -> Any:
    """What a torch file holds, on the CPU; nothing in it is executed.

    Args:
        what: names the file in errors.
        layout: says in errors what the file must hold.

    Raises:
        InputError: it cannot be read, is not a torch file, or needs code to be executed.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{what} cannot be read ({error.strerror or error})") from error
    except Exception as error:  # a broken file can fail in any way
        raise InputError(f"{what} is not a torch file of tensors alone (it was read without executing anything); {layout}") from error


def read_state_dict(path: str, option: str = "--weights") -> dict[str, torch.Tensor]:
    """The tensors of a torch file that holds {"model": {name: tensor}} or {name: tensor}; nothing in it is executed.

    Raises:
        InputError: no such file, not a torch file, or anything but tensors in it.
    """
    if not Path(path).is_file():
        raise InputError(f"{option} {path} is not a file; pass a weights file, timm:NAME or random")
    layout = 'it must hold {"model": {name: tensor}} or {name: tensor}'
    content = read_torch_file(path, f"{option} {path}", layout)
    tensors = content.get("model", content) if isinstance(content, Mapping) else None
    if not isinstance(tensors, Mapping) or not tensors or not all(isinstance(v, torch.Tensor) for v in tensors.values()):
        raise InputError(f"{option} {path} has another layout: {layout}")
    return {str(name): tensor for name, tensor in tensors.items()}


def _fill_trunk(model: Any, tensors: dict[str, torch.Tensor], path: str) -> None:
    """Loads a file's trunk into `model`; says what was left out. InputError lists everything that does not fit, at once."""
    renamed = rename_tresnet(tensors, model)
    wanted = trunk_tensors(model.state_dict())
    given = {name: tensor for name, tensor in renamed.items() if not name.endswith("num_batches_tracked")}
    # Whole dotted names, so that "header" or "body.layer30" is not taken for a part of the network.
    beyond = {part: [n for n in given if n == part or n.startswith(part + ".")] for part in BEYOND_TRUNK}
    known = {name for names in beyond.values() for name in names}
    problems = [f"missing {name}" for name in wanted if name not in given]
    problems += [f"unknown {name}" for name in given if name not in wanted and name not in known]
    problems += [
        f"{name} has shape {tuple(given[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in given and given[name].shape != tensor.shape
    ]
    if problems:
        raise InputError(f"--weights {path} does not fit tresnet_l (names as timm has them): {'; '.join(problems)}")
    model.load_state_dict({name: given[name] for name in wanted}, strict=False)
    left_out = [f"{part} ({len(names)} tensors)" for part, names in beyond.items() if names]
    print(f"weights {path}: {len(wanted)} trunk tensors read, left out: {', '.join(left_out) or 'nothing'}", flush=True)


def trunk_tensors(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The entries that decide the features: those of the trunk, without batch norm's counters."""
    return {name: tensor for name, tensor in state_dict.items() if name.startswith(TRUNK) and not name.endswith("num_batches_tracked")}


def hash_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, shapes and float32 little-endian values, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        values = tensors[name].detach().cpu().float().numpy().astype(np.dtype("<f4"), copy=False)
        digest.update(f"{name} {values.shape}\n".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()
