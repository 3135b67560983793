"""Writes the feature cache shard by shard, in one process or in several that divide the shards."""

import contextlib
import dataclasses
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from spn_jax.data.manifest import MANIFEST, PLAN, Manifest, Shard, plan_differences, read_manifest
from spn_jax.data.shards import READER_OPTIONS, UNFINISHED, BeingWritten, count_records, leftovers, locked_file, new_shard, write_text
from spn_jax.data.teacher import damaged_shards
from spn_jax.errors import InputError
from spn_jax.runtime.files import FolderLock

# Each chunk holds one record, so that reading a photo decompresses nothing else. zstd runs at its
# fastest level: on a trunk's bfloat16 features of 256-pixel photos it stores 58 % of the bytes,
# writes as fast as no compression (298 against 316 MB/s) and reads 580 MB/s a thread against 2,170.
# Higher levels gain 1 % at half the writing speed. The bytes depend on the records alone, not on
# threads or time.
WRITER_OPTIONS = {"zstd": "group_size:1,zstd:1", "none": "group_size:1,uncompressed"}
RECORDS_AT_ONCE = 16  # read together when a shard is verified
MERGE_LOCK = UNFINISHED + "verification"

# features of the next record, checksum of its photo
Write = Callable[[Mapping[int, np.ndarray], int], None]


class CacheWriter(contextlib.AbstractContextManager["CacheWriter"]):
    """Fills one cache folder shard by shard. After an interruption only missing shards are written.

    Of several processes, number i owns the shards k with k % processes == i. Leaving the context
    releases the folder. `unfinished` lists the shards that this process still has to write;
    `complete` says that the cache was finished before.
    """

    def __init__(self, folder: str, plan: Manifest, process: int = 0, processes: int = 1) -> None:
        """Creates `folder` or takes up the export in it.

        Raises:
            InputError: an export that this process does not belong to is running there, the folder
                holds features of other settings (all differences are listed) or shards of unknown
                origin, or it cannot be written.
        """
        self.folder, self.plan, self.processes = Path(folder), plan, processes
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"teacher.cache={folder} cannot be created: {error.strerror}") from error
        # A single exporter locks the folder alone; the processes of a shared export share the lock.
        busy = f"another export is writing to teacher.cache={self.folder}"
        self._lock = FolderLock(self.folder, busy, "wait for it or stop it", shared=processes > 1)
        try:
            self._take_up()
            self.unfinished = [index for index in self.missing() if index % processes == process]
        except BaseException:
            self._lock.release()
            raise

    def __exit__(self, *_: object) -> None:
        """Releases the folder."""
        self._lock.release()

    def _take_up(self) -> None:
        if self.processes == 1:
            self._remove_leftovers()
        manifest_path, plan_path = self.folder / MANIFEST, self.folder / PLAN
        stored = next((read_manifest(path) for path in (manifest_path, plan_path) if path.is_file()), None)
        if any(self.folder.glob("features-*.array_record")) or manifest_path.is_file():
            self._require_same(stored)
            assert stored is not None
            # The origin's name is a label: renamed weights with the same hash continue under the
            # first name.
            self.plan = dataclasses.replace(stored, shards=())
            if manifest_path.is_file():
                self._reopen(stored)
        elif stored is not None and self.processes > 1:  # another process of this export may just have begun
            self._require_same(stored)
        if not plan_path.is_file() or plan_path.read_text(encoding="utf-8") != self.plan.to_json():
            write_text(plan_path, self.plan.to_json())
        self.complete = manifest_path.is_file()

    def _remove_leftovers(self) -> None:
        """Deletes what killed processes left behind. In a shared export that is only what no
        process has locked: it may be at work.
        """
        for leftover in leftovers(self.folder, "features-*", "verification"):
            if self.processes == 1:
                leftover.unlink(missing_ok=True)
            elif leftover.name.startswith(f"{UNFINISHED}features-"):
                with locked_file(leftover, create=False) as mine:
                    if mine:
                        leftover.unlink(missing_ok=True)

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
        """Turns a finished cache that lost shards into an unfinished one without them."""
        damaged = damaged_shards(self.folder, manifest)
        if damaged or not manifest.shards:
            (self.folder / MANIFEST).unlink(missing_ok=True)
            for index in damaged:
                (self.folder / manifest.shards[index].file).unlink(missing_ok=True)

    def path(self, index: int) -> Path:
        """Returns the file of shard `index`."""
        return self.folder / self.plan.shard_file(index)

    def missing(self) -> list[int]:
        """Returns the shards of all processes that are not written yet."""
        return [index for index in range(self.plan.shard_count) if not self._is_finished(index)]

    def _is_finished(self, index: int) -> bool:
        return self.path(index).is_file() and count_records(self.path(index)) == self._records(index)

    def _records(self, index: int) -> int:
        return len(self.plan.shard_photos(index)) * self.plan.orientations

    @contextlib.contextmanager
    def shard(self, index: int) -> Iterator[Write]:
        """Opens a context that yields `write(features, checksum)`, to be called for every record of
        shard `index` in order.

        The file becomes a shard only if the context is left without an exception.

        Raises:
            BeingWritten: another process is writing this shard, or has finished it meanwhile.
            InputError: the disk is full or fails. Shards finished before stay valid.
            ValueError: another number of records was written than the shard holds.
        """
        name, first = self.plan.shard_file(index), self.plan.shard_photos(index).start * self.plan.orientations
        written = 0
        if self._is_finished(index):
            raise BeingWritten(name)

        def write(features: Mapping[int, np.ndarray], checksum: int) -> None:
            nonlocal written
            put(self.plan.encode(first + written, checksum, features))
            written += 1

        with new_shard(self.folder, name, WRITER_OPTIONS[self.plan.compression]) as put:
            yield write
            if written != self._records(index):
                raise ValueError(f"{written} records written to {name} instead of {self._records(index)}")

    def compressed_bytes(self, features: Sequence[Mapping[int, np.ndarray]]) -> float:
        """Returns the mean bytes on disk of records like these, from a temporary file that it
        removes.
        """
        # pods on one disk often have equal numbers
        name = f"sample-{socket.gethostname()}-{os.getpid()}"
        with new_shard(self.folder, name, WRITER_OPTIONS[self.plan.compression]) as put:
            for sample in features:
                put(self.plan.encode(0, 0, sample))
        path = self.folder / name
        size = path.stat().st_size
        path.unlink()
        return size / len(features)

    @contextlib.contextmanager
    def verification(self) -> Iterator[bool]:
        """Opens a context that yields whether this process may verify the cache; one at a time
        may.
        """
        lock = self.folder / MERGE_LOCK
        with locked_file(lock, create=True) as mine:
            # Without locks (None) two may verify, which does no harm.
            yield mine is not False
            if mine is not False:
                lock.unlink(missing_ok=True)

    def damage(self, threads: int, done: Callable[[int], None]) -> dict[int, str]:
        """Reads every record and returns {shard: what is wrong} of the shards with unreadable
        records.

        Args:
            threads: number of threads that read.
            done: called with the number of records just read.
        """

        def examine(index: int) -> str | None:
            try:
                reader = ArrayRecordReader(str(self.path(index)), READER_OPTIONS)
                records, first = reader.num_records(), self.plan.shard_photos(index).start * self.plan.orientations
                if records != self._records(index):
                    return f"it has {records} records instead of {self._records(index)}"
                for start in range(0, records, RECORDS_AT_ONCE):
                    numbers = list(range(start, min(start + RECORDS_AT_ONCE, records)))
                    for number, record in zip(numbers, reader.read(numbers), strict=True):
                        if self.plan.decode(record).number != first + number:
                            return f"record {number} belongs elsewhere"
                    done(len(numbers))
            except (RuntimeError, ValueError, IndexError, OSError) as error:
                return str(error).partition(";")[0]
            return None

        with ThreadPoolExecutor(threads) as pool:
            found = dict(enumerate(pool.map(examine, range(self.plan.shard_count))))
        return {index: wrong for index, wrong in found.items() if wrong is not None}

    def remove(self, index: int) -> None:
        """Deletes a damaged shard, and the manifest, which is no longer true."""
        (self.folder / MANIFEST).unlink(missing_ok=True)
        self.path(index).unlink(missing_ok=True)
        self.complete = False

    def finish(self) -> Manifest:
        """Writes the manifest; from then on the cache can be opened. Raises ValueError if a shard
        is missing.
        """
        if missing := [self.plan.shard_file(index) for index in self.missing()]:
            raise ValueError(f"{missing} are not written yet")
        shards = tuple(
            Shard(file=self.plan.shard_file(index), records=self._records(index), bytes=self.path(index).stat().st_size)
            for index in range(self.plan.shard_count)
        )
        manifest = dataclasses.replace(self.plan, shards=shards)
        write_text(self.folder / MANIFEST, manifest.to_json())
        if self.processes > 1:  # alone, the leftovers went when the folder was taken up
            self._remove_leftovers()
        self.complete, self.unfinished = True, []
        return manifest
