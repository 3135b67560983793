"""Fills holes in photos: `python -m spn_jax.predict --checkpoint DIR --image FILE_OR_DIR --mask FILE_OR_DIR --output FILE_OR_DIR`.

White in the mask is the hole; photos have any size, and what is outside the hole comes back as it was. A folder of photos (not what lies
in folders below it) goes with one mask for all, or with a folder of masks, which are called as their photos or NAME_mask001.png;
both may be the same folder. `--samples N` writes N completions by a probabilistic model, as NAME_0 ... NAME_(N-1).
"""

import argparse
import dataclasses
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from spn_jax.data.images import IMAGE_SUFFIXES
from spn_jax.drawing.figures import masked_input
from spn_jax.errors import InputError, run_command
from spn_jax.filling.completion import SEEDS, check_samples
from spn_jax.filling.inpainter import STRATEGIES, Inpainter
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
from spn_jax.runtime.device import choose_device, keep_compiled_programs
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


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    check_options(options)
    tasks, without_mask = find_tasks(options.image, options.mask, options.output)
    choose_device(options.device)
    inpainter = Inpainter.load(options.checkpoint)
    check_samples(options.samples, inpainter.config)
    if options.image.is_file() and len(tasks) == 1:
        run(tasks[0], inpainter, options)
        return 0

    failures, progress = [*without_mask], Progress(0, len(tasks))
    for task in tasks:
        try:
            run(task, inpainter, options)
        except InputError as error:
            failures.append(str(error))
        progress.add(1)
    if failures:
        sys.stdout.flush()
        print(f"error: {len(failures)} photos were not filled:", *failures, sep="\n  ", file=sys.stderr)
    return 1 if failures else 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m spn_jax.predict", description=__doc__)
    parser.add_argument("--checkpoint", required=True, help="a run's work directory (its newest checkpoint) or one checkpoint")
    parser.add_argument("--image", required=True, type=Path, help="the photo, or a folder of photos")
    parser.add_argument("--mask", required=True, type=Path, help="an image of the photo's size, white is the hole; or a folder of them")
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        help=f"a file, whose suffix tells the format ({', '.join(FORMATS)}), or a folder, where the photo's name and format are kept "
        "(JPEG photos become .png, because JPEG cannot keep known pixels)",
    )
    parser.add_argument("--samples", type=int, default=1, metavar="N", help="different completions (probabilistic models only)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise that makes them different")
    parser.add_argument("--invert-mask", action="store_true", help="black is the hole")
    parser.add_argument("--dilate", type=int, default=0, metavar="N", help="pixels by which the hole grows to all sides")
    parser.add_argument("--strategy", choices=STRATEGIES, default="auto", help="how photos of any size are shown to the network")
    parser.add_argument("--concat", action="store_true", help="write photo, hole and completions side by side, in 8 bits, as one picture")
    parser.add_argument("--device", help="cpu, gpu, tpu, ...: where it is computed; JAX's first choice if left out")
    return parser.parse_args(arguments)


def check_options(options: argparse.Namespace) -> None:
    """Raises InputError for what can be known to be wrong before anything is read."""
    if options.samples < 1:
        raise InputError(f"--samples {options.samples} must be at least 1")
    if not 0 <= options.seed < SEEDS:
        raise InputError(f"--seed {options.seed} must lie between 0 and {SEEDS - 1}")
    if options.dilate < 0:
        raise InputError(f"--dilate {options.dilate} must be at least 0")


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


def run(task: Task, inpainter: Inpainter, options: argparse.Namespace) -> None:
    """Reads, fills and writes. InputError: one of these failed; files are whole or not there."""
    photo = read_photo(task.photo, task.photo_name)
    mask = read_mask(task.mask, task.mask_name, photo.size, options.invert_mask, options.dilate)
    like = side_by_side(photo, mask, []) if options.concat else photo
    suffix = task.suffix or usual_suffix(like)
    outputs = output_files(task, suffix, 1 if options.concat else options.samples)
    check_holds(like, suffix, f"--output {outputs[0]}")
    check_writable(outputs[0].parent)
    if not mask.any():
        print(f"note: {without_hole(task, options.invert_mask)}")
    completions = inpainter.fill(photo, mask, options.samples, options.seed, options.strategy)
    results = [side_by_side(photo, mask, list(completions))] if options.concat else completions
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


if __name__ == "__main__":
    keep_compiled_programs()  # and not freed memory: a large photo needs several programs, each with its own sizes
    run_command(main)
