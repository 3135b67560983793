"""Pictures of what a model does: `python -m spn_jax.visualize VIEW --checkpoint DIR --output
FILE.png [...]`.

Photos and masks are those of the checkpoint's config where no others are named. Every picture says
under it what it shows.
"""

import argparse
import ast
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from spn_jax.drawing import figures
from spn_jax.errors import InputError, run_command
from spn_jax.runtime.files import check_writable, write_atomically

# Modules of `spn_jax.views`.
VIEWS = ("priors", "samples", "features", "tsne", "curves", "compare", "detect", "failures", "diversity", "masks")


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
    for name in VIEWS:
        command = commands.add_parser(name, help=about(name), formatter_class=raw)
        if name in arguments[:1]:  # the one that was asked for: most import JAX, which takes seconds
            view = importlib.import_module(f"spn_jax.views.{name}")
            command.description = f"{about(name)} {view.draw.__doc__}"
            command.add_argument("--output", type=Path, required=True, metavar="FILE.png")
            command.set_defaults(draw=view.draw)
            view.add(command)
    return parser.parse_args(arguments)


def about(view: str) -> str:
    """What a view shows: its module's first line, read without importing it."""
    source = (Path(__file__).parent / "views" / f"{view}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").strip()


def cli() -> None:
    """The console command `spn-visualize`."""
    parse(sys.argv[1:])  # --help and misspelt options are answered before JAX is set up
    from spn_jax.runtime.device import set_up

    set_up()
    run_command(main)


if __name__ == "__main__":
    cli()
