"""Loads `torchvision:DETECTOR`: a detector's backbone with its trained feature pyramid."""

import difflib
from pathlib import Path

from spn_jax.errors import InputError
from teacher_export.frameworks import torch, torchvision
from teacher_export.teachers.files import counts, fill, hash_tensors, read_tensors
from teacher_export.teachers.interface import Extractor, need, normalise


def load(name: str, weights: str | None, seed: int, device: torch.device, image_size: int) -> Extractor:
    """Loads a backbone. Weights are `pretrained` (downloaded), `random` (seeded) or a file of the
    whole detector. Mean and std are the detector's.

    Raises:
        InputError: there is no such detector, or weights cannot be obtained or do not fit.
    """
    known = torchvision.models.list_models(module=torchvision.models.detection)
    if name not in known:
        close = ", ".join(difflib.get_close_matches(name, known, n=3) or known)
        raise InputError(f"torchvision has no detector {name}; choose one such as {close}")
    weights = need(weights, f"torchvision:{name}", "pretrained, random or FILE of the detector")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = torchvision.models.get_model(name, weights="DEFAULT" if weights == "pretrained" else None, weights_backbone=None)
        except OSError as error:
            raise InputError(f"the weights of torchvision:{name} could not be downloaded ({error}); pass --weights FILE") from error
    origin = f"torchvision:{name}" if weights == "pretrained" else f"random(seed={seed})"
    backbone = model.backbone
    if weights not in ("pretrained", "random"):
        tensors, part = read_tensors(weights), "backbone."
        used = {n.removeprefix(part): t for n, t in tensors.items() if n.startswith(part)}
        fill(backbone, used, (), f"--weights {weights} does not fit the backbone of {name}")
        print(f"weights {weights}: left out: {len(tensors) - len(used)} tensors beside the backbone", flush=True)
        origin = f"file {Path(weights).name}"
    backbone = backbone.to(device).eval().requires_grad_(False)
    mean, std = model.transform.image_mean, model.transform.image_std
    with torch.inference_mode():
        names = tuple(f"backbone.{key}" for key in backbone(torch.zeros(1, 3, 2 * image_size, 2 * image_size, device=device)))
    return Extractor(
        forward=lambda photos: list(backbone(normalise(photos, mean, std)).values()),
        names=names,
        weights_origin=origin,
        weights_sha256=hash_tensors({n: t for n, t in backbone.state_dict().items() if counts(n)}),
        model=backbone,
        parallel=True,
    )
