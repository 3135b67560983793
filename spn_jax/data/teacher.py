"""Reads the feature cache: the frozen teacher's features of every training photo.

`teacher_export` writes it, the trainer reads it. A cache is one folder of ArrayRecord shards and a
manifest:

    plan.json                        what is being exported, written before the first shard
    features-00000-of-00012.array_record   the shards, in the order of the photos
    manifest.json                    the plan and every shard's record count and size, written last

A shard gets its name only when it is complete and on the disk, so an interrupted export leaves no
invalid data.
"""

import dataclasses
import hashlib
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any, Protocol

from array_record.python.array_record_module import ArrayRecordReader

from spn_jax.config import Config
from spn_jax.data.manifest import MANIFEST, PLAN, Features, Manifest, export_command, read_manifest
from spn_jax.data.shards import READER_OPTIONS
from spn_jax.errors import InputError

OPEN_READERS = 256  # a cache can have more shards than a process may have open files


class Photos(Protocol):
    """The photo list (spn_jax.data.images) that a cache is compared with."""

    def __len__(self) -> int: ...
    def fingerprint(self) -> str:
        """Returns the SHA-256 of names and sizes."""


def preparation(config: Config) -> dict[str, str]:
    """Returns the settings, besides P, that decide what the teacher saw of a photo."""
    return {"crop": config.data.crop, "resize_filter": config.data.resize_filter, "photo": config.teacher.photo}


def orientations(config: Config) -> int:
    """Returns the number of records a photo needs. A mirrored photo needs one of its own, since the
    teacher is not mirror-symmetric.
    """
    return 1 if config.data.flip == "none" else 2


class TeacherCache:
    """Random access to the features of a finished cache. Safe to use from many threads; can be
    pickled.
    """

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
            InputError: no cache there, its manifest is damaged, or a shard is missing or has
                another size than the manifest says.
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
        """Pickles the cache without its open files; a copy opens its own."""
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
        """Returns the SHA-256 of the manifest without the label of the weights: equal for equal
        features, wherever they and their weights lay.
        """
        return hashlib.sha256(dataclasses.replace(self.manifest, weights_origin="").to_json().encode()).hexdigest()

    def features(self, photo: int, flipped: bool, checksum: int | None = None, name: str = "") -> dict[int, Features]:
        """Returns {level: read-only (h, w, c) in the cache's dtype} of one photo; in 8 bits
        {"codes": (h, w, c), "low": (c,), "step": (c,)}.

        Args:
            checksum: that of the photo's current file; None skips the comparison.
            name: the photo's name in the error text.

        Raises:
            InputError: the cache has no mirrored features, the shard is damaged, or the features
                were computed from another photo.
        """
        manifest = self.manifest
        if not 0 <= photo < manifest.photo_count:
            raise IndexError(f"photo {photo} of {manifest.photo_count}")
        if flipped and manifest.orientations == 1:
            raise InputError(f"teacher.cache={self.folder} has no mirrored photos; export again with data.flip other than none")
        shard, position = divmod(photo, manifest.photos_per_shard)
        try:
            record = manifest.decode(self._reader(shard).read([position * manifest.orientations + int(flipped)])[0])
        except (RuntimeError, ValueError, IndexError) as error:
            if isinstance(error, InputError):
                raise
            raise self._damaged(shard, str(error).partition(";")[0]) from error
        number = photo * manifest.orientations + int(flipped)
        if record.number != number:
            raise self._damaged(shard, f"record {record.number} is where {number} should be")
        if checksum not in (None, record.checksum):
            raise InputError(
                f"photo {name or photo} has changed since its features in {self.folder / manifest.shards[shard].file} were exported; "
                f"put the old photo back, or delete that file and run {export_command(self.folder)}"
            )
        return record.features

    def _reader(self, shard: int) -> ArrayRecordReader:
        with self._lock:
            reader = self._readers.pop(shard, None)
            if reader is None:
                # An evicted reader closes when the last thread that reads from it lets go.
                if len(self._readers) >= OPEN_READERS:
                    self._readers.popitem(last=False)
                stated = self.manifest.shards[shard]
                reader = ArrayRecordReader(str(self.folder / stated.file), READER_OPTIONS)
                # This reader takes a file that it cannot parse for an empty one.
                if reader.num_records() != stated.records:
                    raise self._damaged(shard, f"{reader.num_records()} records instead of {stated.records}")
            self._readers[shard] = reader
            return reader

    def _damaged(self, shard: int, reason: str) -> InputError:
        path = self.folder / self.manifest.shards[shard].file
        return InputError(f"feature shard {path} is damaged ({reason}); delete it and run {export_command(self.folder)}")

    def check(self, config: Config, photos: Photos) -> None:
        """Raises InputError, with a list of all reasons, if the cache does not fit `config` and its
        training photos.
        """
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
        stored = {level.level: level for level in manifest.levels}
        for number, name in zip(config.teacher.levels, config.teacher.layers, strict=False):
            if number in stored and stored[number].name != name:
                lines.append(f"teacher.layers: level {number} is {stored[number].name} in the cache, {name} here")
        for level in manifest.levels:
            if level.resized and level.resized.split()[0] != config.teacher.resize:
                lines.append(f"teacher.resize: level {level.level} is {level.resized} in the cache, {config.teacher.resize} here")
        if missing := sorted(set(config.model.prior_levels) - set(self.levels)):
            lines.append(f"levels {missing} of model.prior_levels are not in the cache, which has {list(self.levels)}")
        if lines:
            raise InputError(
                f"teacher.cache={self.folder} does not fit this run: {'; '.join(lines)}; "
                "change the settings, or choose another teacher.cache and export into it"
            )


def damaged_shards(folder: Path, manifest: Manifest) -> dict[int, str]:
    """Returns {shard index: what is wrong} of shards that are missing or have another size than the
    manifest says.
    """
    damaged = {}
    for index, shard in enumerate(manifest.shards):
        path = folder / shard.file
        size = path.stat().st_size if path.is_file() else None
        if size != shard.bytes:
            damaged[index] = f"{shard.file} is missing" if size is None else f"{shard.file} has {size} bytes instead of {shard.bytes}"
    return damaged
