"""How fast it is: `python scripts/benchmark.py aot | beside | evaluation | input | step | table ...`; --help explains each.

`step`, `beside`, `aot` and `table` need no data and none of the packages that read data.
"""

import argparse
import importlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs from a copy that is not installed

from spn_jax.config import SCORING, TRAINING, Config  # noqa: E402
from spn_jax.errors import run_command  # noqa: E402
from spn_jax.runtime.device import keep_memory, only_cpu  # noqa: E402
from spn_jax.settings import help_text  # noqa: E402

SETTING = re.compile(r"[a-z_0-9]+\.[a-z_0-9.]+=")  # such as train.batch_size=4
STEP = ("model.*", "data.image_size", "loss.*", "optimizer.*", "schedule.*", "train.*")
COMMANDS = {  # and the settings that they take
    "aot": STEP,
    "beside": STEP,
    "evaluation": ("model.*", *SCORING),
    "input": TRAINING,
    "step": STEP,
    "table": (),
}


def main(arguments: Sequence[str]) -> None:
    """The command line. InputError for wrong input."""
    parser = argparse.ArgumentParser(prog="python scripts/benchmark.py", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    chosen = next((name for name in arguments if name in COMMANDS), None)
    for name in [chosen] if chosen else COMMANDS:  # what the others import may not be installed
        importlib.import_module(f"scripts.benchmark_{name}").add_arguments(commands)
    for name, part in commands.choices.items():
        if COMMANDS[name]:
            part.epilog, part.formatter_class = help_text(Config, *COMMANDS[name]), argparse.RawDescriptionHelpFormatter
    # Settings may stand anywhere: behind an option of several values, argparse would take them for more of those.
    options = parser.parse_args([argument for argument in arguments if not SETTING.match(argument)])
    options.overrides += [argument for argument in arguments if SETTING.match(argument)]
    print(options.run(options))


if __name__ == "__main__":
    if only_cpu():
        keep_memory()  # as the trainer does; but compiled programs are not kept, because compile time is measured
    run_command(main)
