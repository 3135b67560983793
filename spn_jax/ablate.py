"""The paper's ablations: trains the runs of a table, evaluates them on the same pairs and prints
it.

python -m spn_jax.ablate --config configs/paris_streetview.py --table 3|4|5|fig7|fig8|weights
    [--workdir DIR] [section.key=value ...]

Every run has a folder in --workdir, which tables share: what is trained and evaluated is not done
again. The same command continues a sweep that was stopped or killed. Given on several machines
that see the same folder, each takes runs that no other is at.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from spn_jax.ablations.plans import SWEEPS, Choices, plan, teacher_choice
from spn_jax.config import Config, load_config
from spn_jax.errors import run_command
from spn_jax.evaluation.pairs import PROTOCOLS
from spn_jax.runtime.files import check_writable
from spn_jax.runtime.log import quiet_libraries
from spn_jax.settings import help_text


def main(arguments: Sequence[str]) -> int:
    """The command line; the exit status is 0, or that of the signal that stopped the sweep."""
    quiet_libraries()
    options = parse(arguments)
    base = load_config(options.config, options.overrides)

    # After the cheap checks: importing JAX takes seconds.
    from spn_jax.ablations.conduct import Options, Work, check_order, chosen_runs, conduct, listed, provide_caches, sweep_pairs
    from spn_jax.ablations.report import report
    from spn_jax.checkpoints.store import find_checkpoint
    from spn_jax.training.processes import Stopped

    workdir = options.workdir or Path("runs") / f"{Path(options.config).stem}_ablations"
    choices = Choices(workdir, prior_from=options.prior_from)
    if options.teacher:
        choices = dataclasses.replace(choices, teachers=tuple(teacher_choice(text) for text in options.teacher))
    if options.prior_from is not None:
        find_checkpoint(options.prior_from)
    sweep = plan(options.table, base, choices)
    chosen = chosen_runs(sweep, options.only)
    if options.list:
        print("\n".join(listed(sweep, chosen, base, workdir)))
        return 0

    # Everything that can be known to be wrong is known before the first step of the first run
    check_writable(workdir)
    pairs = sweep_pairs(workdir, base, options.pairs)
    given = Options(options.config, options.overrides, options.export, options.weights, options.inception)
    work = [Work(run, run.config(base), workdir / run.name, pairs, given) for run in chosen]
    check_order(work, workdir)
    provide_caches(work, workdir)
    try:
        conduct(work)
    except Stopped as stopped:
        print("stopped by a signal; the same command continues the sweep", flush=True)
        return stopped.status
    report(sweep, base, workdir, pairs)
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m spn_jax.ablate", description=__doc__, formatter_class=raw)
    parser.epilog = help_text(Config, "*", resumable=True)
    add = parser.add_argument
    add("--config", required=True, help="a file of configs/: SPN with all three priors, which every run starts from")
    add("--table", required=True, choices=tuple(SWEEPS), help="the paper's table or figure, or the weights of its losses")
    add("--workdir", type=Path, help="folder of the runs and tables; default runs/<name of the config>_ablations")
    add("--only", nargs="+", default=[], metavar="NAME", help="train these runs alone; the table shows the others as far as they are there")
    add("--list", action="store_true", help="list the runs and their settings, then exit")
    add("--export", action="store_true", help="export missing features of teachers by python -m teacher_export, which needs its extra")
    add("--weights", metavar="W", help="of the config's teacher, for --export: FILE, timm:NAME or random")
    add("--teacher", action="append", metavar="[LABEL=]NAME[@W]", help="of fig8, repeatable: teacher.name and --weights of its export; "
        "canny and sobel if none is given")  # fmt: skip
    add("--prior-from", metavar="CHECKPOINT", help="of table 5: the SPN whose prior SPL learns; the sweep's own if not given")
    add("--pairs", metavar="FILE", help=f"which mask each test photo gets: a file of `evaluate pairs`, or {', '.join(PROTOCOLS)}")
    add("--inception", metavar="FILE.npz", help="weights for FID")
    add("overrides", nargs="*", metavar="section.key=value", help="settings of all runs that differ from the config file, see below")
    options = parser.parse_intermixed_args(arguments)
    # --only takes all words that follow it, settings too; no run has a "=" in its name.
    options.overrides += [word for word in options.only if "=" in word]
    options.only = [word for word in options.only if "=" not in word]
    return options


def cli() -> None:
    """The console command `spn-ablate`."""
    parse(sys.argv[1:])  # --help and misspelt options are answered before JAX is imported
    from spn_jax.runtime.device import set_up

    set_up(training=True)
    run_command(main)


if __name__ == "__main__":
    cli()
