"""Reads and hashes files of tensors without executing anything."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spn_jax.errors import InputError
from teacher_export.frameworks import timm, torch


def read_torch_file(path: str | Path, what: str, layout: str) -> Any:
    """Returns the content of a torch file, on the CPU, without executing anything in it.

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
    """Returns the tensors of a torch file with {"model": {name: tensor}} or {name: tensor}, without
    executing anything in it.

    Raises:
        InputError: there is no such file, or it is not a torch file, or holds anything but tensors.
    """
    if not Path(path).is_file():
        raise InputError(f"{option} {path} is not a file; pass a weights file, timm:NAME or random")
    layout = 'it must hold {"model": {name: tensor}} or {name: tensor}'
    content = read_torch_file(path, f"{option} {path}", layout)
    tensors = content.get("model", content) if isinstance(content, Mapping) else None
    if not isinstance(tensors, Mapping) or not tensors or not all(isinstance(v, torch.Tensor) for v in tensors.values()):
        raise InputError(f"{option} {path} has another layout: {layout}")
    return {str(name): tensor for name, tensor in tensors.items()}


def read_tensors(path: str, option: str = "--weights") -> dict[str, torch.Tensor]:
    """Returns the tensors of a torch file (see `read_state_dict`) or a .safetensors file. Raises
    InputError if it is neither.
    """
    if not path.endswith(".safetensors"):
        return read_state_dict(path, option)
    if not Path(path).is_file():
        raise InputError(f"{option} {path} is not a file; pass a weights file")
    try:
        return dict(timm.models.load_state_dict(path, weights_only=True))
    except Exception as error:  # errors of a package that timm depends on
        raise InputError(f"{option} {path} is damaged or no safetensors file; download it again") from error


def fill(
    model: torch.nn.Module,
    tensors: Mapping[str, torch.Tensor],
    known: Iterable[str],
    what: str,
    rename: Callable[[str], str] = lambda name: name,
) -> str:
    """Loads all tensors of `model` from `tensors`. Returns the names left out, as text.

    Args:
        known: names of unused parts that may be present as well.
        what: names the file and the network in errors.
        rename: maps a tensor's name in `model` to its name in the file.

    Raises:
        InputError: tensors are missing, unknown or of another shape; all are listed at once.
    """
    wanted = {rename(name): (name, tensor) for name, tensor in model.state_dict().items() if counts(name)}
    given = {name: tensor for name, tensor in tensors.items() if counts(name)}
    beyond = sorted(set(given) - set(wanted))
    problems = [f"missing {name}" for name in wanted if name not in given]
    problems += [f"unknown {name}" for name in sorted(set(beyond) - set(known))]
    problems += [
        f"{name} has shape {tuple(given[name].shape)} instead of {tuple(tensor.shape)}"
        for name, (_, tensor) in wanted.items()
        if name in given and given[name].shape != tensor.shape
    ]
    if problems:
        raise InputError(f"{what}: {'; '.join(problems[:20])}{f'; and {len(problems) - 20} more' if len(problems) > 20 else ''}")
    model.load_state_dict({full: given[name] for name, (full, _) in wanted.items()}, strict=False)
    return f"{len(beyond)} tensors of parts that are not used" if beyond else "nothing"


def counts(name: str) -> bool:
    """Returns whether a tensor affects what a network computes; batch norm's counters do not."""
    return not name.endswith("num_batches_tracked")


def hash_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """Returns the SHA-256 of names, shapes and float32 little-endian values, in the order of the
    names.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        values = tensors[name].detach().cpu().float().numpy().astype(np.dtype("<f4"), copy=False)
        digest.update(f"{name} {values.shape}\n".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()
