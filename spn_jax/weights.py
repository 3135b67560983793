"""Weights of networks that are used but never trained: the `.npz` files in which they cross from torch, and what is built from them.

A file holds the arrays that the network uses under the names of the torch release they come from (float32, kernels out, in, h, w),
and as one entry more a JSON text that says what they are. `python -m teacher_export.weights` writes it. To add a network, enter it in
NETWORKS and write a function like `load_vgg19`. Imports no torch.
"""

import dataclasses
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from spn_jax.errors import InputError
from spn_jax.files import write_atomically
from spn_jax.models.vgg import TORCHVISION, VGG19
from spn_jax.parameters import compare_names, named_arrays, with_named_arrays

FORMAT = 1
INFO = "spn_jax"  # name of the JSON entry
LONGEST_INFO = 100_000  # bytes of it

Shapes = dict[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """What a weights file of a network holds and where to get it."""

    shapes: Callable[[], Shapes]  # of all arrays that are used, under their names in the release
    left_out: tuple[str, ...]  # parts of the release that are not used, as whole dotted names
    release: str  # name of the published file
    address: str  # where it is published


def write_weights(path: Path, network: str, arrays: Mapping[str, np.ndarray], origin: Mapping[str, str]) -> None:
    """Writes a weights file, complete or not at all.

    Args:
        arrays: what NETWORKS[network] uses, under the release's names.
        origin: `origin` (for people), `weights_sha256` (of the arrays) and, where they came from a file, `file_sha256`.

    Raises:
        InputError: it cannot be written.
    """
    info = {"format": FORMAT, "network": network, **origin}
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **{INFO: np.array(json.dumps(info))}, **{n: a.astype("<f4") for n, a in arrays.items()})
    write_atomically(path, content.getvalue())


def read_weights(path: str | Path, network: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """A weights file's arrays under the release's names, and what the file says about them (see `write_weights`).

    Raises:
        InputError: no such file, one that no version of `teacher_export.weights` or a newer one wrote, a damaged one, another
            network's, or one whose arrays do not fit, with all of them listed. Each says which command makes the right one.
    """
    advice = f"make one with `{dump_command(network)}`"
    if not Path(path).is_file():
        raise InputError(f"weights {path} is not a file; {advice}")
    try:
        with zipfile.ZipFile(path) as archive:
            info = _read_info(archive)
            if info is None:
                raise InputError(f"weights {path} was not written by teacher_export.weights; {advice}")
            if info["format"] != FORMAT:
                raise InputError(f"weights {path} has format {info['format']}, this version reads {FORMAT}; {advice}")
            if info["network"] != network:
                raise InputError(f"weights {path} is of the network {info['network']}, not {network}; {advice}")
            headers = {name: header for name, header in _read_headers(archive).items() if name != INFO}
            problems = compare_names(NETWORKS[network].shapes(), {name: shape for name, (shape, _) in headers.items()})
            problems += [f"{name} is {dtype} instead of float32" for name, (_, dtype) in headers.items() if dtype != np.float32]
            if problems:
                raise InputError(f"weights {path} does not fit {network}: {'; '.join(problems)}; {advice}")
            return {name: _read_array(archive, name) for name in headers}, info
    except InputError:
        raise
    except Exception as error:  # bytes that anybody may have written: zipfile, zlib, NumPy and tokenize each have errors of their own
        raise InputError(f"weights {path} is damaged or no .npz file; {advice}") from error


def _read_headers(archive: zipfile.ZipFile) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """{entry: (shape, dtype)}, of which the first bytes tell; no entry is unpacked that does not fit."""
    headers = {}
    for name in archive.namelist():
        with archive.open(name) as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
        headers[name.removesuffix(".npy")] = tuple(shape), dtype
    return headers


def _read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(f"{name}.npy") as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _read_info(archive: zipfile.ZipFile) -> dict[str, Any] | None:
    """The JSON entry; None where there is none or it is another program's."""
    if f"{INFO}.npy" not in archive.namelist() or archive.getinfo(f"{INFO}.npy").file_size > LONGEST_INFO:
        return None
    entry = _read_array(archive, INFO)
    if entry.dtype.kind != "U":
        return None
    try:
        info = json.loads(str(entry))
    except json.JSONDecodeError:
        return None
    return info if isinstance(info, dict) and {"format", "network", "origin", "weights_sha256"} <= info.keys() else None


def dump_command(network: str) -> str:
    """The command that makes a network's weights file, for messages."""
    return f"python -m teacher_export.weights {network} --weights {NETWORKS[network].release} {network}.npz"


def load_vgg19(weights: str, seed: int, dtype: DTypeLike) -> tuple[VGG19, str]:
    """VGG19 that computes in `dtype`, and where its weights come from, for logs and checkpoints.

    Args:
        weights: the setting `loss.vgg`: a weights file, or "random".
        seed: of "random".

    Raises:
        InputError: nothing is set, or the file is not VGG19's weights.
    """
    if not weights:
        raise InputError(
            f"loss.vgg is not set, and the perceptual and diversity losses need VGG19; download {NETWORKS['vgg19'].address}, "
            f"run `{dump_command('vgg19')}` and pass loss.vgg=vgg19.npz, or loss.vgg=random in a trial"
        )
    if weights == "random":
        return VGG19(rng=np.random.default_rng(seed), dtype=dtype), f"random(seed={seed})"
    arrays, info = read_weights(weights, "vgg19")
    model = nnx.eval_shape(lambda: VGG19(rng=np.random.default_rng(0), dtype=dtype))
    ours = {name: _from_torch(arrays[theirs]) for name, theirs in vgg19_names().items()}
    nnx.update(model, with_named_arrays(nnx.as_pure(nnx.state(model)), ours, what=weights))
    return model, f"{info['origin']}, sha256 {info['weights_sha256'][:12]}"


def vgg19_names() -> dict[str, str]:
    """{our parameter: torchvision's}."""
    leaves = {"kernel": "weight", "bias": "bias"}
    return {
        f"blocks.{i}.{j}.{ours}": f"features.{number}.{theirs}"
        for i, numbers in enumerate(TORCHVISION)
        for j, number in enumerate(numbers)
        for ours, theirs in leaves.items()
    }


def vgg19_shapes() -> Shapes:
    """Of VGG19's arrays up to relu5_1, under torchvision's names."""
    model = nnx.eval_shape(lambda: VGG19(rng=np.random.default_rng(0), dtype=np.float32))
    ours = named_arrays(nnx.as_pure(nnx.state(model)))
    return {theirs: _torch_shape(ours[name].shape) for name, theirs in vgg19_names().items()}


def _from_torch(array: np.ndarray) -> Array:
    """Kernels (out, in, h, w) -> (h, w, in, out); vectors as they are."""
    return jnp.asarray(array.transpose(2, 3, 1, 0) if array.ndim == 4 else array)


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The same of shapes, the other way."""
    return tuple(shape[axis] for axis in (3, 2, 0, 1)) if len(shape) == 4 else tuple(shape)


NETWORKS = {
    "vgg19": Network(
        shapes=vgg19_shapes,
        left_out=("features.30", "features.32", "features.34", "classifier", "pre_logits", "head"),
        release="vgg19-dcbb9e9d.pth",
        address="https://download.pytorch.org/models/vgg19-dcbb9e9d.pth",
    ),
}
