"""Imports torch, torchvision and timm; nothing else in this project does."""

import importlib
import sys

from spn_jax.errors import InputError

try:
    import torch
except ImportError as error:
    raise InputError("teacher_export needs torch and timm; install them with `pip install -e '.[teacher]'`") from error

_kept_alive: list[torch.library.Library] = []


def _import_torchvision() -> None:
    """Makes `import torchvision`, which timm needs, work beside a CPU build of torch.

    The registry's torchvision is linked against CUDA. Beside a CPU build of torch its compiled
    operators do not load, and its import stops at "operator torchvision::nms does not exist"
    because it describes two of them to torch. Nothing here calls them, so declaring those two is
    enough. The declaration is made only after that very failure, since it would itself fail on a
    healthy machine.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        declared = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            declared.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept_alive.append(declared)  # the declaration ends with this object
        importlib.import_module("torchvision")


try:
    _import_torchvision()
    import timm
    import torchvision
    from timm.models.tresnet import checkpoint_filter_fn as rename_tresnet
except ImportError as error:
    raise InputError(f"teacher_export needs timm ({error}); install it with `pip install -e '.[teacher]'`") from error

__all__ = ["rename_tresnet", "timm", "torch", "torchvision"]
