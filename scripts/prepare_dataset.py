"""Prepares data sets for `data.train_photos`, `data.test_photos` and `data.train_masks`.

python scripts/prepare_dataset.py celeba --source img_align_celeba.zip \\
    --source list_eval_partition.txt --output data/celeba
python scripts/prepare_dataset.py folder --source my_photos --output data/mine
python scripts/prepare_dataset.py open-scenes --source endless-sky-high-dpi_0.9.8-1_all.deb \\
    --output data/open_scenes
python scripts/prepare_dataset.py irregular-masks --source test_mask.zip --output data
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from spn_jax.data.mask_set import prepare_masks
from spn_jax.data.official import DATA_SETS, Options, Selection, select_tfds
from spn_jax.data.open_scenes import OPEN_SCENES, prepare_open_scenes
from spn_jax.data.prepare import prepare
from spn_jax.data.sources import Tfds, open_source, tfds_splits
from spn_jax.errors import InputError, run_command

MASKS = "irregular-masks"


def main(arguments: Sequence[str]) -> None:
    """Runs the command line. Raises InputError for wrong input."""
    options = parse(arguments)
    threads = options.threads or os.cpu_count() or 1
    of_tfds = [source for source in options.source if source.startswith("tfds:")]
    if of_tfds and len(options.source) > 1:
        raise InputError("--source tfds:NAME is a whole data set; leave the other --source out")
    if options.licence and options.name != OPEN_SCENES:
        raise InputError(f"--licence is for {OPEN_SCENES}; the photos of {options.name} come without a list of licences, leave it out")
    if options.name == MASKS:
        if of_tfds or options.test is not None or options.allow_incomplete:
            raise InputError(f"{MASKS} is read from its archive or folder, whole; --test, --allow-incomplete and tfds: do not apply")
        prepare_masks([open_source(source) for source in options.source], options.output, threads, options.invert_masks)
        return
    if options.name == OPEN_SCENES:
        if of_tfds or options.test is not None or options.allow_incomplete or options.invert_masks:
            raise InputError(f"{OPEN_SCENES} takes --source, --licence, --output and --threads; leave the other options out")
        prepare_open_scenes(options.source, options.licence, options.output, threads)
        return
    if options.invert_masks:
        raise InputError(f"--invert-masks is for {MASKS}, {options.name} has no masks; leave it out")
    if options.test is not None and options.name != "folder":
        raise InputError(f"--test is for `folder`: {options.name} has a published test set; leave it out")
    selection = of_tensorflow(options) if of_tfds else of_files(options)
    prepare(options.name, selection, options.source, options.output, threads)


def of_files(options: argparse.Namespace) -> Selection:
    """Selects the photos of folders and archives."""
    data_set = DATA_SETS[options.name]
    sources = [open_source(source) for source in options.source]
    return data_set.select(sources, Options(data_set.counts, options.allow_incomplete, options.test))


def of_tensorflow(options: argparse.Namespace) -> Selection:
    """Selects the photos of a tensorflow-datasets data set."""
    if not DATA_SETS[options.name].of_tfds:
        known = ", ".join(name for name, data_set in DATA_SETS.items() if data_set.of_tfds)
        raise InputError(f"{options.name} is not in tensorflow-datasets; `--source tfds:` is for {known}")
    name = options.source[0].removeprefix("tfds:")
    splits = tfds_splits(name, options.tfds_dir)
    if "train" not in splits:
        raise InputError(f"--source tfds:{name} has the splits {', '.join(splits)} and none called train; choose another data set")
    train, test = (Tfds(name, split, options.tfds_dir) if split in splits else None for split in ("train", "test"))
    assert train is not None
    return select_tfds(train, test, Options({}, test=options.test))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python scripts/prepare_dataset.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=[*DATA_SETS, OPEN_SCENES, MASKS])
    parser.add_argument(
        "--source", action="append", required=True, metavar="PATH|tfds:NAME", help="folder, .zip, .tar, .deb or file; repeatable"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--test", type=int, metavar="N", help="photos of a folder to hold out; default: every tenth")
    parser.add_argument("--allow-incomplete", action="store_true", help="go on without the photos that are missing, and say so")
    parser.add_argument(
        "--licence",
        action="append",
        default=[],
        metavar="NAME",
        help="take photos under it too, such as cc-by-sa; repeatable; open-scenes only",
    )
    parser.add_argument("--invert-masks", action="store_true", help="the masks' holes are black")
    parser.add_argument("--tfds-dir", metavar="DIR", help="where tensorflow-datasets has its data; default: its own")
    parser.add_argument("--threads", type=int, metavar="N", help="default: one a core")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_command(main)
