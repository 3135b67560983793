"""Recognises the paper's data sets as published, and splits them into training and test.

The expected counts are the publishers'. A set that is short of photos is refused unless the caller
says that incomplete is fine.
"""

import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from spn_jax.data.images import IMAGE_SUFFIXES
from spn_jax.data.sources import Source
from spn_jax.errors import InputError, counted

SHOWN = 5  # number of missing photos that an error names


@dataclasses.dataclass(frozen=True, slots=True)  # there may be millions
class Photo:
    """One photo of a data set."""

    name: str  # its name in the prepared set
    source: Source
    path: str  # path in the source


@dataclasses.dataclass(frozen=True)
class Selection:
    """The chosen photos, in order, and notes about the choice."""

    train: Sequence[Photo]
    test: Sequence[Photo]
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of a selection."""

    counts: Mapping[str, int]  # the official counts, {what is counted: number}
    allow_incomplete: bool = False
    test: int | None = None  # number of photos to hold out from a folder


@dataclasses.dataclass(frozen=True)
class DataSet:
    """Rules to recognise and split one data set."""

    select: Callable[[Sequence[Source], Options], Selection]
    counts: Mapping[str, int]
    of_tfds: bool = False  # tensorflow-datasets has it


def files(sources: Sequence[Source], pattern: str, name: Callable[[re.Match[str]], str]) -> dict[str, Photo]:
    """Returns {name: photo} of all files whose path ends in a match of `pattern`. Raises InputError
    if two have the same name.
    """
    expression = re.compile(rf"(?:^|/){pattern}$", re.IGNORECASE)
    found: dict[str, Photo] = {}
    for source in sources:
        for path in source.names:
            if match := expression.search(path):
                photo = Photo(name(match), source, path)
                if (other := found.get(photo.name)) is not None:
                    raise InputError(
                        f"{photo.name} is there twice, {other.path} in {other.source.label} and {path} in {source.label}; pass one --source"
                    )
                found[photo.name] = photo
    return found


def text_lines(sources: Sequence[Source], name: str, advice: str) -> list[str]:
    """Returns the lines of the only file called `name`. Raises InputError, with the advice, if
    there is none.
    """
    places = [(source, path) for source in sources for path in source.names if PurePosixPath(path).name == name]
    if not places:
        raise InputError(f"{name} is not in {', '.join(source.label for source in sources)}; {advice}")
    source, path = places[0]
    try:
        return [line for line in source.read(path).decode().splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise InputError(f"{path} in {source.label} is not a text file; {advice}") from error


def take(wanted: Iterable[str], found: Mapping[str, Photo], what: str, options: Options, notes: list[str]) -> list[Photo]:
    """Returns the photos of these names. Missing ones raise an InputError that names them, or
    become a note if incomplete is allowed.
    """
    wanted = list(wanted)
    if missing := [name for name in wanted if name not in found]:
        shown = ", ".join(missing[:SHOWN]) + (", ..." if len(missing) > SHOWN else "")
        _incomplete(f"{len(missing):,} of {len(wanted):,} {what} are missing: {shown}", options, notes)
    return [found[name] for name in wanted if name in found]


def require_count(number: int, key: str, what: str, options: Options, notes: list[str]) -> None:
    """Raises InputError unless there are as many as `options.counts` says; adds a note instead if
    incomplete is allowed.
    """
    if number != options.counts[key]:
        _incomplete(f"there are {number:,} {what} instead of {options.counts[key]:,}", options, notes)


def _incomplete(text: str, options: Options, notes: list[str]) -> None:
    if not options.allow_incomplete:
        raise InputError(f"{text}; complete the download, or pass --allow-incomplete to go on with what is there")
    notes.append(f"incomplete: {text}")


def select_celeba(sources: Sequence[Source], options: Options) -> Selection:
    """Selects partition 0 for training and the first 12,000 of partition 2 for the test, by
    list_eval_partition.txt.
    """
    lines = text_lines(sources, "list_eval_partition.txt", "pass it with another --source; CelebA's page has it beside the photos")
    parts: dict[str, list[str]] = {"0": [], "1": [], "2": []}
    for line in lines:
        name, _, part = line.strip().rpartition(" ")
        if part not in parts or not name:
            raise InputError(f"list_eval_partition.txt has the line {line!r}; its lines are `000001.jpg 0`")
        parts[part].append(name.strip())
    notes: list[str] = []
    for part, key in {"0": "train", "1": "validation", "2": "test partition"}.items():
        require_count(len(parts[part]), key, f"entries of partition {part} in list_eval_partition.txt", options, notes)
    found = files(sources, r"(\d{6}\.jpg)", lambda match: match[1])
    train = take(parts["0"], found, "photos of the training partition", options, notes)
    test = take(parts["2"][: options.counts["test"]], found, "photos of the test set", options, notes)
    return Selection(train, test, tuple(notes))


def select_celebahq(sources: Sequence[Source], options: Options) -> Selection:
    """Holds out the last 2,800 of the 30,000 as the test; the paper's split is unpublished."""
    found = files(sources, r"0*(\d+)(\.(?:jpe?g|png))", lambda match: match[1] + match[2].lower())
    by_number = {int(name.partition(".")[0]): photo for name, photo in found.items()}
    if len(by_number) < len(found):
        raise InputError("some numbers are there as .jpg and as .png; pass a --source with one kind")
    numbered, notes = {str(number): photo for number, photo in by_number.items()}, list[str]()
    total, test = options.counts["all"], options.counts["test"]
    extra = [number for number in by_number if number >= total]
    if extra:
        raise InputError(
            f"{counted(len(extra), 'photo')} with numbers from {min(extra)} on, CelebA-HQ ends with {total - 1}; pass its folder alone"
        )
    train_photos = take(map(str, range(total - test)), numbered, "training photos", options, notes)
    return Selection(train_photos, take(map(str, range(total - test, total)), numbered, "test photos", options, notes), tuple(notes))


def select_places2(sources: Sequence[Source], options: Options) -> Selection:
    """Selects Places365-Standard's training list (or all training photos), and the first 12,000 of
    the validation set for the test.
    """
    notes: list[str] = []
    found = files(sources, r"data_(?:256|large)(?:_standard)?/(.+\.jpg)", lambda match: match[1])
    try:
        lines = text_lines(sources, "places365_train_standard.txt", "")
        names = [line.rpartition(" ")[0].strip().lstrip("/") for line in lines]
    except InputError:
        names = sorted(found)
        notes.append("places365_train_standard.txt was not among the sources: the training photos are in the order of their names")
    require_count(len(names), "train", "training photos", options, notes)
    train = take(names, found, "training photos", options, notes)
    validation = files(sources, r"(Places365_val_\d{8}\.jpg)", lambda match: match[1])
    test = [f"Places365_val_{number:08d}.jpg" for number in range(1, options.counts["test"] + 1)]
    return Selection(train, take(test, validation, "photos of the test set", options, notes), tuple(notes))


def select_paris(sources: Sequence[Source], options: Options) -> Selection:
    """Selects the folders paris_train_original and paris_eval_gt."""
    notes: list[str] = []
    suffixes = r"([^/]+\.(?:jpe?g|png))"
    train = files(sources, rf"paris_train_original/{suffixes}", lambda match: match[1])
    test = files(sources, rf"paris_eval_gt/{suffixes}", lambda match: match[1])
    require_count(len(train), "train", "photos in paris_train_original", options, notes)
    require_count(len(test), "test", "photos in paris_eval_gt", options, notes)
    return Selection([train[name] for name in sorted(train)], [test[name] for name in sorted(test)], tuple(notes))


def select_folder(sources: Sequence[Source], options: Options) -> Selection:
    """Splits any photos: by their `train` and `test` folders, or by a held-out share that hashes of
    the names choose.

    A photo's hash does not depend on the others, so few photos change sides when new ones are
    added.
    """
    suffixes = "|".join(re.escape(suffix) for suffix in IMAGE_SUFFIXES)
    found = files(sources, rf"((?!\.)[^/]*(?:{suffixes}))", lambda match: match.string.lstrip("/"))
    found = {name: photo for name, photo in found.items() if not any(part.startswith(".") for part in name.split("/"))}
    if not found:
        raise InputError(f"there is no photo in {', '.join(source.label for source in sources)}; looked for {' '.join(IMAGE_SUFFIXES)}")
    halves = {half: _inside(found, half) for half in ("train", "test")}
    if all(halves.values()) and options.test is None:
        left_out = len(found) - sum(map(len, halves.values()))
        notes = (f"left out: {counted(left_out, 'photo')} outside of train/ and test/",) if left_out else ()
        return Selection(halves["train"], halves["test"], notes)
    number = options.test if options.test is not None else max(1, len(found) // 10)
    if not 0 < number < len(found):
        raise InputError(f"--test {number} of {len(found)} photos leaves none for one of the halves; choose another number")
    by_hash = sorted(found, key=lambda name: hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest())
    held_out = set(by_hash[:number])
    train = [found[name] for name in sorted(found) if name not in held_out]
    notes = (f"held out by the hashes of their names: {counted(number, 'photo')}",)
    return Selection(train, [found[name] for name in sorted(held_out)], notes)


def _inside(found: Mapping[str, Photo], folder: str) -> list[Photo]:
    """Returns the photos below the outermost folder of this name, named by their path in it, with
    the folder's path in front if several folders have the name.
    """
    inside = {name: name.split("/").index(folder) for name in found if folder in name.split("/")[:-1]}
    outside = {name: name.split("/")[:at] for name, at in inside.items()}
    several = len({tuple(folders) for folders in outside.values()}) > 1
    return [
        dataclasses.replace(found[name], name="/".join([*(outside[name] if several else []), *name.split("/")[at + 1 :]]))
        for name, at in sorted(inside.items())
    ]


def select_tfds(train: Source, test: Source | None, options: Options) -> Selection:
    """Selects the splits train and test of a tensorflow-datasets data set. Without a test split
    some training photos are held out.
    """
    photos = [Photo(name, train, name) for name in train.names]
    note = "tensorflow-datasets keeps no file names, so the paper's test photos cannot be picked by name"
    if test is not None and options.test is None:
        return Selection(photos, [Photo(name, test, name) for name in test.names], (f"{note}: the whole test split is used",))
    number = options.test if options.test is not None else max(1, len(photos) // 10)
    if not 0 < number < len(photos):
        raise InputError(f"--test {number} of {len(photos)} photos leaves none for one of the halves; choose another number")
    return Selection(photos[:-number], photos[-number:], (f"{note}: the last {number:,} of the training split are held out",))


DATA_SETS = {
    "celeba": DataSet(select_celeba, {"train": 162_770, "validation": 19_867, "test partition": 19_962, "test": 12_000}, of_tfds=True),
    "celebahq": DataSet(select_celebahq, {"all": 30_000, "test": 2_800}),
    "places2": DataSet(select_places2, {"train": 1_803_460, "test": 12_000}),
    "paris-streetview": DataSet(select_paris, {"train": 14_900, "test": 100}),
    "folder": DataSet(select_folder, {}, of_tfds=True),
}
