"""Trains SPN.

python -m spn_jax.train --config configs/celeba.py [--workdir DIR] [section.key=value ...]

The same command continues a run that was stopped or killed exactly where it was: all randomness
depends on the seeds and the step alone.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from spn_jax.config import TRAINING_KEYS, Config, load_config
from spn_jax.errors import run_command
from spn_jax.runtime.log import quiet_libraries
from spn_jax.settings import help_text


def main(arguments: Sequence[str]) -> int:
    """Runs the command line. Returns exit status 0, or that of the signal that stopped the run (143
    for SIGTERM).
    """
    quiet_libraries()
    options = parse_arguments(arguments)
    config = load_config(options.config, options.overrides)

    # JAX is imported after the cheap checks, because its import takes seconds.
    import jax

    from spn_jax.training.loop import train
    from spn_jax.training.processes import Stopped, end_all_processes, join_processes

    join_processes(options)
    workdir = options.workdir or Path("runs") / Path(options.config).stem
    try:
        train(config, workdir, config_file=options.config, init=options.init)
    except Stopped as stopped:
        return stopped.status
    except (Exception, KeyboardInterrupt) as error:
        if jax.process_count() == 1:
            raise
        end_all_processes(error)
    return 0


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m spn_jax.train", description=__doc__, formatter_class=raw)
    parser.epilog = help_text(Config, *TRAINING_KEYS, resumable=True)
    parser.add_argument("--config", required=True, help="a file of configs/")
    parser.add_argument("--workdir", type=Path, help="folder for checkpoints and logs; default runs/<name of the config>")
    parser.add_argument("--init", metavar="CHECKPOINT", help="start a new run from these parameters (fine-tuning)")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0, for a run of several processes")
    parser.add_argument("--processes", type=int, help="number of processes")
    parser.add_argument("--process", type=int, help="number of this process, from 0")
    parser.add_argument("--cluster", action="store_true", help="several processes that SLURM, MPI or a TPU pod tells about each other")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that differ from the config file, see below")
    return parser.parse_intermixed_args(arguments)


def cli() -> None:
    """Runs the console command `spn-train`."""
    parse_arguments(sys.argv[1:])  # --help and misspelt options are answered before JAX is imported
    from spn_jax.runtime.device import set_up

    set_up(training=True)
    run_command(main)


if __name__ == "__main__":
    cli()
