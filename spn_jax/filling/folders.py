"""Fills files and folders of photos: matches photos with masks, and writes the results.

A folder of photos is searched recursively. It goes with one mask for all, or with a folder of
masks, which have their photo's relative path or are called NAME_mask001.png. Both may be the same
folder.
"""

import dataclasses
import re
import sys
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from spn_jax.data.images import IMAGE_SUFFIXES, files_below
from spn_jax.drawing.figures import masked_input
from spn_jax.errors import InputError, counted, enumerated
from spn_jax.filling.holes import MaskFrom
from spn_jax.filling.inpainter import Inpainter
from spn_jax.filling.metadata import MALFORMED_EXIF
from spn_jax.filling.photos import (
    FORMATS,
    PHOTO_SUFFIXES,
    Photo,
    check_holds,
    check_suffix,
    encode_photo,
    examine_mask,
    is_lossy,
    lossless_suffixes,
    read_photo,
    usual_suffix,
)
from spn_jax.filling.windows import Strategy
from spn_jax.runtime.files import check_writable, is_disk_full, write_atomically
from spn_jax.runtime.memory import out_of_memory_in_words
from spn_jax.runtime.progress import Progress

# a mask beside its photo, as in LaMa's programs
MASK_NAME = re.compile(r"(?P<photo>.+)_mask\d*")


@dataclasses.dataclass(frozen=True)
class Task:
    """A photo, its mask, and where the result goes: a file, or a name in a folder that gets the
    suffix of the photo's format.
    """

    photo: Path
    mask: Path
    output: Path
    suffix: str | None

    def is_done(self, samples: int) -> bool:
        """Returns whether every result has a file, of whatever format."""
        suffixes = [self.suffix] if self.suffix else FORMATS
        return all(any(self.output.with_name(name + suffix).is_file() for suffix in suffixes) for name in self.names(samples))

    def names(self, samples: int) -> list[str]:
        """Returns the names of its results, without suffix."""
        return [self.output.name] if samples == 1 else [f"{self.output.name}_{i}" for i in range(samples)]

    @property
    def photo_name(self) -> str:
        return f"--image {self.photo}"

    @property
    def mask_name(self) -> str:
        return f"--mask {self.mask}"


@dataclasses.dataclass(frozen=True)
class FillOptions:
    """How photos are filled; the options of `python -m spn_jax.predict` explain them."""

    samples: int = 1
    seed: int = 0
    invert_mask: bool = False
    dilate: int = 0
    strategy: Strategy = "auto"
    concat: bool = False
    mask_from: MaskFrom = "white"


def report(left_out: Sequence[Sequence[str]], failures: Sequence[str]) -> int:
    """Prints what was not kept of the photos, and which ones were not filled. Returns the exit
    status.
    """
    counts = Counter(name for names in left_out for name in names)
    if counts:
        names = [name if len(left_out) == 1 else f"{name} ({counted(count, 'photo')})" for name, count in counts.items()]
        reason = "" if set(counts) == {MALFORMED_EXIF} else ", which may show what was in the hole"
        print(f"note: left out {enumerated(names)}{reason}")
    if failures:
        sys.stdout.flush()
        print(f"error: {counted(len(failures), 'photo')} could not be filled:", *failures, sep="\n  ", file=sys.stderr)
    return 1 if failures else 0


def find_tasks(image: Path, mask: Path, output: Path) -> tuple[list[Task], list[str]]:
    """Returns the tasks, and a sentence for each photo without a mask.

    Raises:
        InputError: nothing is there, or results would replace each other or an input.
    """
    for name, path in ("--image", image), ("--mask", mask):
        check_exists(path, name)
    photos = image_files(image, [mask, output])
    masks = image_files(mask, [image, output])
    if image.is_dir() and mask.is_dir() and image.samefile(mask):
        photos, masks = apart(photos)
    if not photos:
        raise InputError(f"--image {image} contains no photo; looked in it for {' '.join(PHOTO_SUFFIXES)}")
    pairs = [(photo, [mask]) for photo in photos] if mask.is_file() else matched(photos, masks)
    found = [(photo.file, one, place) for photo, ours in pairs for one, place in named(photo, ours)]
    if not found:
        matching = f"{image}" if image.is_file() else f"a photo in {image}"
        raise InputError(f"no mask in {mask} matches {matching}; name it photo.png or photo_mask001.png for photo.jpg")
    if image.is_file() and len(found) == 1 and bool(output.suffix) and not output.is_dir():
        check_suffix(output.suffix, f"--output {output}")
        tasks = [Task(photo, one, output.with_suffix(""), output.suffix) for photo, one, _ in found]
    else:
        check_folder(output, image, mask)
        tasks = [Task(photo, one, output / place, None) for photo, one, place in found]
    check_apart(tasks)
    say_what_is_left_out(image, [mask, output])
    return tasks, [f"--image {photo.file}: no mask in {mask} matches it" for photo, ours in pairs if not ours]


def check_exists(path: Path, name: str) -> None:
    """Raises InputError unless there is a file or a folder; `name` is the option that named it."""
    if path.exists():
        return
    if path.is_symlink():
        raise InputError(f"{name} {path} is a link that leads to nothing; pass an image or a folder of them")
    raise InputError(f"{name} {path} does not exist; pass an image or a folder of them")


class Found(NamedTuple):
    """An image file, and its path in the folder that was searched, without suffix."""

    relative: Path
    file: Path


def image_files(path: Path, others: Sequence[Path]) -> list[Found]:
    """Returns the file itself, or the images in the folder and below, in order.

    Hidden files are left out, and files in any of the `others` that is a folder below this one.
    """
    if not path.is_dir():
        return [Found(Path(path.stem), path)]
    files = sorted(file for file in seen_below(path, others) if file.suffix.lower() in PHOTO_SUFFIXES)
    return [Found(file.relative_to(path).with_name(file.stem), file) for file in files]


def seen_below(folder: Path, others: Sequence[Path]) -> Iterator[Path]:
    """Yields the files in a folder and below, except those in the `others`."""
    whole = folder.resolve()
    apart_from = [other.resolve() for other in others if other.resolve().is_relative_to(whole) and other.resolve() != whole]
    for file in files_below(folder):
        if not apart_from or not any(file.resolve().is_relative_to(other) for other in apart_from):
            yield file


def say_what_is_left_out(image: Path, others: Sequence[Path]) -> None:
    """Prints which images of a folder have formats that training reads but filling does not."""
    if not image.is_dir():
        return
    suffixes = Counter(file.suffix.lower() for file in seen_below(image, others))
    left_out = {suffix: suffixes[suffix] for suffix in IMAGE_SUFFIXES if suffix not in PHOTO_SUFFIXES and suffix in suffixes}
    if left_out:
        print(f"note: left out {counted(sum(left_out.values()), 'file')} of other formats ({' '.join(left_out)}); convert them to .png")


def apart(files: Sequence[Found]) -> tuple[list[Found], list[Found]]:
    """Separates the photos and masks of one folder. A mask of photo NAME is called NAME_mask or
    NAME_mask001.
    """
    places = {file.relative for file in files}
    photos: list[Found] = []
    masks: list[Found] = []
    for file in files:
        (masks if photo_of_mask(file.relative) in places else photos).append(file)
    return photos, masks


def photo_of_mask(relative: Path) -> Path | None:
    """Returns the relative path of the photo that a mask is named after; None if the name is not
    that of a mask.
    """
    match = MASK_NAME.fullmatch(relative.name)
    return None if match is None else relative.with_name(match["photo"])


def matched(photos: Sequence[Found], masks: Sequence[Found]) -> list[tuple[Found, list[Path]]]:
    """Returns each photo with its masks: those of the same relative path, or else those named
    after it.
    """
    same, after = defaultdict(list), defaultdict(list)
    for relative, file in masks:
        same[relative].append(file)
        after[photo_of_mask(relative)].append(file)
    return [(photo, same.get(photo.relative) or after.get(photo.relative) or []) for photo in photos]


def named(photo: Found, masks: Sequence[Path]) -> Iterator[tuple[Path, Path]]:
    """Yields each mask of a photo with the relative path of the result, which has the photo's name,
    or the mask's if there are several.
    """
    for mask in masks:
        yield mask, photo.relative if len(masks) == 1 else photo.relative.with_name(mask.stem)


def check_folder(output: Path, image: Path, mask: Path) -> None:
    """Raises InputError unless results can be written to this folder."""
    if output.suffix.lower() in FORMATS and not output.is_dir():
        raise InputError(f"--output {output} names one file, and there are several results; pass a folder")
    for name, path in ("--image", image), ("--mask", mask):
        if path.is_dir() and output.exists() and output.samefile(path):
            raise InputError(f"--output {output} is the folder of {name}, whose files could be replaced; choose another")


def check_apart(tasks: Sequence[Task]) -> None:
    """Raises InputError if two results would have one name."""
    of_output = defaultdict(list)
    for task in tasks:
        of_output[task.output].append(task.photo.name)
    for output, photos in of_output.items():
        if len(photos) > 1:
            both = "both" if len(photos) == 2 else "all"
            raise InputError(f"{enumerated(sorted(photos))} would {both} be saved as {output.name}; rename all but one")


def fill(task: Task, inpainter: Inpainter, options: FillOptions) -> tuple[str, ...]:
    """Reads, fills and writes a photo. Returns the names of what could not be kept of it.

    Raises:
        InputError: one of these failed. Files are either complete or absent.
    """
    with out_of_memory_in_words(task.photo_name):
        photo = read_photo(task.photo, task.photo_name)
        mask, notes = examine_mask(task.mask, task.mask_name, photo.size, options.invert_mask, options.dilate, options.mask_from)
        like = side_by_side(photo, mask, []) if options.concat else photo
        suffix = task.suffix or usual_suffix(like)
        outputs = output_files(task, suffix, 1 if options.concat else options.samples)
        check_holds(like, suffix, f"--output {outputs[0]}")
        check_writable(outputs[0].parent)
        for note in notes:
            print(f"note: {note}")
        completions = inpainter.fill(photo, mask, options.samples, options.seed, options.strategy, Passes())
        results = [side_by_side(photo, mask, list(completions))] if options.concat else completions
        for output, result in zip(outputs, results, strict=True):
            write_atomically(output, encode_photo(result, suffix))
            print(f"written: {output}", flush=True)
    if is_lossy(suffix):
        print(f"note: JPEG is lossy: pixels outside the hole change slightly as well. Use {lossless_suffixes()} to keep them exact")
    return photo.left_out


def fill_all(tasks: Sequence[Task], inpainter: Inpainter, options: FillOptions) -> tuple[list[tuple[str, ...]], list[str]]:
    """Fills the photos one by one. Returns what could not be kept of each filled one, and a
    sentence for each failure.
    """
    left_out, failures, progress = [], [], Progress(0, len(tasks))
    for number, task in enumerate(tasks, 1):
        try:
            left_out.append(fill(task, inpainter, options))
        except InputError as error:
            failures.append(str(error))
            if is_disk_full(error):  # the others would be computed for nothing
                failures += [f"{other.photo_name}: not begun, because the disk is full" for other in tasks[number:]]
                break
        except Exception as error:  # an unexpected failure of one photo must not stop the others
            traceback.print_exc()
            failures.append(f"{task.photo_name}: the program failed ({type(error).__name__}: {error}); please report the lines above")
        progress.add(1)
    return left_out, failures


class Passes:
    """Prints the progress of one photo if it takes longer than the time between two lines."""

    def __init__(self) -> None:
        self._progress = Progress(0, 1)

    def __call__(self, done: int, total: int) -> None:
        if not done:
            self._progress = Progress(0, total, unit="passes")
        else:
            self._progress.add(done - self._progress.done)


def output_files(task: Task, suffix: str, samples: int) -> list[Path]:
    """Returns a file for each completion. Raises InputError if one could not be written, or would
    replace an input.
    """
    files = [task.output.with_name(name + suffix) for name in task.names(samples)]
    for file in files:
        if file.is_dir():
            raise InputError(f"--output {file} is a folder; choose the name of a file")
        if file.exists() and any(file.samefile(path) for path in (task.photo, task.mask)):
            raise InputError(f"--output {file} would overwrite an input file; choose another name")
    return files


def side_by_side(photo: Photo, mask: np.ndarray, completions: Sequence[Photo]) -> Photo:
    """Returns photo, photo with white holes and completions side by side as one picture in 8
    bits.
    """
    pictures = [photo.rgb(), masked_input(photo.rgb(), mask), *(completion.rgb() for completion in completions)]
    return Photo(np.concatenate(pictures, axis=1), format=photo.format, icc_profile=None if photo.grey else photo.icc_profile)
