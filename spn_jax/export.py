"""Writes a model as one archive that runs with JAX alone: `python -m spn_jax.export --output FILE.zip [--checkpoint DIR] [--size H W ...]`.

Inside: a StableHLO program for each size, compiled for CPU, CUDA or TPU by whoever loads it; the weights, which are its arguments; and
manifest.json, which says what goes in and comes out.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from spn_jax.checkpoints.store import load_model
from spn_jax.errors import InputError, run_command
from spn_jax.filling.archive import archive, check_sizes
from spn_jax.pretrained.catalogue import DEFAULT, announce
from spn_jax.runtime.device import set_up
from spn_jax.runtime.files import check_writable, write_atomically


def main(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    if options.output.is_dir() or options.output.suffix != ".zip":
        raise InputError(f"--output {options.output} must be the name of a file that ends in .zip")
    announce(options.checkpoint)
    loaded = load_model(options.checkpoint)
    sizes = [tuple(size) for size in options.size or [[loaded.config.data.image_size] * 2]]
    check_sizes(sizes, loaded.config.model.stride)
    check_writable(options.output.parent)
    write_atomically(options.output, archive(loaded, sizes))
    print(f"written: {options.output}, {options.output.stat().st_size / 1e6:.1f} MB")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m spn_jax.export", description=__doc__)
    parser.add_argument(
        "--checkpoint",
        default=DEFAULT,
        help=f"a run's work directory (its newest checkpoint), one checkpoint or a model file; default: {DEFAULT}",
    )
    parser.add_argument("--output", required=True, type=Path, help="the archive, FILE.zip")
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        action="append",
        metavar=("H", "W"),
        help="height and width of a program's photos; several times for several programs, the trained size if left out",
    )
    return parser.parse_args(arguments)


def cli() -> None:
    """The console command `spn-export`."""
    set_up()
    run_command(main)


if __name__ == "__main__":
    cli()
