"""What an evaluation has scored so far, on disk: an interrupted one continues, and memory does not grow with the number of photos.

A folder with `progress.json` (what is evaluated, how many photos are done, the columns) and for each method and column of it an
array of numbers without a header, a row a photo, to which every batch is appended. Rows beyond those that
`progress.json` counts are of a batch that was not finished, and are cut off.
"""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np

from spn_jax.errors import InputError
from spn_jax.files import lock_folder, write_atomically

FORMAT = 1
COMMIT_SECONDS = 1.0  # so much work at most is lost with the power
_SCORES = "scores"  # the file of all columns that are one number a photo, float64


class Partial:
    """The rows of an evaluation that are done. Use as a context manager, which releases the folder.

    Args:
        folder: made if it is not there; nothing else may be in it.
        identity: what is evaluated, {name: plain value}; rows of another identity are thrown away.

    Attributes:
        done: photos whose rows are there.
        restarted: why rows that were there could not be used; "" where there were none or they could.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]):
        self.folder = folder
        self.done = 0
        self.restarted = ""
        self._identity = json.loads(json.dumps({"format": FORMAT, **identity}))
        self._columns: dict[str, dict[str, int]] = {}  # {file: {column: numbers a row}}
        self._files: dict[str, BinaryIO] = {}
        self._committed = time.monotonic()
        self._lock = -1
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(folder, os.O_RDONLY)
            lock_folder(self._lock, f"another evaluation is writing to {folder.parent}; wait for it or choose another --output")
            self._open()
        except OSError as error:
            raise self._cannot(error) from error

    def _open(self) -> None:
        stored = self._read_progress()
        if stored is not None:
            differing = [key for key in self._identity | stored["identity"] if self._identity.get(key) != stored["identity"].get(key)]
            if not differing and all(self._cut(file, columns, stored["done"]) for file, columns in stored["columns"].items()):
                self.done, self._columns = stored["done"], stored["columns"]
                return
            self.restarted = f"another {', '.join(differing)}" if differing else "its files are damaged"
        for path in self.folder.iterdir():
            path.unlink()

    def _read_progress(self) -> dict[str, Any] | None:
        path = self.folder / "progress.json"
        if not path.exists():
            return None
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(stored["identity"], dict) and isinstance(stored["done"], int) and isinstance(stored["columns"], dict):
                return stored
        except (ValueError, KeyError, TypeError):
            pass
        return {"identity": {}, "done": 0, "columns": {}}

    def _cut(self, file: str, columns: Mapping[str, int], rows: int) -> bool:
        """Cuts a file to so many rows; False if it has fewer."""
        path, size = self.folder / file, rows * _row_bytes(file, columns)
        if not path.is_file() or path.stat().st_size < size:
            return False
        os.truncate(path, size)
        return True

    def add(self, rows: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        """Appends the rows of the next n photos.

        Args:
            rows: {method: {column: (n,) or (n, d)}}, the same methods and columns every time.

        Raises:
            InputError: they cannot be written.
        """
        count = {len(values) for columns in rows.values() for values in columns.values()}
        if len(count) != 1:
            raise ValueError(f"columns of different lengths: {sorted(count)}")
        try:
            for method, columns in rows.items():
                single = {name: values for name, values in columns.items() if values.ndim == 1}
                if single:
                    self._append(f"{method}.{_SCORES}", np.stack(list(single.values()), axis=1), dict.fromkeys(single, 1))
                for name, values in columns.items():
                    if values.ndim == 2:
                        self._append(f"{method}.{name}", values, {name: values.shape[1]})
            self.done += count.pop()
            if time.monotonic() - self._committed >= COMMIT_SECONDS:
                self.commit()
        except OSError as error:
            raise self._cannot(error) from error

    def _append(self, file: str, rows: np.ndarray, columns: dict[str, int]) -> None:
        if self._columns.setdefault(file, columns) != columns:
            raise ValueError(f"{file}: columns {list(columns)} and before {list(self._columns[file])}")
        if file not in self._files:
            self._files[file] = open(self.folder / file, "ab")  # noqa: SIM115, closed by `close`
        self._files[file].write(np.ascontiguousarray(rows, _dtype(file)).tobytes())

    def commit(self) -> None:
        """Makes the rows so far those that the next start continues after."""
        try:
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise self._cannot(error) from error
        progress = {"identity": self._identity, "done": self.done, "columns": self._columns}
        write_atomically(self.folder / "progress.json", json.dumps(progress) + "\n")
        self._committed = time.monotonic()

    def scores(self, method: str) -> dict[str, np.ndarray]:
        """{column: float64 (n,)} of a method's columns of one number a photo."""
        file = f"{method}.{_SCORES}"
        table = self._map(file)
        return {name: np.array(table[:, i]) for i, name in enumerate(self._columns[file])}

    def rows(self, method: str, column: str) -> np.ndarray:
        """A column of several numbers a photo, float32 (n, d), which stays on disk."""
        return self._map(f"{method}.{column}")

    def _map(self, file: str) -> np.ndarray:
        if file in self._files:
            self._files[file].flush()
        return np.memmap(self.folder / file, _dtype(file), "r", shape=(self.done, sum(self._columns[file].values())))

    def remove(self) -> None:
        """Deletes the folder: the evaluation is complete."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def close(self) -> None:
        for file in self._files.values():
            with contextlib.suppress(OSError):  # a full disk was reported by what wrote
                file.close()
        self._files.clear()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _cannot(self, error: OSError) -> InputError:
        return InputError(f"{self.folder} cannot be written to ({error.strerror or error}); free space or choose another --output")


def _dtype(file: str) -> np.dtype:
    return np.dtype("<f8" if file.endswith(f".{_SCORES}") else "<f4")


def _row_bytes(file: str, columns: Mapping[str, int]) -> int:
    return sum(columns.values()) * _dtype(file).itemsize
