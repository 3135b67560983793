"""Loads ASL's TResNet-L, the paper's teacher, up to its second stage."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spn_jax.errors import InputError
from teacher_export.frameworks import rename_tresnet, timm, torch
from teacher_export.teachers.files import counts, hash_tensors, read_state_dict
from teacher_export.teachers.interface import Extractor, need


def load(weights: str | None, seed: int, device: torch.device) -> Extractor:
    """Loads the trunk of TResNet-L: stem (76 channels), layer1 (76), layer2 (152), at 1/4, 1/4 and
    1/8 of the photo's size.

    The stem serves level 1 although it lies at P/2; the trainer enlarges it to P. `random` is the
    network's usual initialisation, which starts every residual branch of layer1 and layer2 at zero.
    """
    model, origin = _tresnet_l(need(weights, "tresnet_l", "FILE of the ASL release, timm:tresnet_l.TAG or random"), seed)
    # Later stages are neither run nor hashed.
    model.body = model.body[:4]
    model.head = torch.nn.Identity()
    model = model.to(device).eval().requires_grad_(False)

    def forward(photos: torch.Tensor) -> list[torch.Tensor]:
        return model.forward_intermediates(photos, indices=[0, 1, 2], stop_early=True, intermediates_only=True)

    return Extractor(
        forward=forward,
        names=("stem", "layer1", "layer2"),
        weights_origin=origin,
        weights_sha256=hash_tensors(trunk_tensors(model.state_dict())),
        model=model,
        parallel=True,
    )


TRUNK = ("body.conv1.", "body.layer1.", "body.layer2.")
BEYOND_TRUNK = ("body.layer3", "body.layer4", "head")  # parts of every complete TResNet file that are not used


def _tresnet_l(weights: str, seed: int) -> tuple[Any, str]:
    if weights.startswith("timm:"):
        return _download(weights.removeprefix("timm:"))
    # The seed alone decides the weights, and the caller's random state is not changed.
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


def _fill_trunk(model: Any, tensors: dict[str, torch.Tensor], path: str) -> None:
    """Loads a file's trunk into `model`, and prints what was left out. Raises InputError with
    everything that does not fit.
    """
    renamed = rename_tresnet(tensors, model)
    wanted = trunk_tensors(model.state_dict())
    given = {name: tensor for name, tensor in renamed.items() if counts(name)}
    # Whole dotted names are compared, so that "header" or "body.layer30" is not taken for a part of
    # the network.
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
    """Returns the entries that decide the features: those of the trunk, without batch norm's
    counters.
    """
    return {name: tensor for name, tensor in state_dict.items() if name.startswith(TRUNK) and counts(name)}
