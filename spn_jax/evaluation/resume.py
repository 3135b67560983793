"""Stores an evaluation's scores on disk, so that it can be resumed and needs little memory.

A folder holds `progress.json` (what is evaluated, how many photos are done, the columns) and binary
arrays without a header, a row a photo, for each method and column. Every batch is appended to them.
Rows beyond the count in `progress.json` belong to an unfinished batch and are cut off. A file is
listed there before it is made, so that only our own files are ever deleted.
"""

import contextlib
import glob
import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np

from spn_jax.data.images import find_images, read_list
from spn_jax.errors import InputError
from spn_jax.evaluation.pairs import names_sha256
from spn_jax.runtime.files import LOCK, TEMPORARY, FolderLock, write_atomically

FOLDER = ".spn_jax-partial"  # its place in the output folder
FORMAT = 2  # covers the columns too; rows of an earlier version are not resumed
PROGRESS = "progress.json"
COMMIT_SECONDS = 1.0  # at most so much work is lost in a power failure
_SCORES = "scores"  # the file of all columns that have one number a photo, float64


class Partial:
    """The finished rows of an evaluation. Use it as a context manager, which releases the folder.

    Args:
        folder: created if it does not exist.
        identity: what is evaluated, {name: plain value}. Rows of another identity are discarded.

    Raises:
        InputError: the folder holds files of others, another process writes to it, or it is not
            writable.

    Attributes:
        done: number of photos whose rows exist.
        restarted: why existing rows could not be used, as the end of a sentence about that
            evaluation; "" if there were none, or they could.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]):
        self.folder = folder
        self.done = 0
        self.restarted = ""
        self._identity = json.loads(json.dumps({"format": FORMAT, **identity}))
        self._columns: dict[str, dict[str, int]] = {}  # {file: {column: numbers in a row}}
        self._files: dict[str, BinaryIO] = {}
        self._committed = time.monotonic()
        self._lock: FolderLock | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = FolderLock(folder, f"another evaluation is writing to {folder.parent}", "wait for it or choose another --output")
            self._open()
        except OSError as error:
            self.close()
            raise self._cannot(error) from error
        except InputError:
            self.close()
            raise

    def _open(self) -> None:
        stored = self._read_progress()
        if stored is not None:
            differing = [key for key in self._identity | stored["identity"] if self._identity.get(key) != stored["identity"].get(key)]
            if (
                stored["done"]
                and not differing
                and all(self._cut(file, columns, stored["done"]) for file, columns in stored["columns"].items())
            ):
                self.done, self._columns = stored["done"], stored["columns"]
                return
            if stored["done"]:
                self.restarted = f"differs in {', '.join(differing)}" if differing else "has damaged files"
            self._delete(stored["columns"])
        self._write_progress()

    def _read_progress(self) -> dict[str, Any] | None:
        """Reads the stored progress, None in an empty folder. Raises InputError if the files are
        not ours.
        """
        path = self.folder / PROGRESS
        foreign = sorted(some.name for some in self.folder.iterdir() if not some.name.startswith((TEMPORARY, LOCK)))
        if not foreign:
            return None
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, FileNotFoundError):
            stored = json.loads(path.read_text(encoding="utf-8"))
            if (
                isinstance(stored["identity"], dict)
                and isinstance(stored["done"], int)
                and all(Path(file).name == file and sum(columns.values()) > 0 for file, columns in stored["columns"].items())
            ):
                return dict(stored)
        raise InputError(
            f"{self.folder} is where an unfinished evaluation is kept, but has {foreign[0]} and no readable {PROGRESS} of one; "
            "move the folder away or choose another --output"
        )

    def _delete(self, files: Iterable[str]) -> None:
        """Deletes files that we wrote: these, and what an interrupted write of the progress
        left.
        """
        for path in (*(self.folder / file for file in files), *self.folder.glob(f"{TEMPORARY}*")):
            path.unlink(missing_ok=True)

    def _cut(self, file: str, columns: Mapping[str, int], rows: int) -> bool:
        """Truncates a file to so many rows. Returns False if it has fewer."""
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
        tables: dict[str, np.ndarray] = {}
        layout: dict[str, dict[str, int]] = {}
        for method, columns in rows.items():
            single = {name: values for name, values in columns.items() if values.ndim == 1}
            if single:
                tables[f"{method}.{_SCORES}"] = np.stack(list(single.values()), axis=1)
                layout[f"{method}.{_SCORES}"] = dict.fromkeys(single, 1)
            for name, values in columns.items():
                if values.ndim == 2:
                    tables[f"{method}.{name}"], layout[f"{method}.{name}"] = values, {name: values.shape[1]}
        if not self._columns:
            if taken := [file for file in layout if (self.folder / file).exists()]:
                raise InputError(f"{self.folder / taken[0]} is no file of this evaluation; move it away or choose another --output")
            self._columns = layout
            self._write_progress()
        if self._columns != layout:
            raise ValueError(f"columns {layout} and before {self._columns}")
        try:
            for file, table in tables.items():
                self._append(file, table)
            self.done += count.pop()
            if time.monotonic() - self._committed >= COMMIT_SECONDS:
                self.commit()
        except OSError as error:
            raise self._cannot(error) from error

    def _append(self, file: str, rows: np.ndarray) -> None:
        if file not in self._files:
            self._files[file] = open(self.folder / file, "ab")  # noqa: SIM115, closed by `close`
        self._files[file].write(np.ascontiguousarray(rows, _dtype(file)).tobytes())

    def commit(self) -> None:
        """Commits the rows so far: the next start continues after them."""
        try:
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise self._cannot(error) from error
        self._write_progress()
        self._committed = time.monotonic()

    def _write_progress(self) -> None:
        progress = {"identity": self._identity, "done": self.done, "columns": self._columns}
        write_atomically(self.folder / PROGRESS, json.dumps(progress) + "\n")

    def scores(self, method: str) -> dict[str, np.ndarray]:
        """Returns {column: float64 (n,)} of a method's columns with one number a photo."""
        file = f"{method}.{_SCORES}"
        table = self._map(file)
        return {name: np.array(table[:, i]) for i, name in enumerate(self._columns[file])}

    def rows(self, method: str, column: str) -> np.ndarray:
        """Returns a column with several numbers a photo, float32 (n, d), as an array that stays on
        disk.
        """
        return self._map(f"{method}.{column}")

    def _map(self, file: str) -> np.ndarray:
        if file in self._files:
            self._files[file].flush()
        return np.memmap(self.folder / file, _dtype(file), "r", shape=(self.done, sum(self._columns[file].values())))

    def remove(self) -> None:
        """Deletes our files, and the folder if nothing else is in it, when the evaluation is
        complete.
        """
        with contextlib.suppress(OSError):
            self._delete([*self._columns, PROGRESS])
        self.close()
        with contextlib.suppress(OSError):  # it is not empty
            self.folder.rmdir()

    def close(self) -> None:
        for file in self._files.values():
            with contextlib.suppress(OSError):  # the write that failed has already reported a full disk
                file.close()
        self._files.clear()
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _cannot(self, error: OSError) -> InputError:
        return InputError(f"{self.folder} cannot be written to ({error.strerror or error}); free space or choose another --output")


def data_state(path: str) -> str:
    """Returns `files_state` of the images or records at `path`: a folder, list, archive, record
    file or glob.
    """
    location = Path(path).expanduser()
    if location.is_dir():
        return files_state([*find_images(location), *sorted(location.glob("*.array_record*"))])
    if location.suffix.lower() == ".flist":
        return files_state([location, *read_list(location, path, "")[1]])
    return files_state([location] if location.exists() else map(Path, sorted(glob.glob(str(location)))))


def files_state(files: Iterable[Path]) -> str:
    """Returns the SHA-256, in hex, of name, byte size and modification time of every file. Raises
    InputError if one is unreadable.
    """
    try:
        states = [(file, file.stat()) for file in files]
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read ({error.strerror}); it was there a moment ago, start again") from error
    return names_sha256(f"{file}\0{state.st_size}\0{state.st_mtime_ns}" for file, state in states)


def _dtype(file: str) -> np.dtype:
    return np.dtype("<f8" if file.endswith(f".{_SCORES}") else "<f4")


def _row_bytes(file: str, columns: Mapping[str, int]) -> int:
    return sum(columns.values()) * _dtype(file).itemsize
