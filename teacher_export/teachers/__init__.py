"""Loads the frozen networks that a prior learner can distil, by `teacher.name`.

interface.py shows how to add one.
"""

from collections.abc import Callable
from pathlib import Path

from spn_jax.config import TeacherConfig
from spn_jax.errors import InputError, first_line
from teacher_export.frameworks import torch
from teacher_export.teachers import detectors, edges, efficientnet, priors, programs, timm_models, tresnet
from teacher_export.teachers.files import hash_tensors, read_state_dict, read_tensors, read_torch_file
from teacher_export.teachers.interface import Extractor, Teacher, assign

__all__ = ["Extractor", "Teacher", "hash_tensors", "load_teacher", "read_state_dict", "read_tensors", "read_torch_file"]

BY_NAME: dict[str, Callable[[str | None, int, torch.device], Extractor]] = {
    "tresnet_l": tresnet.load,
    "efficientnet_lite0": efficientnet.load,
    "sobel": edges.load_sobel,
    "canny": edges.load_canny,
}
BY_PREFIX: dict[str, Callable[[str, str | None, int, torch.device, int], Extractor]] = {
    "timm:": timm_models.load,
    "torchvision:": detectors.load,
    "spn:": priors.load,
}
BY_SUFFIX: dict[str, Callable[[Path, str | None, int, torch.device], Extractor]] = {
    ".pt2": programs.load_exported,
    ".pt": programs.load_torchscript,
    ".pth": programs.load_torchscript,
    ".ts": programs.load_torchscript,
    ".py": programs.load_python,
}


def load_teacher(settings: TeacherConfig, weights: str | None, device: str, image_size: int) -> Teacher:
    """Loads the teacher of `settings` on `device` ("cpu", "cuda", ...), and assigns its maps to the
    prior's levels.

    Args:
        settings: name, layers, levels, resize and the seed of random weights.
        weights: the value of --weights; None if it was not given.
        device: the device that it runs on.
        image_size: P; the teacher sees 2P.

    Raises:
        InputError: the teacher is unknown, weights cannot be obtained or do not fit, the device
            does not exist, or the maps are unusable.
    """
    name, where = settings.name, _device(device)
    if name in BY_NAME:
        extractor = BY_NAME[name](weights, settings.seed, where)
    elif prefix := next((p for p in BY_PREFIX if name.startswith(p)), None):
        extractor = BY_PREFIX[prefix](name.removeprefix(prefix), weights, settings.seed, where, image_size)
    elif Path(name).suffix in BY_SUFFIX:
        if not Path(name).is_file():
            raise InputError(f"teacher.name={name} is not a file; pass the path of one that exists")
        extractor = BY_SUFFIX[Path(name).suffix](Path(name), weights, settings.seed, where)
    else:
        kinds = [*BY_NAME, "timm:MODEL", "torchvision:DETECTOR", "spn:CHECKPOINT", *(f"FILE{suffix}" for suffix in BY_SUFFIX)]
        raise InputError(f"teacher.name={name} is not known; choose one of {', '.join(kinds)}")
    return assign(name, extractor, settings, where, image_size)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name} cannot be used: {first_line(error)}") from error
    # Features must not depend on the machine, so there is no TF32, and algorithms are not chosen by
    # timing them.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    return device
