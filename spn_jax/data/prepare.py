"""Packs published data sets into ArrayRecord shards with lists of training and test photos.

    DIR/train/photos-00000-of-00016.array_record ...  the photos' encoded bytes, one a record
    DIR/train/names.txt   their names, in the order of the records
    DIR/test/...          the same for the test photos
    DIR/dataset.json      what was made of what, written last

Photos are copied bit for bit: the trainer resizes them anyway, and a second JPEG compression would
affect every result.
"""

import dataclasses
import hashlib
import io
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from spn_jax.data.images import NAMES, decode_photo
from spn_jax.data.official import Photo, Selection
from spn_jax.data.shards import count_records, leftovers, new_shard, write_text
from spn_jax.errors import InputError, counted
from spn_jax.runtime.files import LOCK, FolderLock
from spn_jax.runtime.progress import Progress

FORMAT = 1
DATASET, PLAN = "dataset.json", "plan.json"
WRITER_OPTIONS = "group_size:1,uncompressed"  # photos are compressed already
SMALLEST_SHARD, LARGEST_SHARD = 100, 2000  # photos
SHARDS = 16  # shards of a set unless those limits decide, so that several threads have work
BROKEN_SHOWN = 20
# entry of plan.json and dataset.json: hashes of the photo sizes of each shard
SIZES = "shard_sizes_sha256"


def prepare(
    name: str,
    selection: Selection,
    sources: Sequence[str],
    output: Path,
    threads: int,
    beside: Callable[[], Mapping[str, str]] = dict,
) -> None:
    """Writes the shards, the lists and dataset.json of a data set. After an interruption it
    continues where it stopped.

    Args:
        name: of the data set.
        selection: its photos.
        sources: where they come from; recorded in dataset.json.
        output: folder to fill.
        threads: number of threads that copy and check photos, each a shard at a time.
        beside: returns further files to write, {name: text}; called when all photos are known to be
            intact.

    Raises:
        InputError: another preparation is running or used other sources, the disk is too small, or
            photos are broken (all are listed; none is left out silently).
    """
    check_names([photo.name for photo in (*selection.train, *selection.test)])
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {output} cannot be written ({error.strerror or error}); choose another folder") from error
    with FolderLock(output, f"another preparation is writing to --output {output}", "wait for it or stop it"):
        splits = {split: Split(output / split, photos) for split, photos in (("train", selection.train), ("test", selection.test))}
        plan = describe(name, sources, selection, splits)
        take_up(output, plan, splits)
        for note in selection.notes:
            print(note, flush=True)
        write_splits(splits, output, threads)
        for file_name, text in beside().items():
            write_text(output / file_name, text)
        shards = {split: {file.name: file.stat().st_size for file in parts.files()} for split, parts in splits.items()}
        write_text(output / DATASET, json.dumps(plan | {"bytes": shards}, indent=1) + "\n")
        (output / PLAN).unlink(missing_ok=True)
        counts = ", ".join(f"{len(parts.photos):,} photos in {parts.folder}" for parts in splits.values())
        print(f"{output} is complete: {counts}", flush=True)


def check_names(names: Sequence[str]) -> None:
    """Raises InputError unless each name fits into a line of names.txt."""
    if wrong := [name for name in names if "\n" in name]:
        raise InputError(f"{counted(len(wrong), 'photo')} with a line break in the name, such as {wrong[0]!r}; rename the files")


@dataclasses.dataclass(frozen=True)
class Split:
    """The photos of one split and the shards they go to."""

    folder: Path
    photos: Sequence[Photo]

    @property
    def per_shard(self) -> int:
        """Photos in a shard."""
        return max(SMALLEST_SHARD, min(LARGEST_SHARD, math.ceil(len(self.photos) / SHARDS)))

    def files(self) -> list[Path]:
        """Returns the shards, in order."""
        count = math.ceil(len(self.photos) / self.per_shard)
        return [self.folder / f"photos-{index:05d}-of-{count:05d}.array_record" for index in range(count)]

    def part(self, index: int) -> Sequence[Photo]:
        """Returns the photos of shard `index`."""
        return self.photos[index * self.per_shard : (index + 1) * self.per_shard]

    def unfinished(self) -> Iterator[int]:
        """Yields the shards that are still to be written."""
        for index, file in enumerate(self.files()):
            if not (file.is_file() and count_records(file) == len(self.part(index))):
                yield index

    def names(self) -> str:
        """Returns the text of names.txt."""
        return "".join(f"{photo.name}\n" for photo in self.photos)


def describe(name: str, sources: Sequence[str], selection: Selection, splits: Mapping[str, Split]) -> dict[str, object]:
    """Describes the preparation for plan.json and dataset.json. A folder that describes another one
    is refused.
    """
    digests = {split: hashlib.sha256(parts.names().encode("utf-8", "surrogateescape")).hexdigest() for split, parts in splits.items()}
    return {
        "format": FORMAT,
        "data_set": name,
        "sources": [Path(source).name for source in sources],
        "photos": {split: len(parts.photos) for split, parts in splits.items()},
        "names_sha256": digests,
        "notes": list(selection.notes),
        SIZES: {split: [sizes_sha256(parts.part(index)) for index in range(len(parts.files()))] for split, parts in splits.items()},
    }


def sizes_sha256(photos: Sequence[Photo]) -> str:
    """Returns the SHA-256 of the photos' byte sizes, which reveals a source that has changed."""
    return hashlib.sha256(",".join(str(photo.source.size(photo.path)) for photo in photos).encode()).hexdigest()


def take_up(output: Path, plan: Mapping[str, Any], splits: Mapping[str, Split]) -> None:
    """Begins a folder or continues one. Shards whose photos have changed in the source are written
    again.

    Raises InputError if it holds something else, or is complete and the photos have changed.
    """
    stored = next((output / file for file in (DATASET, PLAN) if (output / file).is_file()), None)
    if stored is not None:
        try:
            values = json.loads(stored.read_text(encoding="utf-8"))
            changed = [key for key, value in plan.items() if values.get(key) != value]
            if changed == [SIZES] and stored.name == PLAN:
                remove_changed(values[SIZES], plan[SIZES], splits)
                changed, stored = [], None
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            raise InputError(f"{stored} is damaged; delete the folder and prepare the data set again") from error
        if changed:
            shown = "; ".join(
                "the photos' files have other sizes" if key == SIZES else f"{key}: {values.get(key)} -> {plan[key]}" for key in changed
            )
            raise InputError(f"--output {output} holds a data set of other photos ({shown}); choose another folder, or delete it")
    elif {path.name for path in output.iterdir()} - {LOCK, *(path.name for path in leftovers(output))}:
        raise InputError(f"--output {output} is not empty and no preparation of this program; choose another folder")
    for leftover in (*leftovers(output), *(file for parts in splits.values() for file in leftovers(parts.folder, "photos-*"))):
        leftover.unlink()
    if stored is None:
        write_text(output / PLAN, json.dumps(plan, indent=1) + "\n")


def remove_changed(before: Mapping[str, Sequence[str]], now: Mapping[str, Sequence[str]], splits: Mapping[str, Split]) -> None:
    """Deletes the shards whose photos had other sizes when they were written."""
    for split, parts in splits.items():
        for file, old, new in zip(parts.files(), before[split], now[split], strict=True):
            if old != new and file.is_file():
                print(f"{file} is written again: its photos have changed in the source", flush=True)
                file.unlink()


def write_splits(splits: Mapping[str, Split], output: Path, threads: int) -> None:
    """Writes the missing shards and names. Raises InputError if the disk is too small or photos are
    broken.
    """
    work = [(parts, index) for parts in splits.values() for index in parts.unfinished()]
    photos = [photo for parts, index in work for photo in parts.part(index)]
    require_space(photos, output)
    for parts in splits.values():
        try:
            parts.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(f"{parts.folder} cannot be written ({error.strerror or error}); choose another --output") from error
        write_text(parts.folder / NAMES, parts.names())
    progress = Progress(0, len(photos))
    pool = ThreadPoolExecutor(threads)
    try:
        broken = [wrong for found in pool.map(lambda task: write_shard(task[0], task[1], progress), work) for wrong in found]
    finally:
        pool.shutdown(cancel_futures=True)
    if broken:
        more = f"; and {len(broken) - BROKEN_SHOWN} more" if len(broken) > BROKEN_SHOWN else ""
        raise InputError(
            f"{counted(len(broken), 'broken photo')}: {'; '.join(broken[:BROKEN_SHOWN])}{more}; mend the source and run it again"
        )


class BrokenPhotos(Exception):
    """Raised if a shard has photos that cannot be read, so it is not written."""


def write_shard(parts: Split, index: int, progress: Progress) -> list[str]:
    """Copies a shard's photos after decoding each once. Returns what is broken; if anything is,
    writes nothing.
    """
    broken: list[str] = []
    try:
        with new_shard(parts.folder, parts.files()[index].name, WRITER_OPTIONS) as put:
            for photo in parts.part(index):
                data = read_whole(photo, broken)
                if data is not None:
                    put(data)
                progress.add(1)
            if broken:
                raise BrokenPhotos
    except BrokenPhotos:
        pass
    return broken


def read_whole(photo: Photo, broken: list[str]) -> bytes | None:
    """Returns a photo's bytes if it can be decoded. Otherwise returns None and adds a line to
    `broken`.
    """
    try:
        data = photo.source.read(photo.path)
        decode_photo(io.BytesIO(data), photo.path)
    except InputError as error:
        broken.append(str(error).partition(";")[0])
        return None
    return data


def require_space(photos: Sequence[Photo], output: Path) -> None:
    """Prints the bytes needed and free, if the source tells sizes. Raises InputError if too few are
    free.
    """
    sizes = [photo.source.size(photo.path) for photo in photos]
    if not sizes or any(size is None for size in sizes):
        return
    needed, free = sum(size for size in sizes if size is not None), shutil.disk_usage(output).free
    print(f"{len(photos):,} photos to copy, {needed:,} bytes needed, {free:,} bytes free", flush=True)
    if needed > free:
        raise InputError(f"--output {output} needs {needed:,} bytes and its disk has {free:,} free; choose another folder")
