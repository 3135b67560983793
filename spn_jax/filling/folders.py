"""Photos, masks and results as files: which belong together, in a folder too, and what becomes of them.

A folder of photos (not what lies in folders below it) goes with one mask for all, or with a folder of masks, which are called as their
photos or NAME_mask001.png; both may be the same folder.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from spn_jax.data.images import IMAGE_SUFFIXES
from spn_jax.drawing.figures import masked_input
from spn_jax.errors import InputError
from spn_jax.filling.inpainter import Inpainter
from spn_jax.filling.photos import (
    FORMATS,
    Photo,
    check_holds,
    check_suffix,
    encode_photo,
    is_lossy,
    lossless_suffixes,
    read_mask,
    read_photo,
    usual_suffix,
)
from spn_jax.filling.windows import Strategy
from spn_jax.runtime.files import check_writable, write_atomically
from spn_jax.runtime.progress import Progress

MASK_NAME = re.compile(r"(?P<photo>.+)_mask\d*")  # a mask beside its photo, as LaMa's programs take them


@dataclasses.dataclass(frozen=True)
class Task:
    """A photo, its mask, and where the result goes: a file, or a name in a folder whose suffix the photo's format decides."""

    photo: Path
    mask: Path
    output: Path
    suffix: str | None

    @property
    def photo_name(self) -> str:
        return f"--image {self.photo}"

    @property
    def mask_name(self) -> str:
        return f"--mask {self.mask}"


@dataclasses.dataclass(frozen=True)
class Settings:
    """How photos are filled; the options of `python -m spn_jax.predict` explain them."""

    samples: int = 1
    seed: int = 0
    invert_mask: bool = False
    dilate: int = 0
    strategy: Strategy = "auto"
    concat: bool = False


def find_tasks(image: Path, mask: Path, output: Path) -> tuple[list[Task], list[str]]:
    """What there is to do, and a sentence for each photo without a mask.

    Raises:
        InputError: nothing there, or results that would replace each other or what is read.
    """
    for name, path in ("--image", image), ("--mask", mask):
        if not path.exists():
            raise InputError(f"{name} {path} does not exist; pass an image or a folder of them")
    photos = image_files(image)
    masks = image_files(mask)
    if image.is_dir() and mask.is_dir() and image.samefile(mask):
        photos, masks = apart(photos)
    if not photos:
        raise InputError(f"--image {image} holds no photo; looked in it for {' '.join(IMAGE_SUFFIXES)}")
    pairs = {photo: masks if mask.is_file() else masks_of(photo, masks) for photo in photos}
    found = [(photo, one, name) for photo, ours in pairs.items() for one, name in named(photo, ours)]
    if not found:
        raise InputError(f"--mask {mask} holds no mask for {image}; call it as the photo, or NAME_mask001.png for NAME.jpg")
    is_file = image.is_file() and len(found) == 1 and bool(output.suffix) and not output.is_dir()
    if is_file:
        check_suffix(output.suffix, f"--output {output}")
        tasks = [Task(photo, one, output.with_suffix(""), output.suffix) for photo, one, _ in found]
    else:
        check_folder(output, image, mask)
        tasks = [Task(photo, one, output / name, None) for photo, one, name in found]
    check_apart(tasks)
    return tasks, [f"--image {photo} has no mask in {mask}" for photo, ours in pairs.items() if not ours]


def image_files(path: Path) -> list[Path]:
    """The file itself, or the images in the folder, by name; hidden ones are left out."""
    if not path.is_dir():
        return [path]
    return sorted(
        file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".") and file.is_file()
    )


def apart(files: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Photos and masks of one folder: masks are called NAME_mask or NAME_mask001 after a photo NAME."""
    stems = {file.stem for file in files}
    masks = [file for file in files if (match := MASK_NAME.fullmatch(file.stem)) and match["photo"] in stems]
    return [file for file in files if file not in masks], masks


def masks_of(photo: Path, masks: Sequence[Path]) -> list[Path]:
    """The masks that are called as the photo, or else after it."""
    same = [mask for mask in masks if mask.stem == photo.stem]
    return same or [mask for mask in masks if (match := MASK_NAME.fullmatch(mask.stem)) and match["photo"] == photo.stem]


def named(photo: Path, masks: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """Each mask of a photo with the name of the result: the photo's, or the mask's where there are several."""
    for mask in masks:
        yield mask, photo.stem if len(masks) == 1 else mask.stem


def check_folder(output: Path, image: Path, mask: Path) -> None:
    """Raises InputError unless results can go to this folder."""
    if output.suffix.lower() in FORMATS and not output.is_dir():
        raise InputError(f"--output {output} is the name of one file, and there are several results; pass a folder")
    for name, path in ("--image", image), ("--mask", mask):
        if path.is_dir() and output.exists() and output.samefile(path):
            raise InputError(f"--output {output} is the folder of {name}, whose files could be replaced; choose another")


def check_apart(tasks: Sequence[Task]) -> None:
    """Raises InputError if two results would have one name."""
    counts = Counter(task.output for task in tasks)
    for output, count in counts.items():
        if count > 1:
            these = ", ".join(sorted({task.photo.name for task in tasks if task.output == output}))
            raise InputError(f"{count} results would be called {output.name} (of {these}); give photos and masks names of their own")


def fill_all(tasks: Sequence[Task], inpainter: Inpainter, settings: Settings) -> list[str]:
    """Does every task that can be done; a sentence for each of the others."""
    failures, progress = [], Progress(0, len(tasks))
    for task in tasks:
        try:
            fill(task, inpainter, settings)
        except InputError as error:
            failures.append(str(error))
        progress.add(1)
    return failures


def fill(task: Task, inpainter: Inpainter, settings: Settings) -> None:
    """Reads, fills and writes. InputError: one of these failed; files are whole or not there."""
    photo = read_photo(task.photo, task.photo_name)
    mask = read_mask(task.mask, task.mask_name, photo.size, settings.invert_mask, settings.dilate)
    like = side_by_side(photo, mask, []) if settings.concat else photo
    suffix = task.suffix or usual_suffix(like)
    outputs = output_files(task, suffix, 1 if settings.concat else settings.samples)
    check_holds(like, suffix, f"--output {outputs[0]}")
    check_writable(outputs[0].parent)
    if not mask.any():
        print(f"note: {without_hole(task, settings.invert_mask)}")
    completions = inpainter.fill(photo, mask, settings.samples, settings.seed, settings.strategy)
    results = [side_by_side(photo, mask, list(completions))] if settings.concat else completions
    for output, result in zip(outputs, results, strict=True):
        write_atomically(output, encode_photo(result, suffix))
        print(f"written: {output}", flush=True)
    if is_lossy(suffix):
        print(
            f"note: JPEG changes every pixel a little, those outside the hole too; an --output that ends in {lossless_suffixes()} does not"
        )


def without_hole(task: Task, inverted: bool) -> str:
    colour, hint = ("white", "white is the hole; --invert-mask: black")
    if inverted:
        colour, hint = ("black", "black is the hole with --invert-mask, without it white is")
    return f"no pixel of {task.mask_name} is {colour} ({hint}; what is transparent is no hole): the photo is written as it is"


def output_files(task: Task, suffix: str, samples: int) -> list[Path]:
    """A file a completion; InputError if one could not be written, or would replace what is read."""
    names = [task.output.name] if samples == 1 else [f"{task.output.name}_{i}" for i in range(samples)]
    files = [task.output.with_name(name + suffix) for name in names]
    for file in files:
        if file.is_dir():
            raise InputError(f"--output {file} is a folder; choose the name of a file")
        if file.exists() and any(file.samefile(path) for path in (task.photo, task.mask)):
            raise InputError(f"--output {file} would replace what is read; choose another name")
    return files


def side_by_side(photo: Photo, mask: np.ndarray, completions: Sequence[Photo]) -> Photo:
    """Photo, photo with white holes and completions as one picture in 8 bits."""
    pictures = [photo.rgb(), masked_input(photo.rgb(), mask), *(completion.rgb() for completion in completions)]
    return Photo(np.concatenate(pictures, axis=1), format=photo.format, icc_profile=None if photo.grey else photo.icc_profile)
