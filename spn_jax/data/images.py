"""Opens photos from folders, .flist or ArrayRecord files, and brings them to a network's size."""

import bisect
import functools
import glob
import hashlib
import io
import itertools
import os
import threading
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps

from spn_jax.config import Config
from spn_jax.errors import InputError, counted, first_few

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".jp2")
ORIENTATION = 0x0112  # EXIF's tag
_FILTERS = {
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


class PhotoSource(ABC):
    """Photos in a fixed order, readable from several threads at once."""

    names: Sequence[str]  # what a photo is called in error texts and in the fingerprint

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def read(self, i: int) -> bytes:
        """Returns the bytes of photo `i`'s file. Raises InputError if they cannot be read."""

    @abstractmethod
    def describe(self, i: int) -> str:
        """Describes photo `i` for error texts: the setting it came from and where it lies."""

    def decode(self, i: int, data: bytes) -> np.ndarray:
        """Decodes `data`, the bytes of photo `i`, to uint8 (H, W, 3) RGB, upright.

        Raises:
            InputError: they are not an image. No other photo is taken instead.
        """
        return decode_photo(io.BytesIO(data), self.describe(i))

    def load(self, i: int) -> np.ndarray:
        """Loads photo `i` as uint8 (H, W, 3) RGB, upright. Raises InputError as `read` and `decode`
        do.
        """
        return self.decode(i, self.read(i))

    @abstractmethod
    def fingerprint(self) -> str:
        """Returns the SHA-256, in hex, of the names and byte sizes of all photos, in order."""


class PhotoFiles(PhotoSource):
    """One image file a photo."""

    def __init__(self, names: Sequence[str], files: Sequence[Path], setting: str):
        self.names = names
        self._files = files
        self._setting = setting
        self._sizes = byte_sizes(files, setting)

    def read(self, i: int) -> bytes:
        try:
            return self._files[i].read_bytes()
        except OSError as error:
            raise InputError(f"{self.describe(i)} cannot be read ({error.strerror or error}); put it back") from error

    def describe(self, i: int) -> str:
        return f"{self._setting}: photo {self._files[i]}"

    def fingerprint(self) -> str:
        return digest(f"{name}\0{size}" for name, size in zip(self.names, self._sizes, strict=True))


OPEN_FILES = 256  # a data set can have more shards than a process may have open files


class PhotoRecords(PhotoSource):
    """ArrayRecord files; each record holds the bytes of one encoded image."""

    def __init__(self, files: Sequence[Path], setting: str):
        # Imported here so that photos in plain files can be read without the package.
        from array_record.python import array_record_data_source

        self._setting = setting
        self._sizes = byte_sizes(files, setting)

        def open_file(shard: int) -> Any:
            return _open_records(array_record_data_source.ArrayRecordDataSource, files[shard], setting)

        self._files = files
        # An evicted reader closes when the last thread that reads from it lets go.
        self._source = functools.lru_cache(OPEN_FILES)(open_file)
        self._counts = [len(self._source(shard)) for shard in range(len(files))]
        self._ends = list(itertools.accumulate(self._counts))
        if not self._ends[-1]:
            raise InputError(f"{setting}: {files[0]} holds no record; write one encoded image a record")
        self.names = read_names(files[0].parent, self._ends[-1], setting) or [
            f"{f.name}[{r}]" for f, count in zip(files, self._counts, strict=True) for r in range(count)
        ]

    def read(self, i: int) -> bytes:
        shard, record = self._place(i)
        try:
            return self._source(shard)[record]
        except InputError:
            raise
        except Exception as error:  # the reader's errors have no common type
            raise InputError(f"{self.describe(i)} cannot be read ({error}); copy or write the file again") from error

    def describe(self, i: int) -> str:
        shard, record = self._place(i)
        return f"{self._setting}: record {record} of {self._files[shard]}"

    def _place(self, i: int) -> tuple[int, int]:
        shard = bisect.bisect_right(self._ends, i)
        return shard, i - (self._ends[shard] - self._counts[shard])

    def fingerprint(self) -> str:
        return digest(f"{f.name}\0{size}\0{n}" for f, size, n in zip(self._files, self._sizes, self._counts, strict=True))


# a file beside ArrayRecord files with the photos' names, one a line, in the order of the records
NAMES = "names.txt"


def read_names(folder: Path, count: int, setting: str) -> list[str]:
    """Returns the names of a folder's `count` records, or none if it has no list. Raises InputError
    if the list has another length.
    """
    if not (folder / NAMES).is_file():
        return []
    names = (folder / NAMES).read_bytes().decode("utf-8", "surrogateescape").removesuffix("\n").split("\n")
    if len(names) != count:
        raise InputError(
            f"{setting}: {folder / NAMES} has {len(names)} names for {count} records; prepare the data set again, or pass the whole folder"
        )
    return names


class KeptPhotos(PhotoSource):
    """Keeps decoded photos of another source in memory, as many as fit into `limit` bytes."""

    def __init__(self, photos: PhotoSource, limit: int):
        self._photos, self.names = photos, photos.names
        self._left, self._lock = limit, threading.Lock()
        self._kept: dict[int, np.ndarray] = {}

    def read(self, i: int) -> bytes:
        return self._photos.read(i)

    def describe(self, i: int) -> str:
        return self._photos.describe(i)

    def load(self, i: int) -> np.ndarray:
        photo = self._kept.get(i)
        if photo is None:
            photo = self._photos.load(i)
            with self._lock:
                if i not in self._kept and photo.nbytes <= self._left:
                    self._left -= photo.nbytes
                    self._kept[i] = photo
        return photo

    def fingerprint(self) -> str:
        return self._photos.fingerprint()


class SelectedPhotos(PhotoSource):
    """Some photos of another source, in an order of their own."""

    def __init__(self, photos: PhotoSource, indices: Sequence[int] | np.ndarray):
        self._photos = photos
        self._indices = [int(i) for i in indices]
        self.names = [photos.names[i] for i in self._indices]

    def read(self, i: int) -> bytes:
        return self._photos.read(self._indices[i])

    def describe(self, i: int) -> str:
        return self._photos.describe(self._indices[i])

    def fingerprint(self) -> str:
        return digest([self._photos.fingerprint(), *map(str, self._indices)])


def checksum(data: bytes) -> int:
    """Returns the CRC-32 of a photo's file. A feature cache uses it to recognise the photos that
    its features were computed from.
    """
    return zlib.crc32(data)


def open_photos(path: str, setting: str) -> PhotoSource:
    """Opens the photos at `path`; `setting` is the config key it came from, for error texts.

    `path` is a folder (searched recursively, in the order of the relative paths, without hidden
    files), a .flist (one path a line, absolute or relative to the list), or ArrayRecord: a file, a
    glob, or a folder of *.array_record*.

    Raises:
        InputError: nothing there, a folder without photos or with both photos and ArrayRecord
            files, a list with missing entries, a broken ArrayRecord file.
    """
    if "*" in path:
        return PhotoRecords(_matching(path, setting), setting)
    location = existing_path(path, setting)
    if location.is_file():
        if _is_record(location):
            return PhotoRecords([location], setting)
        return PhotoFiles(*read_list(location, setting, "*.array_record*"), setting)
    files = find_images(location)
    records = sorted(f for f in location.iterdir() if f.is_file() and _is_record(f))
    if files and records:
        raise InputError(
            f"{setting}: folder {location} holds {counted(len(records), 'ArrayRecord file')} and {counted(len(files), 'picture')}, such as "
            f"{files[0].relative_to(location)}, and which of them are the photos is not clear; move one kind to a folder of its own, "
            f"or set {setting}={location}/*.array_record* to read the ArrayRecord files"
        )
    if files:
        return PhotoFiles([f.relative_to(location).as_posix() for f in files], files, setting)
    if records:
        return PhotoRecords(records, setting)
    raise InputError(
        f"{setting}: folder {location} holds no photo; looked there and below for {' '.join(IMAGE_SUFFIXES)} and for *.array_record* files"
    )


def existing_path(path: str, setting: str) -> Path:
    """Returns the file or folder at `path`. Raises InputError if the setting is empty or nothing is
    there.
    """
    if not path:
        raise InputError(f"{setting} is not set; add {setting}=PATH to the command or set it in the config")
    location = Path(path).expanduser()
    if not location.exists():
        raise InputError(f"{setting}: {location} does not exist; set {setting} to where the files are")
    return location


def _matching(pattern: str, setting: str) -> list[Path]:
    files = sorted(Path(f) for f in glob.glob(os.path.expanduser(pattern)))
    if not files:
        raise InputError(f"{setting}: no file matches {pattern}; set {setting} to where the ArrayRecord files are")
    return files


def find_images(folder: Path) -> list[Path]:
    """Returns all image files in `folder` and below, ordered by relative path, without hidden files
    and folders.

    Links to folders are followed. A folder that can be reached in several ways is searched once,
    and a link to a folder that contains it is ignored, so no photo comes twice.
    """
    found = [file for file in files_below(folder) if file.name.lower().endswith(IMAGE_SUFFIXES)]
    return sorted(found, key=lambda f: f.relative_to(folder).as_posix())


def files_below(folder: Path, hidden: bool = False) -> Iterator[Path]:
    """Yields all files in `folder` and below in no order, each once (see `find_images`); hidden
    ones only if asked for.
    """
    visited = {os.path.realpath(folder)}
    # os.walk and not Path.rglob, since data folders are often put together from links.
    for parent, folders, files in os.walk(folder, followlinks=True):
        paths = [Path(parent, f) for f in folders if hidden or not f.startswith(".")]
        folders.clear()
        # Folders come before links, and both by name: the way by which a folder is reached must not
        # depend on the disk's order.
        for path in sorted(paths, key=lambda path: (path.is_symlink(), path.name)):
            if (real := os.path.realpath(path)) not in visited:
                visited.add(real)
                folders.append(path.name)
        yield from (Path(parent, f) for f in files if hidden or not f.startswith("."))


def read_list(path: Path, setting: str, else_known: str) -> tuple[list[str], list[Path]]:
    """Returns the names and files of a .flist.

    A file below the list's folder is named by its path from there, so a moved data set keeps its
    names. Lists written by Windows programs are understood: a byte-order mark and quotes around a
    path are ignored.

    Raises:
        InputError: `path` is not a list (the text says what else would have been accepted), or the
            list is empty.
    """
    if path.suffix.lower() != ".flist":
        raise InputError(
            f"{setting}: {path} is none of these: a folder, a .flist (text, one path a line), {else_known}; set {setting} to one"
        )
    try:
        lines = [_unquoted(line.strip()) for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise InputError(f"{setting}: {path} is not text in UTF-8; write one path a line") from error
    files = [path.parent / line for line in lines if line]
    if not files:
        raise InputError(f"{setting}: {path} lists no file; write one path a line")
    base = path.parent
    return [(f.relative_to(base) if f.is_relative_to(base) else f).as_posix() for f in files], files


def _unquoted(line: str) -> str:
    """Strips the quotes that enclose a whole line of a list."""
    return line[1:-1] if len(line) > 2 and line[0] == line[-1] and line[0] in "\"'" else line


def byte_sizes(files: Sequence[Path], setting: str) -> list[int]:
    """Returns the size in bytes of every file. Raises InputError, with the number and the first
    few, if some do not exist or are folders.
    """
    sizes = [_byte_size(f) for f in files]
    absent = [f for f, size in zip(files, sizes, strict=True) if size is None]
    folders = [f for f in absent if f.is_dir()]
    if folders:
        are = "is a folder" if len(folders) == 1 else "are folders"
        raise InputError(
            f"{setting}: {len(folders)} of the {counted(len(files), 'path')} listed {are}: {first_few(folders)}; "
            f"list the files in it, or set {setting} to the folder itself"
        )
    if absent:
        do, these = ("does", "this entry") if len(absent) == 1 else ("do", "these entries")
        hint = " (folders are separated by / here, not by \\)" if any("\\" in str(f) for f in absent) else ""
        raise InputError(
            f"{setting}: {len(absent)} of the {counted(len(files), 'file')} listed {do} not exist: {first_few(absent)}{hint}; "
            f"correct or remove {these}"
        )
    return [size for size in sizes if size is not None]


def _byte_size(file: Path) -> int | None:
    try:
        return file.stat().st_size if file.is_file() else None
    except OSError:
        return None


def _is_record(path: Path) -> bool:
    return ".array_record" in path.name


def _open_records(kind: Callable[[list[str]], Any], file: Path, setting: str) -> Any:
    try:
        return kind([str(file)])
    except Exception as error:  # the reader's errors have no common type
        reason = str(error) or "damaged or cut off"
        raise InputError(f"{setting}: {file} cannot be read as ArrayRecord ({reason}); copy or write it again") from error


def digest(entries: Iterable[str]) -> str:
    """Returns the SHA-256, in hex, of the entries in order, each ended by a line break."""
    sha256 = hashlib.sha256()
    for entry in entries:
        sha256.update(entry.encode("utf-8", "surrogateescape") + b"\n")
    return sha256.hexdigest()


def decode_photo(file: Path | io.BytesIO, what: str) -> np.ndarray:
    """Decodes an image to uint8 (H, W, 3) RGB: upright by its EXIF tag, transparency laid on white,
    16 bits rounded to 8.

    Raises:
        InputError: it is not an image, or is broken; `what` names it.
    """
    image = decode_image(file, what)
    if image.mode == "F":
        raise InputError(f"{what} has floating-point pixels, whose range is not defined; save it with 8 or 16 bits a channel")
    if image.mode.startswith("I"):
        # 16-bit grey: Pillow's own conversion would clip at 255.
        grey = (np.clip(np.asarray(image, np.int64), 0, 65535) + 128) // 257
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    return np.array(lay_on(image, 255) if image.has_transparency_data else image.convert("RGB"))


def decode_image(file: Path | io.BytesIO, what: str) -> Image.Image:
    """Reads the whole of an image file, upright by its EXIF tag, in the file's own mode;
    InputError, naming `what`, if that fails.
    """
    try:
        with Image.open(file) as image:
            deep = image.mode in ("RGB", "RGBA") and any(";16" in str(tile) for tile in image.tile)
            image.load()
            return ImageOps.exif_transpose(_rounded(image, file) if deep else image)
    except MemoryError:
        raise
    except Exception as error:  # broken files raise OSError, SyntaxError, ValueError, struct.error, ... according to the format
        reason = "the file is empty or of no known image format" if "cannot identify" in str(error) else error
        raise InputError(f"{what} cannot be read as an image ({reason}); replace it or take it out of the data set") from error


def _rounded(image: Image.Image, file: Path | io.BytesIO) -> Image.Image:
    """Rounds a colour image of 16 bits a channel to 8. Pillow truncates colours instead, but not
    grey.
    """
    data = file.read_bytes() if isinstance(file, Path) else file.getvalue()
    decoded, shallow = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED), np.asarray(image)
    if decoded is None or decoded.dtype != np.uint16 or decoded.shape != shallow.shape:
        return image
    deep = np.asarray(decoded[..., [2, 1, 0, 3][: shallow.shape[2]]], np.uint16)
    # another reading of the file than Pillow's, which knows more formats
    if not np.array_equal(deep >> 8, shallow):
        return image
    rounded = Image.fromarray(((deep.astype(np.uint32) + 128) // 257).astype(np.uint8))
    rounded.getexif()[ORIENTATION] = image.getexif().get(ORIENTATION, 1)
    return rounded


def lay_on(image: Image.Image, background: int) -> Image.Image:
    """Converts an image to RGB, its transparent parts filled with grey `background` (0..255)."""
    canvas = Image.new("RGBA", image.size, (background, background, background, 255))
    return Image.alpha_composite(canvas, image.convert("RGBA")).convert("RGB")


def prepare_photo(photo: np.ndarray, size: int, crop: str, resize_filter: str) -> np.ndarray:
    """Resizes a photo, uint8 (H, W, 3), to (size, size, 3).

    `crop` "none" squeezes it. "center" and "random" first cut the largest centred square: random
    crops are drawn in training alone, which cuts them by itself (`random_square`).
    """
    if crop != "none":
        photo = center_square(photo)
    if photo.shape[:2] == (size, size):
        return np.array(photo)
    return np.array(Image.fromarray(photo).resize((size, size), _FILTERS[resize_filter]))


def center_square(photo: np.ndarray) -> np.ndarray:
    """Cuts the largest centred square of a picture (H, W, ...)."""
    height, width = photo.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return photo[top : top + side, left : left + side]


def random_square(random: np.random.Generator, photo: np.ndarray, smallest: int) -> np.ndarray:
    """Cuts a square of random side and place from a photo (H, W, 3).

    The logarithm of the side is uniform between those of `smallest` and of the photo's shorter
    side, so that all scales are equally frequent. If the shorter side is below `smallest`, every
    square has that side. The place is uniform.
    """
    height, width = photo.shape[:2]
    longest = min(height, width)
    side = int(round(longest ** (fraction := random.random()) * min(smallest, longest) ** (1 - fraction)))
    top, left = int(random.integers(height - side + 1)), int(random.integers(width - side + 1))
    return photo[top : top + side, left : left + side]


def teacher_photo(photo: np.ndarray, config: Config) -> np.ndarray:
    """Returns the teacher's view of a photo (H, W, 3): uint8 (2P, 2P, 3), resized to 2P (as
    released) or to P and enlarged (the paper).
    """
    data = config.data
    prepare = functools.partial(prepare_photo, photo, crop=data.crop, resize_filter=data.resize_filter)
    if config.teacher.photo == "original":
        return prepare(2 * data.image_size)
    return prepare_photo(prepare(data.image_size), 2 * data.image_size, "none", "bilinear")
