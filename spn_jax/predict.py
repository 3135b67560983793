"""Fills holes in photos: `python -m spn_jax.predict --image FILE_OR_DIR --mask FILE_OR_DIR --output
FILE_OR_DIR`.

The model of --checkpoint fills them. White in the mask is the hole; photos have any size, and what
is outside the hole comes back as it was. A folder of photos, which is searched through, goes with
one mask for all, or with a folder of masks, which lie and are called as their photos, or
NAME_mask001.png; both may be the same folder. `--samples N` writes N completions by a probabilistic
model, as NAME_0 ... NAME_(N-1). `--model FILE.onnx` in the place of --checkpoint fills with a
network of that file, ours or anybody's (`spn_jax.filling.onnx_contract`).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from spn_jax.errors import InputError, counted, run_command
from spn_jax.filling.holes import MASK_FROM
from spn_jax.filling.options import add_device, add_network, check_network, network_path
from spn_jax.filling.photos import FORMATS
from spn_jax.filling.windows import STRATEGIES


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)

    # After the options are read: importing JAX takes seconds.
    from spn_jax.filling.completion import check_samples
    from spn_jax.filling.folders import FillOptions, fill, fill_all, find_tasks, report
    from spn_jax.filling.inpainter import Inpainter
    from spn_jax.runtime.device import choose_device

    check_options(options)
    tasks, without_mask = find_tasks(options.image, options.mask, options.output)
    if options.skip_existing:
        found = len(tasks)
        tasks = [task for task in tasks if not task.is_done(1 if options.concat else options.samples)]
        print(f"{counted(found - len(tasks), 'result')} there already, {len(tasks):,} to do")
        if not tasks:
            return report([], without_mask)
    choose_device(options.device)
    inpainter = Inpainter.load(network_path(options))
    check_samples(options.samples, inpainter.config)
    fill_options = FillOptions(
        options.samples, options.seed, options.invert_mask, options.dilate, options.strategy, options.concat, options.mask_from
    )
    if options.image.is_file() and len(tasks) == 1 and not without_mask:
        return report([fill(tasks[0], inpainter, fill_options)], [])
    left_out, failures = fill_all(tasks, inpainter, fill_options)
    return report(left_out, [*without_mask, *failures])


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m spn_jax.predict", description=__doc__)
    add_network(parser)
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
    parser.add_argument("--invert-mask", action="store_true", help="black is the hole; with --mask-from alpha what is opaque")
    parser.add_argument(
        "--mask-from", choices=MASK_FROM, default="white", help="what marks the hole: white, or alpha: what is transparent in the mask"
    )
    parser.add_argument("--dilate", type=int, default=0, metavar="N", help="pixels by which the hole grows to all sides")
    parser.add_argument("--strategy", choices=STRATEGIES, default="auto", help="how photos of any size are shown to the network")
    parser.add_argument("--concat", action="store_true", help="write photo, hole and completions side by side, in 8 bits, as one picture")
    parser.add_argument("--skip-existing", action="store_true", help="leave out photos whose results are there already")
    add_device(parser)
    return parser.parse_args(arguments)


def check_options(options: argparse.Namespace) -> None:
    """Raises InputError for what can be known to be wrong before anything is read."""
    from spn_jax.filling.completion import SEEDS

    check_network(options)
    if options.samples < 1:
        raise InputError(f"--samples {options.samples} must be at least 1")
    if not 0 <= options.seed < SEEDS:
        raise InputError(f"--seed {options.seed} must lie between 0 and {SEEDS - 1}")
    if options.dilate < 0:
        raise InputError(f"--dilate {options.dilate} must be at least 0")


def cli() -> None:
    """The console command `spn-predict`."""
    parse(sys.argv[1:])  # --help and misspelt options are answered before JAX is imported
    from spn_jax.runtime.device import keep_compiled_programs

    # and not freed memory: a large photo needs several programs, each with its own sizes
    keep_compiled_programs()
    run_command(main)


if __name__ == "__main__":
    cli()
