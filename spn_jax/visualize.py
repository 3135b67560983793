"""Pictures of what a model does: `python -m spn_jax.visualize VIEW --checkpoint DIR --output
FILE.png [...]`.

Photos and masks are those of the checkpoint's config where no others are named. Every picture says
under it what it shows.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from spn_jax.drawing import figures
from spn_jax.errors import InputError, run_command
from spn_jax.runtime.device import set_up
from spn_jax.runtime.files import check_writable, write_atomically
from spn_jax.views import compare, curves, detect, diversity, failures, features, masks, priors, samples, tsne

VIEWS = {
    "priors": priors,
    "samples": samples,
    "features": features,
    "tsne": tsne,
    "curves": curves,
    "compare": compare,
    "detect": detect,
    "failures": failures,
    "diversity": diversity,
    "masks": masks,
}


def main(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    if options.output.suffix.lower() != ".png":
        raise InputError(f"--output {options.output} must end in .png")
    check_writable(options.output.parent)
    write_atomically(options.output, figures.png(options.draw(options)))
    print(f"written: {options.output}")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m spn_jax.visualize", description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(required=True, metavar="VIEW")
    for name, view in VIEWS.items():
        about = (view.__doc__ or "").strip()
        command = commands.add_parser(name, help=about, description=f"{about} {view.draw.__doc__}", formatter_class=raw)
        command.add_argument("--output", type=Path, required=True, metavar="FILE.png")
        command.set_defaults(draw=view.draw)
        view.add(command)
    return parser.parse_args(arguments)


def cli() -> None:
    """The console command `spn-visualize`."""
    set_up()
    run_command(main)


if __name__ == "__main__":
    cli()
