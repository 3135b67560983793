"""Trains and evaluates the runs of a sweep, in all processes that share its folder."""

import contextlib
import dataclasses
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from spn_jax.ablations.plans import EVALUATED, TRAINED, Run, Sweep
from spn_jax.checkpoints.store import FOLDER, newest_checkpoint, read_info
from spn_jax.config import Config, from_dict
from spn_jax.data.images import open_photos
from spn_jax.data.manifest import MANIFEST
from spn_jax.data.masks import open_test_masks
from spn_jax.data.pipeline import steps_per_epoch
from spn_jax.errors import InputError, counted
from spn_jax.evaluation.pairs import PairList, draw_pairs, make_pair_list, match, open_pair_list, write_pair_list
from spn_jax.evaluation.run import evaluate
from spn_jax.evaluation.session import Request
from spn_jax.runtime.files import FolderIsLocked, FolderLock
from spn_jax.runtime.log import has_evaluation
from spn_jax.settings import changed_settings
from spn_jax.training.inputs import open_cache
from spn_jax.training.loop import train
from spn_jax.training.state import resolve_schedule

PAIRS = "pairs.tsv"


POLL_SECONDS = 20.0  # between checks of runs that other machines work on


def chosen_runs(sweep: Sweep, only: Sequence[str]) -> list[Run]:
    """Returns the runs named with --only, or all. Raises InputError for an unknown name."""
    names = [run.name for run in sweep.runs]
    if unknown := [name for name in only if name not in names]:
        raise InputError(f"--only {unknown[0]}: unknown run; available: {', '.join(names)}")
    return [run for run in sweep.runs if not only or run.name in only]


def listed(sweep: Sweep, chosen: Sequence[Run], base: Config, workdir: Path) -> Iterator[str]:
    """Yields a line a run, for people: folder, progress, changed settings."""
    yield f"{sweep.title}: {counted(len(chosen), 'run')} in {workdir}"
    for run in chosen:
        newest = newest_checkpoint(workdir / run.name / TRAINED / FOLDER)
        state = "not begun" if newest is None else f"at step {int(newest.name):,}"
        evaluated = ", evaluated" if (workdir / run.name / EVALUATED / "results.json").is_file() else ""
        config = run.config(base)
        cached = config.loss.prior > 0 and config.teacher.mode == "cached"
        missing = " (features missing)" if cached and not has_cache(config) else ""
        yield f"{run.name:24} {state}{evaluated}{missing}  {' '.join(map(shlex.quote, run.settings)) or 'the config as it is'}"


@dataclasses.dataclass(frozen=True)
class Options:
    """The options for all runs of a sweep; `python -m spn_jax.ablate` explains them."""

    config: str  # config file that every run starts from
    overrides: Sequence[str] = ()
    export: bool = False
    weights: str | None = None
    inception: str | None = None


@dataclasses.dataclass(frozen=True)
class Work:
    """A run of a sweep and all that is needed to do it.

    folder: the run's folder; its training and its evaluation have folders in it.
    """

    run: Run
    config: Config
    folder: Path
    pairs: PairList
    options: Options

    @property
    def trained(self) -> Path:
        return self.folder / TRAINED

    def export_command(self) -> list[str]:
        """Returns the arguments, after the interpreter's name, that fill its teacher's cache."""
        weights = self.run.weights if self.run.has_own_teacher() else self.options.weights
        given = [] if weights is None else ["--weights", weights]
        teacher = [setting for setting in self.run.settings if setting.startswith("teacher.")]
        return ["-m", "teacher_export", "--config", str(self.options.config), *given, *self.options.overrides, *teacher]

    def is_trained(self) -> bool:
        """Returns whether the run has all its steps. Raises InputError if its folder holds a run
        with other settings.
        """
        newest = newest_checkpoint(self.trained / FOLDER)
        if newest is None:
            return False
        stored = read_info(newest)
        if lines := changed_settings(from_dict(stored["config"], str(newest)), self.config):
            raise InputError(
                f"{self.folder} holds a run with other settings ({'; '.join(lines)}); "
                "give the settings back their values, or choose another --workdir"
            )
        photos = open_photos(self.config.data.train_photos, "data.train_photos")
        length = resolve_schedule(self.config, steps_per_epoch(self.config, photos)).length
        step = int(newest.name)
        # A run that was stopped at its very last step still lacks that step's evaluation.
        return step > length or (step == length and has_evaluation(self.trained, step))

    def is_evaluated(self) -> bool:
        """Returns whether its last checkpoint was evaluated on the sweep's pairs, with the
        requested weights.
        """
        content, newest = self.results(), newest_checkpoint(self.trained / FOLDER)
        if content is None or newest is None:
            return False
        about = content["about"]
        same = about["pair_list"]["sha256"] == self.pairs.sha256 and about["methods"][self.run.name]["step"] == int(newest.name)
        return same and (self.options.inception is None or "inception" in about["weights"])

    def results(self) -> dict[str, Any] | None:
        return read_results(self.folder / EVALUATED / "results.json")

    def do(self) -> None:
        """Trains and evaluates. Raises Stopped if a signal came during the training."""
        if not self.is_trained():
            print(f"\n== {self.run.name}: {' '.join(self.run.settings) or 'the config as it is'}", flush=True)
            if self.run.after is not None:
                export(self)
            train(self.config, self.trained, config_file=str(self.options.config))
        print(f"\n== {self.run.name}: evaluation", flush=True)
        pairs, output = self.folder.parent / PAIRS, self.folder / EVALUATED
        checkpoint = f"{self.run.name}={self.trained}"
        evaluate(Request(checkpoint=[checkpoint], pairs=str(pairs), output=output, inception=self.options.inception))
        jax.clear_caches()  # the next run has other shapes


def read_results(path: Path) -> dict[str, Any] | None:
    """Reads a results.json of an evaluation; None if there is none."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def sweep_pairs(workdir: Path, base: Config, given: str | None) -> PairList:
    """Returns the pair list of all runs, which the first start writes. Raises InputError if it does
    not fit, or differs from the one that the sweep began with.
    """
    photos, masks = open_photos(base.data.test_photos, "data.test_photos"), open_test_masks(base)
    path = workdir / PAIRS
    if given is not None:
        wanted = open_pair_list(given, photos.names, masks.names)
    elif path.is_file():
        wanted = open_pair_list(str(path), photos.names, masks.names)
    else:
        seed = base.eval.seed
        wanted = make_pair_list(photos.names, masks.names, draw_pairs(len(photos), len(masks), seed), f"seed {seed}, from the whole set")
    match(wanted, photos.names, masks.names)
    if not path.is_file():
        write_pair_list(path, wanted)
    if (there := open_pair_list(str(path), photos.names, masks.names)).sha256 != wanted.sha256:
        raise InputError(
            f"--pairs {given} is not the list that the sweep in {workdir} began with ({there.title}); choose another --workdir"
        )
    return wanted


def check_order(work: Sequence[Work], workdir: Path) -> None:
    """Raises InputError if a run learns from one that neither exists nor is going to be trained."""
    names = {one.run.name for one in work}
    for one in work:
        if (
            one.run.after is not None
            and one.run.after not in names
            and newest_checkpoint(workdir / one.run.after / TRAINED / FOLDER) is None
        ):
            raise InputError(
                f"{one.run.name} learns from the run {one.run.after}, which has not been trained; add {one.run.after} to --only"
            )


def has_cache(config: Config) -> bool:
    """Returns whether the folder of the teacher's features is a finished cache."""
    return bool(config.teacher.cache) and (Path(config.teacher.cache) / MANIFEST).is_file()


def provide_caches(work: Sequence[Work], workdir: Path) -> None:
    """Makes or checks the features that the runs learn from, before any of them begins.

    Raises:
        InputError: features are missing and --export was not given (the text has the commands that
            make them), or do not fit.
    """
    needing = [one for one in work if one.config.loss.prior > 0 and one.config.teacher.mode == "cached" and not one.is_trained()]
    missing = {one.config.teacher.cache: one for one in needing if not has_cache(one.config)}
    if missing and not work[0].options.export:
        commands = "; ".join(f"`python {shlex.join(one.export_command())}`" for one in missing.values())
        late = [one for one in missing.values() if one.run.after is not None]
        when = "".join(f" ({one.run.name}'s after the run {one.run.after} is trained: --only {one.run.after})" for one in late)
        raise InputError(f"teacher features are missing (nothing was trained); add --export, or run {commands}{when}")
    with waiting_for(workdir, "another process is exporting features"):
        for one in missing.values():
            if one.run.after is None and not has_cache(one.config):
                export(one)
    for one in needing:
        if has_cache(one.config):
            open_cache(one.config, open_photos(one.config.data.train_photos, "data.train_photos"), str(one.options.config))


def export(one: Work) -> None:
    """Fills the cache of a run's teacher in a separate process, since the library does not import
    torch. Raises InputError if that fails.
    """
    command = one.export_command()
    print(f"\n== {one.run.name}: python {shlex.join(command)}", flush=True)
    # JAX may hold most of a GPU's memory already, so the export must not preallocate memory.
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    if subprocess.run([sys.executable, *command], env=environment).returncode:
        raise InputError(f"the features of {one.run.name} could not be exported; what stands above says why")


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Opens a context that yields whether this process holds the folder's lock; False if another
    process works in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FolderLock(folder, f"another process is at {folder}", "wait for it")
    except FolderIsLocked:
        yield False
        return
    with lock:
        yield True


@contextlib.contextmanager
def waiting_for(folder: Path, reason: str) -> Iterator[None]:
    """Holds the folder's lock in a context. Waits, with a message, while another process works in
    it.
    """
    said = False
    while True:
        with claimed(folder) as mine:
            if mine:
                yield
                return
        if not said:
            print(f"{reason}; waiting for it", flush=True)
        said = True
        time.sleep(POLL_SECONDS)


def conduct(work: Sequence[Work]) -> None:
    """Does all runs that no other process works on, and waits for the others. Raises Stopped if a
    signal came.

    If a run's process dies, another can take the run over from its last checkpoint.
    """
    left, said = list(work), False
    while left:
        before = len(left)
        for one in list(left):
            if any(other.run.name == one.run.after for other in left):
                continue
            with claimed(one.folder) as mine:
                if not mine:
                    continue
                if one.is_trained() and one.is_evaluated():
                    print(f"{one.run.name}: trained and evaluated", flush=True)
                else:
                    one.do()
            left.remove(one)
        if left and len(left) == before:
            if not said:
                are = "is" if len(left) == 1 else "are"
                print(f"{', '.join(one.run.name for one in left)} {are} being trained by another process; waiting", flush=True)
            said = True
            time.sleep(POLL_SECONDS)
