"""Times our forward pass or training step against another program's, taking turns in one run.

Times from different hours cannot be compared: a processor's clock and its other users vary by more
than the programs differ. So both run in the same session, and each computes while the other is
stopped.
"""

import argparse
import json
import math
import shlex
import signal
import statistics
import subprocess
from pathlib import Path
from typing import NoReturn

import jax

from scripts.benchmark_step import NUMBERS, PASSES, ROOT, compile_pass, mesh_of, timed
from spn_jax.config import apply_overrides, load_config
from spn_jax.errors import InputError
from spn_jax.runtime.device import keep_compiled_programs
from spn_jax.runtime.files import check_writable


class Other:
    """A program that computes once for every line that it reads, and then prints the seconds taken
    and nothing else.
    """

    def __init__(self, command: str):
        self.command = command
        try:
            self.process = subprocess.Popen(shlex.split(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        except (OSError, ValueError, IndexError) as error:
            raise InputError(f"--other {command!r} cannot be started ({error}); give a command such as 'python TWIN.py'") from error
        self.turn()  # not counted, since it loads and warms up

    def turn(self) -> float:
        """Wakes the program for one computation and returns its seconds."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.send_signal(signal.SIGCONT)
        try:
            print(file=self.process.stdin, flush=True)
        except BrokenPipeError:
            self.fail("it ended")
        answer = ""
        try:
            answer = self.process.stdout.readline().strip()
            seconds = float(answer)
        except ValueError:  # the line is no number; UnicodeDecodeError is a ValueError as well
            self.fail(f"it wrote {answer!r}" if answer else "it ended or wrote no text")
        if not 0 < seconds < math.inf:
            self.fail(f"it wrote {answer!r}")
        self.process.send_signal(signal.SIGSTOP)
        return seconds

    def fail(self, what: str) -> NoReturn:
        self.stop()
        raise InputError(
            f"--other {self.command!r}: {what}; it has to print a number of seconds for each line it reads, and go on until it is stopped"
        )

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()  # closes its pipes as well


def add_arguments(part: argparse.ArgumentParser) -> None:
    """Declares `benchmark.py beside`."""
    part.add_argument(
        "--other", required=True, metavar="COMMAND", help="computes once for each line that it reads, and then prints the seconds that took"
    )
    part.add_argument("--config", type=Path, default=ROOT / "configs" / "celeba.py")
    part.add_argument("--size", type=int, help="pixels; data.image_size if not given")
    part.add_argument("--batch", type=int, default=1, help="photos")
    part.add_argument("--pass", dest="what", choices=PASSES, default="step")
    part.add_argument("--numbers", choices=NUMBERS, help="what to compute in; the config's if not given")
    part.add_argument("--repeats", type=int, default=7, help="turns of each, after one that is not counted")
    part.add_argument("--json", type=Path, metavar="FILE", help="all times as JSON")
    part.add_argument("overrides", nargs="*", metavar="section.key=value")
    part.set_defaults(run=run)


def run(options: argparse.Namespace) -> str:
    """Returns the table in Markdown."""
    if options.repeats < 1:
        raise InputError(f"--repeats {options.repeats}: there must be one at least")
    if options.json:
        check_writable(options.json.parent)
    keep_compiled_programs()  # a process that has just compiled runs slower
    sizes = [f"train.batch_size={options.batch}", *([f"data.image_size={options.size}"] if options.size else [])]
    config = apply_overrides(load_config(options.config, options.overrides), [*NUMBERS.get(options.numbers, ()), *sizes])
    _, ours = compile_pass(options.what, config, mesh_of(1))
    ours()
    other = Other(options.other)
    try:
        seconds = [(timed(ours), other.turn()) for _ in range(options.repeats)]
    finally:
        other.stop()
    if options.json:
        options.json.write_text(json.dumps({"pass": options.what, "ours_s": [a for a, _ in seconds], "other_s": [b for _, b in seconds]}))
    return table(f"{options.what} of {options.config.stem}, {options.batch} photos, on {jax.devices()[0].device_kind}", seconds)


def table(title: str, seconds: list[tuple[float, float]]) -> str:
    """Formats one line a program, and the ratios."""
    columns = list(zip(*seconds, strict=True))
    ours, other = map(statistics.median, columns)
    lines = [
        f"| {name} | {statistics.median(column):.4f} | {min(column):.4f} - {max(column):.4f} |"
        for name, column in zip(("ours", "other"), columns, strict=True)
    ]
    ratios = sorted(a / b for a, b in seconds)
    verdict = f"ratio of the medians {ours / other:.3f}; of each pair of turns {ratios[0]:.3f} to {ratios[-1]:.3f}"
    return "\n".join([title, "", "| program | median s | from - to s |", "|---|---|---|", *lines, "", verdict])
