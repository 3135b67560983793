"""Loads `timm:MODEL`: the feature maps of any backbone of timm."""

import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spn_jax.errors import InputError
from teacher_export.frameworks import timm, torch
from teacher_export.teachers.files import counts, fill, hash_tensors, read_tensors
from teacher_export.teachers.interface import Extractor, need, normalise

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and std of models that do not define their own


def load(name: str, weights: str | None, seed: int, device: torch.device, image_size: int) -> Extractor:
    """Loads a model. Weights are `pretrained` (downloaded), `random` (seeded) or a file with timm's
    names. Mean and std are the model's.

    Raises:
        InputError: there is no such model, it has no feature maps, or weights cannot be obtained or
            do not fit.
    """
    weights = need(weights, f"timm:{name}", "pretrained, random or FILE with timm's names")
    if not timm.is_model(name.partition(".")[0]):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise InputError(f"timm has no model {name}{f'; did you mean {chr(32).join(close)}?' if close else '; see timm.list_models()'}")
    # The seed alone decides the weights, and the caller's random state is not changed.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = create(name, weights == "pretrained", 2 * image_size)
    origin = f"timm:{name}" if weights == "pretrained" else f"random(seed={seed})"
    if weights not in ("pretrained", "random"):
        left_out = fill_from_file(model, name, weights, 2 * image_size)
        print(f"weights {weights}: left out: {left_out}", flush=True)
        origin = f"file {Path(weights).name}"
    model = model.to(device).eval().requires_grad_(False)
    config = timm.get_pretrained_cfg(name)
    mean, std = (config.mean, config.std) if config is not None else IMAGENET
    return Extractor(
        forward=lambda photos: channels_first(model, model(normalise(photos, mean, std))),
        names=tuple(model.feature_info.module_name()),
        weights_origin=origin,
        weights_sha256=hash_tensors({n: t for n, t in model.state_dict().items() if counts(n)}),
        model=model,
        parallel=not isinstance(model, timm.models.FeatureHookNet) and getattr(model, "feature_hooks", None) is None,
    )


def channels_first(model: Any, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Returns the model's maps as (b, c, h, w), since some transformers give (b, h, w, c)."""
    return [m.permute(0, 3, 1, 2) if getattr(model, "output_fmt", "NCHW") == "NHWC" else m for m in maps]


def fill_from_file(model: Any, name: str, weights: str, side: int) -> str:
    """Loads a file of the whole network, or of its trunk, into the `model` that gives feature maps.
    Returns what was left out.

    Raises:
        InputError: it cannot be read, or does not fit, with a list of all mismatches.
    """
    whole, tensors = create(name, False, side, features_only=False), read_tensors(weights)
    # This is timm's own table of older names; it also resizes a transformer's positions to the
    # photos' size.
    adapt = getattr(sys.modules[type(whole).__module__], "checkpoint_filter_fn", None)
    if adapt is not None:
        try:
            tensors = dict(adapt(tensors, whole))
        except Exception as error:  # it assumes that the names exist
            raise InputError(f"--weights {weights} does not fit {name} ({type(error).__name__}: {error})") from error
    # The model of feature maps is a wrapper: its names begin with "model." or have an underscore
    # instead of a dot.
    known = whole.state_dict()
    theirs = {n.replace(".", "_"): n for n in known}

    def rename(ours: str) -> str:
        return next((theirs[n] for n in (ours.replace(".", "_"), ours.removeprefix("model.").replace(".", "_")) if n in theirs), ours)

    return fill(model, tensors, known, f"--weights {weights} does not fit {name} (names as timm has them)", rename)


def create(name: str, pretrained: bool, side: int, features_only: bool = True) -> Any:
    """Creates the model, or its wrapper that gives feature maps, for photos of this side. Raises
    InputError if it has none or cannot be downloaded.
    """
    try:
        # Transformers are made for one size; other networks do not have the argument.
        try:
            return timm.create_model(name, features_only=features_only, pretrained=pretrained, img_size=side)
        except TypeError:
            return timm.create_model(name, features_only=features_only, pretrained=pretrained)
    except Exception as error:  # the hub's client, its network library, timm and every model each have errors of their own
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        if pretrained:
            raise InputError(
                f"the weights of timm:{name} could not be loaded ({reason}); check the name and the internet connection, "
                "or download a weights file elsewhere and pass --weights FILE"
            ) from error
        raise InputError(f"timm:{name} gives no feature maps of {side}-pixel photos ({reason}); choose another model") from error
