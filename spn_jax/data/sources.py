"""Opens folders, .zip, .tar and tensorflow-datasets as named bytes; never unpacks to a path."""

import importlib
import io
import os
import tarfile
import threading
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from spn_jax.data.images import files_below
from spn_jax.errors import InputError

COMPRESSED_TAR = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


class Source(ABC):
    """Named files, readable from several threads at once."""

    label: str  # where it is, for people

    @property
    @abstractmethod
    def names(self) -> Sequence[str]:
        """Returns every file in it, as a path with slashes, sorted."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Reads the bytes of a file. Raises InputError if that fails."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Returns a file's size in bytes, or None if only reading tells."""


class Folder(Source):
    """The files in a folder and below, or one file alone."""

    def __init__(self, path: Path):
        self.label, self._base = str(path), path if path.is_dir() else path.parent
        found = files_below(path, hidden=True) if path.is_dir() else [path]
        self._names = sorted(file.relative_to(self._base).as_posix() for file in found)

    @property
    def names(self) -> Sequence[str]:
        return self._names

    def read(self, name: str) -> bytes:
        try:
            return (self._base / name).read_bytes()
        except OSError as error:
            raise InputError(f"{self._base / name} cannot be read ({error.strerror or error})") from error

    def size(self, name: str) -> int | None:
        try:
            return (self._base / name).stat().st_size
        except OSError as error:  # such as a link to nowhere
            raise InputError(f"{self._base / name} cannot be read ({error.strerror or error}); put it back, or remove it") from error


class Zip(Source):
    """The files in a .zip archive."""

    def __init__(self, path: Path):
        self.label = str(path)
        self._lock = threading.Lock()  # a ZipFile has one position in its file
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise InputError(f"--source {path} cannot be read as a zip archive ({error}); download it again") from error
        self._sizes = {entry.filename: entry.file_size for entry in self._zip.infolist() if not entry.is_dir()}

    @property
    def names(self) -> Sequence[str]:
        return sorted(self._sizes)

    def read(self, name: str) -> bytes:
        try:
            with self._lock:
                return self._zip.read(name)
        except Exception as error:  # broken archives raise BadZipFile, zlib.error, EOFError, NotImplementedError, ...
            raise InputError(f"{name} in {self.label} cannot be unpacked ({error}); download the archive again") from error

    def size(self, name: str) -> int | None:
        return self._sizes[name]


class Tar(Source):
    """The files in an uncompressed .tar archive, whose headers are read once."""

    def __init__(self, path: Path):
        self.label = str(path)
        try:
            with tarfile.open(path, "r:") as archive:
                self._places = {member.name.removeprefix("./"): (member.offset_data, member.size) for member in archive if member.isfile()}
        except (tarfile.TarError, OSError) as error:
            raise InputError(f"--source {path} cannot be read as a tar archive ({error}); download it again") from error
        self._handle = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            os.close(self._handle)

    @property
    def names(self) -> Sequence[str]:
        return sorted(self._places)

    def read(self, name: str) -> bytes:
        start, size = self._places[name]
        data = os.pread(self._handle, size, start)
        if len(data) != size:
            raise InputError(f"{name} in {self.label} is cut off; download the archive again")
        return data

    def size(self, name: str) -> int | None:
        return self._places[name][1]


class Tfds(Source):
    """The images of one split of a tensorflow-datasets data set prepared as ArrayRecord, read
    without TensorFlow.

    Images are copied as they were encoded if the builder kept them so, and otherwise become PNG
    files, without loss.
    """

    def __init__(self, name: str, split: str, folder: str | None):
        tfds = import_tfds()
        self.label = f"tfds:{name}, split {split}"
        try:
            options: dict[str, Any] = {"split": split, "data_dir": folder}
            self._records = tfds.data_source(name, decoders={"image": tfds.decode.SkipDecoding()}, **options)
            first = self._records[0] if len(self._records) else {}
        except Exception as error:  # the registry, the file system and every builder each have errors of their own
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise InputError(f"--source {self.label} cannot be read ({reason}); prepare it as array_record and pass --tfds-dir") from error
        if "image" not in first:
            raise InputError(
                f"--source {self.label} has no feature `image`, but {', '.join(first) or 'no records'}; choose another data set"
            )
        self._names = [f"{split}-{i:08d}" for i in range(len(self._records))]

    @property
    def names(self) -> Sequence[str]:
        return self._names

    def read(self, name: str) -> bytes:
        image = self._records[int(name.rpartition("-")[2])]["image"]
        if isinstance(image, bytes):
            return image
        file = io.BytesIO()
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(file, "PNG")
        return file.getvalue()

    def size(self, name: str) -> int | None:
        return None


def import_tfds() -> Any:
    """Imports tensorflow-datasets. Raises InputError if it is not installed."""
    try:
        return importlib.import_module("tensorflow_datasets")
    except ImportError as error:
        raise InputError("--source tfds:... needs tensorflow-datasets; install it with `pip install -e '.[datasets]'`") from error


def tfds_splits(name: str, folder: str | None) -> list[str]:
    """Lists the splits of a tensorflow-datasets data set. Raises InputError if there is none of
    that name.
    """
    try:
        return sorted(import_tfds().builder(name, data_dir=folder).info.splits)
    except InputError:
        raise
    except Exception as error:  # as in Tfds
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(f"--source tfds:{name} is not known to tensorflow-datasets ({reason})") from error


def open_source(path: str) -> Source:
    """Opens a folder, an archive or a single file. Raises InputError if it is not there or is a
    compressed .tar, which has no random access.
    """
    location = Path(path).expanduser()
    if not location.exists():
        raise InputError(f"--source {path} does not exist; pass the folder or archive that the data set's page hands out")
    if location.is_file() and location.name.lower().endswith(COMPRESSED_TAR):
        raise InputError(
            f"--source {path} is a compressed tar archive, from which photos cannot be read one by one; unpack it and pass the folder"
        )
    if location.is_file() and zipfile.is_zipfile(location):
        return Zip(location)
    if location.suffix.lower() == ".tar" and location.is_file():
        return Tar(location)
    if location.suffix.lower() == ".zip":
        raise InputError(f"--source {path} cannot be read as a zip archive; download it again")
    return Folder(location)
