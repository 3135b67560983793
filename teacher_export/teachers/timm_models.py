"""`timm:MODEL`: the feature maps of any backbone of timm."""

import difflib
from pathlib import Path
from typing import Any

from spn_jax.errors import InputError
from teacher_export.frameworks import timm, torch
from teacher_export.teachers.files import counts, fill, hash_tensors, read_tensors
from teacher_export.teachers.interface import Extractor, need, normalise

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of models that do not say their own


def load(name: str, weights: str | None, seed: int, device: torch.device, image_size: int) -> Extractor:
    """Weights are `pretrained` (downloaded), `random` (seeded) or a file with timm's names. Mean and std are those of the model.

    Raises:
        InputError: no such model, one without feature maps, weights that cannot be had or do not fit.
    """
    weights = need(weights, f"timm:{name}", "pretrained, random or FILE with timm's names")
    if not timm.is_model(name.partition(".")[0]):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise InputError(f"timm has no model {name}{f'; did you mean {chr(32).join(close)}?' if close else '; see timm.list_models()'}")
    # The seed decides the weights whatever was drawn before, and the caller's random state is left alone.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = create(name, weights == "pretrained", 2 * image_size)
    origin = f"timm:{name}" if weights == "pretrained" else f"random(seed={seed})"
    if weights not in ("pretrained", "random"):
        # Those of a transformer stand behind a wrapper's name.
        prefix = "model." if all(n.startswith("model.") for n in model.state_dict()) else ""
        known = timm.create_model(name).state_dict()
        left_out = fill(model, read_tensors(weights), known, f"--weights {weights} does not fit {name} (names as timm has them)", prefix)
        print(f"weights {weights}: left out: {left_out}", flush=True)
        origin = f"file {Path(weights).name}"
    model = model.to(device).eval().requires_grad_(False)
    config = timm.get_pretrained_cfg(name)
    mean, std = (config.mean, config.std) if config is not None else IMAGENET
    return Extractor(
        forward=lambda photos: list(model(normalise(photos, mean, std))),
        names=tuple(model.feature_info.module_name()),
        weights_origin=origin,
        weights_sha256=hash_tensors({n: t for n, t in model.state_dict().items() if counts(n)}),
        model=model,
    )


def create(name: str, pretrained: bool, side: int) -> Any:
    """The model that gives feature maps of photos of this side. InputError if it has none or cannot be downloaded."""
    try:
        # Transformers are made for one size; other networks do not know the argument.
        try:
            return timm.create_model(name, features_only=True, pretrained=pretrained, img_size=side)
        except TypeError:
            return timm.create_model(name, features_only=True, pretrained=pretrained)
    except Exception as error:  # the hub's client, its network library, timm and every model each have errors of their own
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        if pretrained:
            raise InputError(
                f"the weights of timm:{name} could not be loaded ({reason}); check the name and the internet connection, "
                "or download a weights file elsewhere and pass --weights FILE"
            ) from error
        raise InputError(f"timm:{name} gives no feature maps of {side}-pixel photos ({reason}); choose another model") from error
