"""Scores completions of held-out photos on the same pairs of photo and mask.

They are those of checkpoints, of any program's results and of classical methods.

python -m spn_jax.evaluate pairs --photos LIST --masks SET --output FILE.tsv
python -m spn_jax.evaluate run --checkpoint DIR --results NAME=DIR --method mean \\
    --pairs FILE.tsv --output DIR
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from spn_jax.config import MASK_KEYS, SCORING_KEYS, Config
from spn_jax.data.masks import DRAWN
from spn_jax.errors import InputError, run_command
from spn_jax.evaluation import paper
from spn_jax.evaluation.draw import draw_pair_list
from spn_jax.evaluation.options import COMPARED, METHODS
from spn_jax.evaluation.pairs import PROTOCOLS, write_pair_list
from spn_jax.runtime.files import check_writable, write_atomically
from spn_jax.settings import help_text


def main(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    options.command(options)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m spn_jax.evaluate", description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_run(commands.add_parser("run", help="a table of scores by hole ratio", description=run.__doc__, formatter_class=raw))
    _add_pairs(commands.add_parser("pairs", help="write which mask each photo gets", description=pairs.__doc__, formatter_class=raw))
    _add_profile(commands.add_parser("profile", help="parameters, operations and seconds of a model", description=profile.__doc__))
    return parser.parse_args(arguments)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=run)
    parser.epilog = help_text(Config, *SCORING_KEYS)
    add = parser.add_argument
    add("--checkpoint", action="append", default=[], metavar="[NAME=]DIR", help="a run's work directory or one checkpoint; repeatable")
    add("--results", action="append", default=[], metavar="NAME=DIR", help="a folder of completed photos, by any program; repeatable")
    add("--method", action="append", default=[], metavar="NAME", help=f"repeatable: {METHODS}")
    add("--config", type=Path, help="where data.* and eval.* come from; the first checkpoint's config if not given")
    add("--photos", help="test photos: data.test_photos")
    add("--masks", help="masks: data.test_masks")
    add("--pairs", metavar="FILE", help=f"each photo's mask: a file of `evaluate pairs`, a released .npy, or {', '.join(PROTOCOLS)}")
    add("--image-size", type=int, metavar="P", help="photos are brought to P x P pixels: data.image_size")
    add("--seed", type=int, help="of samples, and of the pairs without --pairs: eval.seed")
    add("--samples", type=int, metavar="N", help="completions of a photo (probabilistic), of which the best counts: eval.samples")
    add("--batch-size", type=int, help="photos a call over all devices: eval.batch_size")
    add("--bins", choices=("paper", "tenths"), default="paper", help="columns: the paper's, or six of ten percent")
    add("--paper", choices=(*paper.DATA_SETS, "none"), help="quote the paper's figures for a data set; that of --pairs if not given")
    add("--inception", metavar="FILE.npz", help="weights for FID (with pytorch-fid's resizing and clean-fid's), KID, P-IDS and U-IDS")
    add("--lpips-alex", metavar="FILE.npz", help="weights for LPIPS (AlexNet)")
    add("--lpips-vgg", metavar="FILE.npz", help="weights for LPIPS (VGG16)")
    add("--raw-results", action="store_true", help="score --results as they are, also where the photo was known")
    add("--output", type=Path, help="folder for results.md, .tsv, .tex, .json and the pictures; an interrupted evaluation continues in it")
    add("--save-composites", action="store_true", help="write every completed photo to OUTPUT/composites/NAME")
    add(
        "--grid",
        type=int,
        metavar="N",
        help=f"draw N photos, evenly chosen, into OUTPUT/grid.png; {COMPARED} where several methods are compared",
    )
    add("overrides", nargs="*", metavar="section.key=value", help="other settings of data and eval, see below")


def _add_pairs(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=pairs)
    parser.epilog = help_text(Config, *MASK_KEYS)
    add = parser.add_argument
    add("--photos", required=True, help="folder, .flist (whose files need not be there) or ArrayRecord")
    add("--masks", required=True, help=f"folder, .flist, .zip, or one of the words {', '.join(DRAWN)}: drawn masks")
    add("--seed", type=int, default=0)
    add("--per-bin", action="store_true", help="as many photos for each ten-percent bin of hole ratio as for any other")
    add("--output", type=Path, required=True, metavar="FILE.tsv", help="packed if it ends in .tsv.gz")
    add("overrides", nargs="*", metavar="data.key=value", help="for instance data.invert_masks=true, see below")


def _add_profile(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=profile)
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="DIR", help="a run's work directory (its newest checkpoint) or one checkpoint")
    add("--batch-size", type=int, default=1, help="photos a call; times are given for one of them")
    add("--samples", type=int, default=1, metavar="N", help="completions of each photo (probabilistic models only)")
    add("--precision", choices=("highest", "default"), default="highest", help="of matrix products; evaluations use the highest")
    add("--repeats", type=int, default=20, metavar="N", help="calls that are timed")
    add("--output", type=Path, metavar="FILE.json", help="all numbers as JSON")


def run(options: argparse.Namespace) -> None:
    """Scores checkpoints, folders of results and classical methods on the same masked photos."""
    # not before the options are read: JAX takes seconds
    from spn_jax.evaluation.run import evaluate
    from spn_jax.evaluation.session import Request

    evaluate(Request.of(options))


def profile(options: argparse.Namespace) -> None:
    """Measures a model (the paper's Table 6): parameters, operations, seconds a photo."""
    if options.output is not None:
        check_writable(options.output.parent)
    from spn_jax.checkpoints.store import load_model
    from spn_jax.evaluation import cost

    measured = cost.measure(
        load_model(options.checkpoint),
        batch_size=options.batch_size,
        samples=options.samples,
        precision=options.precision,
        repeats=options.repeats,
    )
    print(cost.report(measured), flush=True)
    if options.output is not None:
        write_atomically(options.output, cost.as_json(measured))
        print(f"written to {options.output}")


def pairs(options: argparse.Namespace) -> None:
    """Writes a pair list: one mask a photo, none twice before all have come once."""
    if not options.output.name.endswith((".tsv", ".tsv.gz")):
        raise InputError(f"--output {options.output} must end in .tsv or .tsv.gz")
    if options.seed < 0:
        raise InputError(f"--seed {options.seed} must not be negative")
    drawn = draw_pair_list(options.photos, options.masks, seed=options.seed, per_bin=options.per_bin, overrides=options.overrides)
    write_pair_list(options.output, drawn)
    print(f"written: {options.output}: {drawn.title}")


def cli() -> None:
    """The console command `spn-evaluate`."""
    parse(sys.argv[1:])  # --help and misspelt options are answered before JAX is imported
    from spn_jax.runtime.device import set_up

    set_up()
    run_command(main)


if __name__ == "__main__":
    cli()
