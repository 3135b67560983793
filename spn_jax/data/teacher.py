"""The feature cache: what the frozen teacher says about every training photo, as ArrayRecord shards and a manifest.

`teacher_export` writes it, the trainer reads it. A cache is one folder:

    plan.json                        what is being exported, written before the first shard
    features-00000-of-00012.array_record   the shards, in the order of the photos
    manifest.json                    the plan and every shard's record count and size, written last

Photo i has `orientations` records, r = i * orientations + flipped. A record is the arrays (h, w, c) of all levels,
ascending level, C order, little endian, one after the other; shapes and dtype stand in the manifest.
A shard gets its name only when it is complete and on the disk, so an interrupted export leaves nothing that reads as data.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import shlex
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from spn_jax.config import Config
from spn_jax.errors import InputError
from spn_jax.files import lock_folder

VERSION = 1
MANIFEST = "manifest.json"
PLAN = "plan.json"
TEMPORARY = "unfinished-"  # prefix of files that are being written

DTYPES: dict[str, np.dtype[Any]] = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
_RAW: dict[str, np.dtype[Any]] = {"float32": np.dtype("<u4"), "bfloat16": np.dtype("<u2")}  # the same bits with a byte order of their own

# One record a chunk, so that reading a photo decompresses nothing else. zstd at its fastest level: measured on a trunk's
# bfloat16 features of 256-pixel photos it stores 58 % of the bytes, writes as fast as no compression (298 against 316 MB/s)
# and reads 580 MB/s a thread against 2,170. Features are terabytes, so the disk is what limits, not the processor.
# Higher levels gain 1 % at half the writing speed. The bytes depend on the records alone, not on threads or time.
WRITER_OPTIONS = "group_size:1,zstd:1"
READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
OPEN_READERS = 256  # a cache can have more shards than a process may have open files


@dataclasses.dataclass(frozen=True, kw_only=True)
class Level:
    """One scale of the teacher. Level l is distilled at P / 2^(l-1); height and width are what is stored."""

    level: int
    name: str  # of the teacher's layer
    channels: int
    height: int
    width: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """One ArrayRecord file."""

    file: str
    records: int
    bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a cache holds. A plan is a manifest without shards."""

    version: int = VERSION
    teacher: str
    weights_origin: str  # "file NAME", "timm:NAME (ImageNet-1k, not OpenImages)" or "random(seed=N)"
    weights_sha256: str
    photos_sha256: str  # the photos' names and sizes, in order
    photo_count: int
    orientations: int  # 1: as they are; 2: also mirrored
    image_size: int  # P; the teacher saw 2P
    preparation: dict[str, str]  # crop, resize_filter, photo
    dtype: str
    photos_per_shard: int
    levels: tuple[Level, ...]  # ascending
    shards: tuple[Shard, ...] = ()

    @property
    def record_bytes(self) -> int:
        """Bytes of one record before compression."""
        return sum(_values(level) for level in self.levels) * DTYPES[self.dtype].itemsize

    @property
    def record_count(self) -> int:
        """Records in the whole cache."""
        return self.photo_count * self.orientations

    @property
    def shard_count(self) -> int:
        """Shards of a finished cache."""
        return math.ceil(self.photo_count / self.photos_per_shard)

    def shard_file(self, index: int) -> str:
        """Name of shard `index`."""
        return f"features-{index:05d}-of-{self.shard_count:05d}.array_record"

    def shard_photos(self, index: int) -> range:
        """Photos whose records lie in shard `index`: both orientations of a photo share a shard."""
        start = index * self.photos_per_shard
        return range(start, min(start + self.photos_per_shard, self.photo_count))

    def encode(self, features: Mapping[int, np.ndarray]) -> bytes:
        """One record from {level: (h, w, c)} in the cache's dtype. ValueError if shapes or dtype are not the manifest's."""
        expected = {level.level: (level.height, level.width, level.channels) for level in self.levels}
        given = {level: array.shape for level, array in features.items()}
        if given != expected or any(array.dtype != DTYPES[self.dtype] for array in features.values()):
            raise ValueError(f"features {given} do not fit the cache's {expected} in {self.dtype}")
        raw = _RAW[self.dtype]
        arrays = (np.ascontiguousarray(features[level.level]) for level in self.levels)
        return b"".join(a.view(raw.newbyteorder("=")).astype(raw, copy=False).tobytes() for a in arrays)

    def decode(self, record: bytes) -> dict[int, np.ndarray]:
        """{level: read-only (h, w, c)} from one record. ValueError if its length is wrong."""
        if len(record) != self.record_bytes:
            raise ValueError(f"a record has {len(record)} bytes instead of {self.record_bytes}")
        features, offset, raw = {}, 0, _RAW[self.dtype]
        for level in self.levels:
            flat = np.frombuffer(record, raw, _values(level), offset)
            native = flat.astype(raw.newbyteorder("="), copy=False).view(DTYPES[self.dtype])
            features[level.level] = native.reshape(level.height, level.width, level.channels)
            offset += flat.nbytes
        return features

    def to_json(self) -> str:
        """Text of manifest.json and plan.json."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"


def _values(level: Level) -> int:
    return level.height * level.width * level.channels


def read_manifest(path: Path) -> Manifest:
    """Reads manifest.json or plan.json.

    Raises:
        InputError: unreadable, not JSON, of another version, or with entries that are missing, unknown or of the wrong kind.
    """
    advice = f"delete {path.name} and run {export_command(path.parent)}: shards that are finished are kept"
    if path.name == PLAN:  # nothing else says what the shards beside it are
        advice = f"delete the folder and run {export_command(path.parent)}"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(values, dict) and values.get("version", VERSION) != VERSION:
            raise InputError(f"{path} has version {values['version']}, this program reads version {VERSION}: export the features again")
        levels = tuple(_typed(Level, v) for v in values["levels"])
        shards = tuple(_typed(Shard, v) for v in values["shards"])
        manifest = _typed(Manifest, {**values, "levels": levels, "shards": shards})
        _check_consistent(manifest)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the folder teacher.cache") from error
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = f"entry {error} is missing" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{path} is damaged ({reason}); {advice}") from error
    return manifest


def _typed(kind: Any, values: Any) -> Any:
    """A `kind` (dataclass) from a JSON object; TypeError or KeyError if entries are missing, unknown or of another type."""
    if not isinstance(values, dict):
        raise TypeError(f"{kind.__name__} is not an object")
    fields = {field.name: field.type for field in dataclasses.fields(kind)}
    if unknown := sorted(values.keys() - fields.keys()):
        raise TypeError(f"entry {unknown[0]!r} is unknown")
    for name, type_ in fields.items():
        if isinstance(type_, type) and type_ in (int, str) and (type(values[name]) is not type_):
            raise TypeError(f"entry {name!r} is not {'a whole number' if type_ is int else 'text'}")
    return kind(**values)


def _check_consistent(manifest: Manifest) -> None:
    sizes = [manifest.photo_count, manifest.photos_per_shard, manifest.image_size, *(_values(level) for level in manifest.levels)]
    ascending = sorted({level.level for level in manifest.levels})
    if min(sizes) < 1 or manifest.orientations not in (1, 2) or manifest.dtype not in DTYPES:
        raise ValueError("its sizes, orientations or dtype make no sense")
    if not ascending or ascending != [level.level for level in manifest.levels]:
        raise ValueError("its levels do not ascend")
    preparation = manifest.preparation
    if not isinstance(preparation, dict) or not all(isinstance(v, str) for v in preparation.values()):
        raise ValueError("its preparation is not a table of texts")
    expected = [(manifest.shard_file(k), len(manifest.shard_photos(k)) * manifest.orientations) for k in range(manifest.shard_count)]
    if manifest.shards and [(shard.file, shard.records) for shard in manifest.shards] != expected:
        raise ValueError("its shards do not hold every photo once")


def export_command(cache: str | Path, config_file: str = "configs/NAME.py") -> str:
    """The command that fills the cache, as error texts show it."""
    return f"`python -m teacher_export --config {config_file} --weights FILE|timm:NAME|random teacher.cache={shlex.quote(str(cache))}`"


class Photos(Protocol):
    """What a cache is compared with: a photo list of spn_jax.data.images."""

    def __len__(self) -> int: ...
    def fingerprint(self) -> str:
        """SHA-256 over names and sizes."""


def preparation(config: Config) -> dict[str, str]:
    """Settings, besides P, that decide what the teacher saw of a photo."""
    return {"crop": config.data.crop, "resize_filter": config.data.resize_filter, "photo": config.teacher.photo}


def orientations(config: Config) -> int:
    """Records a photo needs: a mirrored photo has features of its own, since the teacher is not mirror-symmetric."""
    return 1 if config.data.flip == "none" else 2


class TeacherCache:
    """Random access to the features of a finished cache. Safe to use from many threads; can be pickled."""

    def __init__(self, folder: str, manifest: Manifest) -> None:
        """Use `TeacherCache.open`."""
        self.folder = Path(folder)
        self.manifest = manifest
        self._readers: OrderedDict[int, ArrayRecordReader] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def open(cls, folder: str, config_file: str = "configs/NAME.py") -> "TeacherCache":
        """Opens the finished cache in `folder`; `config_file` only serves the error text.

        Raises:
            InputError: no cache there, its manifest is damaged, or a shard is missing or has another size than the manifest says.
        """
        if not folder:
            raise InputError(f"teacher.cache is not set; choose a folder and fill it with {export_command('FOLDER', config_file)}")
        path = Path(folder)
        if not (path / MANIFEST).is_file():
            state = "an unfinished export" if (path / PLAN).is_file() else "no teacher features"
            verb = "continue it" if (path / PLAN).is_file() else "make them"
            raise InputError(f"teacher.cache={folder} holds {state} (no {MANIFEST}); {verb} with {export_command(folder, config_file)}")
        cache = cls(folder, read_manifest(path / MANIFEST))
        if not cache.manifest.shards:
            raise InputError(f"{path / MANIFEST} lists no shards; delete it and run {export_command(folder, config_file)}")
        if damaged := damaged_shards(path, cache.manifest):
            raise InputError(
                f"teacher.cache={folder} is damaged: {'; '.join(damaged.values())}; restore it with {export_command(folder, config_file)}"
            )
        return cache

    def __reduce__(self) -> tuple[Any, ...]:
        """Open files do not travel between processes; a copy opens its own."""
        return TeacherCache, (str(self.folder), self.manifest)

    @property
    def levels(self) -> tuple[int, ...]:
        """Stored levels, ascending."""
        return tuple(level.level for level in self.manifest.levels)

    @property
    def channels(self) -> dict[int, int]:
        """Channels of each level."""
        return {level.level: level.channels for level in self.manifest.levels}

    def identity(self) -> str:
        """SHA-256 of the manifest without the origin's name, a label: equal for equal features, wherever they and their weights lay."""
        return hashlib.sha256(dataclasses.replace(self.manifest, weights_origin="").to_json().encode()).hexdigest()

    def features(self, photo: int, flipped: bool) -> dict[int, np.ndarray]:
        """{level: read-only (h, w, c)} of one photo, in the cache's dtype.

        Raises:
            InputError: mirrored features asked of a cache without them, or the shard is damaged.
        """
        manifest = self.manifest
        if not 0 <= photo < manifest.photo_count:
            raise IndexError(f"photo {photo} of {manifest.photo_count}")
        if flipped and manifest.orientations == 1:
            raise InputError(f"teacher.cache={self.folder} has no mirrored photos; export again with data.flip other than none")
        shard, position = divmod(photo, manifest.photos_per_shard)
        try:
            record = self._reader(shard).read([position * manifest.orientations + int(flipped)])[0]
            return manifest.decode(record)
        except (RuntimeError, ValueError, IndexError) as error:
            if isinstance(error, InputError):
                raise
            raise self._damaged(shard, str(error).partition(";")[0]) from error

    def _reader(self, shard: int) -> ArrayRecordReader:
        with self._lock:
            reader = self._readers.pop(shard, None)
            if reader is None:
                # One that is pushed out closes when the last thread that reads from it lets go.
                if len(self._readers) >= OPEN_READERS:
                    self._readers.popitem(last=False)
                stated = self.manifest.shards[shard]
                reader = ArrayRecordReader(str(self.folder / stated.file), READER_OPTIONS)
                # A file that it cannot make sense of is an empty one to this reader.
                if reader.num_records() != stated.records:
                    raise self._damaged(shard, f"{reader.num_records()} records instead of {stated.records}")
            self._readers[shard] = reader
            return reader

    def _damaged(self, shard: int, reason: str) -> InputError:
        path = self.folder / self.manifest.shards[shard].file
        return InputError(f"feature shard {path} is damaged ({reason}); delete it and run {export_command(self.folder)}")

    def check(self, config: Config, photos: Photos) -> None:
        """Raises an InputError that lists every way in which the cache does not fit `config` and its training photos."""
        manifest, lines = self.manifest, []
        wanted: dict[str, tuple[Any, Any]] = {
            "teacher.name": (manifest.teacher, config.teacher.name),
            "data.image_size": (manifest.image_size, config.data.image_size),
            "number of photos": (manifest.photo_count, len(photos)),
        }
        sections = {"crop": "data", "resize_filter": "data", "photo": "teacher"}
        for key, value in preparation(config).items():
            wanted[f"{sections[key]}.{key}"] = (manifest.preparation.get(key), value)
        lines += [f"{key} is {there} in the cache, {here} here" for key, (there, here) in wanted.items() if there != here]
        if manifest.photo_count == len(photos) and manifest.photos_sha256 != photos.fingerprint():
            lines.append("the photos have other names or file sizes")
        if manifest.orientations < orientations(config):
            lines.append(f"data.flip={config.data.flip} needs mirrored photos, the cache has none")
        if missing := sorted(set(config.model.prior_levels) - set(self.levels)):
            lines.append(f"levels {missing} of model.prior_levels are not in the cache, which has {list(self.levels)}")
        if lines:
            raise InputError(
                f"teacher.cache={self.folder} does not fit this run: {'; '.join(lines)}; "
                "change the settings, or choose another teacher.cache and export into it"
            )


def damaged_shards(folder: Path, manifest: Manifest) -> dict[int, str]:
    """{shard index: what is wrong} of shards that are missing or whose size is not the manifest's."""
    damaged = {}
    for index, shard in enumerate(manifest.shards):
        path = folder / shard.file
        size = path.stat().st_size if path.is_file() else None
        if size != shard.bytes:
            damaged[index] = f"{shard.file} is missing" if size is None else f"{shard.file} has {size} bytes instead of {shard.bytes}"
    return damaged


class CacheWriter(contextlib.AbstractContextManager["CacheWriter"]):
    """Fills one cache folder, shard by shard; started again after any interruption it asks only for the missing shards.

    Leaving the context releases the folder for another process. Attribute `unfinished` lists the shards still to write;
    `complete` says that the cache was finished before.
    """

    def __init__(self, folder: str, plan: Manifest) -> None:
        """Creates `folder` or takes up the export in it.

        Raises:
            InputError: another export is running there, the folder holds features of other settings (all differences are
                listed) or shards of unknown origin, or it cannot be written.
        """
        self.folder, self.plan = Path(folder), plan
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._folder_handle = os.open(self.folder, os.O_RDONLY)
        except OSError as error:
            raise InputError(f"teacher.cache={folder} cannot be created: {error.strerror}") from error
        try:
            self._lock_folder()
            self._take_up()
        except BaseException:
            os.close(self._folder_handle)
            raise

    def __exit__(self, *_: object) -> None:
        """Releases the folder."""
        os.close(self._folder_handle)

    def _lock_folder(self) -> None:
        lock_folder(self._folder_handle, f"another export is writing to teacher.cache={self.folder}; wait for it or stop it")

    def _take_up(self) -> None:
        for leftover in self.folder.glob(TEMPORARY + "*"):
            leftover.unlink()
        manifest_path, plan_path = self.folder / MANIFEST, self.folder / PLAN
        stored = next((read_manifest(path) for path in (manifest_path, plan_path) if path.is_file()), None)
        if any(self.folder.glob("features-*.array_record")) or manifest_path.is_file():
            self._require_same(stored)
            assert stored is not None
            # The origin's name is a label: renamed weights with the same hash continue under the first name.
            self.plan = dataclasses.replace(stored, shards=())
            if manifest_path.is_file():
                self._reopen(stored)
        if not plan_path.is_file() or plan_path.read_text(encoding="utf-8") != self.plan.to_json():
            self._write(PLAN, self.plan.to_json())
        self.complete = manifest_path.is_file()
        self.unfinished = [index for index in range(self.plan.shard_count) if not self._is_finished(index)]

    def _require_same(self, stored: Manifest | None) -> None:
        if stored is None:
            raise InputError(
                f"teacher.cache={self.folder} has feature shards but no {PLAN} to say what they are; "
                "choose another teacher.cache, or delete them"
            )
        if lines := plan_differences(stored, self.plan):
            raise InputError(
                f"teacher.cache={self.folder} holds features made with other settings: {'; '.join(lines)}; "
                "use those settings to continue, or choose another teacher.cache"
            )

    def _reopen(self, manifest: Manifest) -> None:
        """A finished cache that lost shards becomes an unfinished one without them."""
        damaged = damaged_shards(self.folder, manifest)
        if damaged or not manifest.shards:
            (self.folder / MANIFEST).unlink()
            for index in damaged:
                (self.folder / manifest.shards[index].file).unlink(missing_ok=True)

    def _is_finished(self, index: int) -> bool:
        path = self.folder / self.plan.shard_file(index)
        return path.is_file() and ArrayRecordReader(str(path), READER_OPTIONS).num_records() == self._records(index)

    def _records(self, index: int) -> int:
        return len(self.plan.shard_photos(index)) * self.plan.orientations

    @contextlib.contextmanager
    def shard(self, index: int) -> Iterator[Callable[[Mapping[int, np.ndarray]], None]]:
        """Context that yields `write(features)`, to be called for every record of shard `index` in order.

        Only leaving it without an exception makes the file a shard.

        Raises:
            InputError: the disk is full or fails. Shards finished before stay valid.
            ValueError: another number of records was written than the shard holds.
        """
        written = 0

        def write(features: Mapping[int, np.ndarray]) -> None:
            nonlocal written
            put(self.plan.encode(features))
            written += 1

        name = self.plan.shard_file(index)
        with self._new_file(name) as put:
            yield write
            if written != self._records(index):
                raise ValueError(f"{written} records written to {name} instead of {self._records(index)}")

    def compressed_bytes(self, features: Sequence[Mapping[int, np.ndarray]]) -> float:
        """Mean bytes on the disk of records like these; writes and removes a temporary file."""
        path = self.folder / (TEMPORARY + "sample")
        with self._new_file(path.name) as put:
            for sample in features:
                put(self.plan.encode(sample))
        size = path.stat().st_size
        path.unlink()
        return size / len(features)

    @contextlib.contextmanager
    def _new_file(self, name: str) -> Iterator[Callable[[bytes], None]]:
        temporary = self.folder / (TEMPORARY + name)
        writer = None
        try:
            writer = ArrayRecordWriter(str(temporary), WRITER_OPTIONS)

            def put(record: bytes) -> None:
                try:
                    writer.write(record)
                except RuntimeError as error:
                    raise self._write_failed(name, error) from error

            yield put
            try:
                writer.close()  # writing happens in the background: this is where a full disk is noticed
                _flush(temporary)
                temporary.rename(self.folder / name)
                os.fsync(self._folder_handle)
            except (RuntimeError, OSError) as error:
                raise self._write_failed(name, error) from error
        except BaseException:
            with contextlib.suppress(RuntimeError):
                if writer is not None and writer.is_open():
                    writer.close()
            temporary.unlink(missing_ok=True)
            raise

    def _write_failed(self, name: str, error: Exception) -> InputError:
        reason = str(error).partition(";")[0]
        return InputError(
            f"writing {self.folder / name} failed: {reason}; free some space and run the same command again, finished shards are kept"
        )

    def _write(self, name: str, text: str) -> None:
        """Replaces a small file at once: a reader sees the old or the new one."""
        temporary = self.folder / (TEMPORARY + name)
        try:
            temporary.write_text(text, encoding="utf-8")
            _flush(temporary)
            temporary.replace(self.folder / name)
            os.fsync(self._folder_handle)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise self._write_failed(name, error) from error

    def finish(self) -> Manifest:
        """Writes the manifest: from here on the cache can be opened. ValueError if a shard is still missing."""
        files = [self.plan.shard_file(index) for index in range(self.plan.shard_count)]
        if missing := [file for file in files if not (self.folder / file).is_file()]:
            raise ValueError(f"{missing} are not written yet")
        shards = tuple(
            Shard(file=file, records=self._records(index), bytes=(self.folder / file).stat().st_size) for index, file in enumerate(files)
        )
        manifest = dataclasses.replace(self.plan, shards=shards)
        self._write(MANIFEST, manifest.to_json())
        self.complete, self.unfinished = True, []
        return manifest


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def plan_differences(stored: Manifest, wanted: Manifest) -> list[str]:
    """Lines `entry: stored -> wanted` of what two exports differ in; the label of the weights alone is no difference."""
    lines = []
    for field in dataclasses.fields(Manifest):
        before, after = getattr(stored, field.name), getattr(wanted, field.name)
        if field.name not in ("shards", "weights_origin") and before != after:
            if field.name == "weights_sha256":
                before, after = (f"{m.weights_origin} {m.weights_sha256[:12]}" for m in (stored, wanted))
            if field.name == "levels":
                before, after = (_describe_levels(m.levels) for m in (stored, wanted))
            lines.append(f"{field.name}: {before} -> {after}")
    return lines


def _describe_levels(levels: Sequence[Level]) -> str:
    return ", ".join(f"{level.level} ({level.name}) {level.height}x{level.width}x{level.channels}" for level in levels)
