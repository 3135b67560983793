"""Measures speed and memory. Each command explains itself with --help.

`python scripts/benchmark.py aot | beside | evaluation | input | step | table ...` runs one of them.
`step`, `beside`, `aot` and `table` need no data and none of the packages that read data.
"""

import argparse
import importlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path

# makes the script run from a copy that is not installed
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from spn_jax.config import SCORING_KEYS, TRAINING_KEYS, Config  # noqa: E402
from spn_jax.errors import run_command  # noqa: E402
from spn_jax.settings import help_text  # noqa: E402

SETTING = re.compile(r"[a-z_0-9]+\.[a-z_0-9.]+=")  # such as train.batch_size=4
STEP = ("model.*", "data.image_size", "loss.*", "optimizer.*", "schedule.*", "train.*")
COMMANDS = {  # what they measure, and their settings
    "aot": ("the training step compiled for TPUs or GPUs that are not there: memory and collectives", STEP),
    "beside": ("ours and another program taking turns: the ratio of their times", STEP),
    "evaluation": ("shares of decoding, model and metrics", ("model.*", *SCORING_KEYS)),
    "input": ("photos/s of reading photos, masks and features, alone and beside the training step", TRAINING_KEYS),
    "step": ("seconds, memory and FLOP/s of forward pass and training step", STEP),
    "table": ("the measurements of benchmark_gpu.sh as one table", ()),
}


def main(arguments: Sequence[str]) -> None:
    """Runs the command line. Raises InputError for wrong input."""
    options = parse(arguments)
    print(options.run(options))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses the options of a command. Imports its module alone, since it needs JAX, and the
    packages of other commands may not be installed.
    """
    parser = argparse.ArgumentParser(prog="python scripts/benchmark.py", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    chosen = next((name for name in arguments if name in COMMANDS), None)
    for name, (measured, settings) in COMMANDS.items():
        part = commands.add_parser(name, help=measured, formatter_class=argparse.RawDescriptionHelpFormatter)
        if name == chosen:
            part.epilog = help_text(Config, *settings) if settings else None
            importlib.import_module(f"scripts.benchmark_{name}").add_arguments(part)
    # Settings may come anywhere: argparse would take them for values of an option that has several.
    options = parser.parse_args([argument for argument in arguments if not SETTING.match(argument)])
    options.overrides += [argument for argument in arguments if SETTING.match(argument)]
    return options


if __name__ == "__main__":
    parse(sys.argv[1:])  # --help and misspelt options are answered before JAX is set up
    from spn_jax.runtime.device import keep_memory, only_cpu

    if only_cpu():
        # memory is kept as in training; compiled programs are not, because compile time is measured
        keep_memory()
    run_command(main)
