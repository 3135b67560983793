"""Loads teachers from files: `torch.export` programs, TorchScript modules and Python files.

Their suffixes are .pt2; .pt, .pth and .ts; and .py. Each of them is a program with the rights of
whoever starts the export, so take only files that you trust.
"""

import dataclasses
import hashlib
import runpy
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from spn_jax.errors import InputError, first_line
from teacher_export.frameworks import torch
from teacher_export.teachers.interface import Extractor, refuse


def load_exported(path: Path, weights: str | None, seed: int, device: torch.device) -> Extractor:
    """Loads a `torch.export` program from an image batch to a map, a list of maps or a dictionary.
    Raises InputError if the file is none.
    """
    refuse(weights, str(path), "the program has its own")
    try:
        module = torch.export.load(path).module().to(device)
    except Exception as error:  # a broken file can fail in any way
        raise InputError(
            f"teacher.name={path} cannot be loaded as a torch.export program ({first_line(error)}); export it again"
        ) from error
    return _extractor(path, module)


def load_torchscript(path: Path, weights: str | None, seed: int, device: torch.device) -> Extractor:
    """Loads a TorchScript module from an image batch to a map, a list of maps or a dictionary.
    Raises InputError if the file is none.
    """
    refuse(weights, str(path), "the program has its own")
    try:
        with warnings.catch_warnings():
            # Torch deprecates TorchScript since 2.9, but detectors are published in it.
            warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
            module = torch.jit.load(str(path), map_location=device).eval()
    except Exception as error:  # a broken file can fail in any way
        raise InputError(
            f"teacher.name={path} cannot be loaded as TorchScript ({first_line(error)}); a file of weights alone belongs to --weights"
        ) from error
    return _extractor(path, module)


def load_python(path: Path, weights: str | None, seed: int, device: torch.device) -> Extractor:
    """Returns the result of `load(weights, seed, device)` in the Python file; see interface.py.
    Raises InputError for an error in it.
    """
    try:
        load = runpy.run_path(str(path)).get("load")
        extractor = load(weights, seed, device) if callable(load) else None
    except InputError:
        raise
    except Exception as error:  # the file may raise anything
        raise _fails(path, error) from error
    if not isinstance(extractor, Extractor):
        raise InputError(f"teacher.name={path} must define load(weights, seed, device) that returns a teacher_export.teachers.Extractor")
    run = extractor.forward

    def forward(photos: torch.Tensor) -> Sequence[torch.Tensor]:
        try:
            return run(photos)
        except (InputError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise _fails(path, error) from error

    return dataclasses.replace(extractor, forward=forward)


def _fails(path: Path, error: Exception) -> InputError:
    """Returns the error of a Python file, with its line."""
    inside = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    where = f"line {inside[-1]}: " if inside else ""
    return InputError(f"teacher.name={path} fails: {where}{type(error).__name__}: {first_line(error)}; correct the file")


def _extractor(path: Path, module: Callable[[torch.Tensor], Any]) -> Extractor:
    names: tuple[str, ...] = ()

    def forward(photos: torch.Tensor) -> Any:
        try:
            maps = module(photos)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # shapes it was not exported for, operators the device lacks
            raise InputError(
                f"teacher.name={path} fails on photos {tuple(photos.shape)} ({first_line(error)}); "
                "export it with a dynamic batch and for photos of twice data.image_size"
            ) from error
        if isinstance(maps, dict):
            return list(maps.values())
        return [maps] if isinstance(maps, torch.Tensor) else list(maps)

    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Extractor(forward=forward, names=names, weights_origin=f"file {path.name}", weights_sha256=digest, model=module, parallel=True)
