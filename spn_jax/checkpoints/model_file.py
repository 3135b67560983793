"""Reads and writes a model as one small file, without what only training needs.

Models that come with the package have this form. The file is an .npz with the parameters of prior
learner and generator by name in float16, and `info`, the checkpoint's description as JSON. Reading
turns the parameters into float32.
"""

import contextlib
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spn_jax.errors import InputError
from spn_jax.runtime.files import write_atomically

if TYPE_CHECKING:
    import jax

SUFFIX = ".npz"
INFO = "info"  # entry that is no parameter: names of parameters contain a dot
FORMAT = 1


def write_model_file(path: Path, arrays: Mapping[str, np.ndarray], info: Mapping[str, Any], dtype: str = "float16") -> None:
    """Writes parameters and their description.

    Raises:
        InputError: a parameter is not finite in `dtype`, or the file cannot be written.
    """
    with np.errstate(over="ignore"):  # checked below
        packed = {name: np.asarray(array, dtype) for name, array in arrays.items()}
    if broken := [name for name, array in packed.items() if not np.isfinite(array).all()]:
        raise InputError(f"{', '.join(broken[:3])}: values that are not finite in {dtype}; take another checkpoint")
    text = json.dumps({**info, "format": FORMAT}, sort_keys=True)
    with_info = {INFO: np.frombuffer(text.encode(), np.uint8), **packed}
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **with_info)
    write_atomically(path, file.getvalue())


def is_model_file(path: Path) -> bool:
    """Returns whether `path` is a file with a model file's suffix."""
    return path.suffix == SUFFIX and path.is_file()


def read_model_info(path: Path) -> dict[str, Any]:
    """Returns the file's description of its model. Raises InputError if it is no model file."""
    with _opened(path) as archive, _decoding(path):
        return _info(path, archive)


def read_model_shapes(path: Path) -> "dict[str, jax.ShapeDtypeStruct]":
    """Returns the shape of every parameter by name, from the entries' headers without unpacking
    them. Raises InputError as `read_model_info` does.
    """
    import jax  # imported here, so that `is_model_file` does not need it

    with _opened(path) as archive, _decoding(path):
        _info(path, archive)
        return {name: jax.ShapeDtypeStruct(_shape(archive, name), np.float32) for name in archive.files if name != INFO}


def read_model_arrays(path: Path) -> dict[str, np.ndarray]:
    """Returns the parameters by name in float32. Raises InputError as `read_model_info` does."""
    with _opened(path) as archive, _decoding(path):
        _info(path, archive)
        return {name: archive[name].astype(np.float32) for name in archive.files if name != INFO}


def _shape(archive: Any, name: str) -> tuple[int, ...]:
    with archive.zip.open(f"{name}.npy") as entry:
        np.lib.format.read_magic(entry)
        return np.lib.format.read_array_header_1_0(entry)[0]


def _opened(path: Path) -> Any:
    with _decoding(path):
        archive = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
    if not isinstance(archive, np.lib.npyio.NpzFile) or INFO not in archive.files:
        raise InputError(f"model file {path} was not written by spn_jax: it has no entry {INFO!r}; pass a checkpoint's folder")
    return archive


def _info(path: Path, archive: Any) -> dict[str, Any]:
    info = json.loads(archive[INFO].tobytes())
    if not isinstance(info, dict) or not isinstance(info.get("step"), int):
        raise ValueError("it does not say its step")
    if info.get("format") != FORMAT:
        raise InputError(f"model file {path} has format {info.get('format')}, and this version reads {FORMAT}; install a newer spn_jax")
    return info


@contextlib.contextmanager
def _decoding(path: Path) -> Iterator[None]:
    """Turns a reader's exceptions into an InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # BadZipFile, zlib.error, NotImplementedError, KeyError, EOFError, ... according to the byte that is wrong
        text = " ".join(str(error).split())[:100] or type(error).__name__
        raise InputError(f"model file {path} is damaged ({text}); copy or write it again") from error
