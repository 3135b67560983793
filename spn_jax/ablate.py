"""The paper's ablations: trains the runs of one of its tables, evaluates them on the same pairs and prints the table.

python -m spn_jax.ablate --config configs/paris_streetview.py --table 3|4|5|fig7|fig8|weights [--workdir DIR] [section.key=value ...]

Every run has a folder in --workdir, which tables share: what is trained and evaluated is not done again. The same command continues
a sweep that was stopped or killed. Given on several machines that see the same folder, each takes runs that no other is at.
"""

import argparse
import contextlib
import dataclasses
import json
import math
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from spn_jax import evaluate, paper, sweep_tables, tables, train
from spn_jax.checkpoint import FOLDER, find_checkpoint, newest_checkpoint, read_info, stored_metadata
from spn_jax.config import Config, changed_settings, from_dict, load_config
from spn_jax.data.images import open_photos
from spn_jax.data.manifest import MANIFEST
from spn_jax.data.masks import open_test_masks
from spn_jax.data.pipeline import steps_per_epoch
from spn_jax.errors import InputError, run_command
from spn_jax.files import check_writable, lock_folder, write_atomically
from spn_jax.log import has_evaluation, quiet_libraries
from spn_jax.pairs import PROTOCOLS, PairList, draw_pairs, make_pair_list, match, open_pair_list, write_pair_list
from spn_jax.runtime import set_up
from spn_jax.step import resolve_schedule
from spn_jax.sweeps import EVALUATED, SWEEPS, TRAINED, Choices, Run, Sweep, plan, teacher_choice

PAIRS = "pairs.tsv"
POLL_SECONDS = 20.0  # between looks at runs that other machines are at
LAYOUT = "deterministic"  # of bins, unless a run draws several samples


def main(arguments: Sequence[str]) -> None:
    """The command line."""
    quiet_libraries()
    options = parse(arguments)
    base = load_config(options.config, options.overrides)
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
        return

    # Everything that can be known to be wrong is known before the first step of the first run
    check_writable(workdir)
    pairs = sweep_pairs(workdir, base, options.pairs)
    work = [Work(run, run.config(base), workdir / run.name, pairs, options) for run in chosen]
    check_order(work, workdir)
    provide_caches(work, workdir)
    if not conduct(work):
        print("stopped; the same command continues the sweep", flush=True)
        return
    report(sweep, base, workdir, pairs)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m spn_jax.ablate", description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("--config", required=True, help="a file of configs/: SPN with all three priors, which every run starts from")
    add("--table", required=True, choices=tuple(SWEEPS), help="the paper's table or figure, or the weights of its losses")
    add("--workdir", type=Path, help="folder of the runs and tables; default runs/<name of the config>_ablations")
    add("--only", nargs="+", default=[], metavar="NAME", help="train these runs alone; the table shows the others as far as they are there")
    add("--list", action="store_true", help="print the runs and what each changes, and end")
    add("--export", action="store_true", help="export missing features of teachers by python -m teacher_export, which needs its extra")
    add("--weights", metavar="W", help="of the config's teacher, for --export: FILE, timm:NAME or random")
    add("--teacher", action="append", metavar="[LABEL=]NAME[@W]", help="of fig8, repeatable: teacher.name and --weights of its export; "
        "canny and sobel if none is given")  # fmt: skip
    add("--prior-from", metavar="CHECKPOINT", help="of table 5: the SPN whose prior SPL learns; the sweep's own if not given")
    add("--pairs", metavar="FILE", help=f"which mask each test photo gets: a file of `evaluate pairs`, or {', '.join(PROTOCOLS)}")
    add("--inception", metavar="FILE.npz", help="weights for FID")
    add("overrides", nargs="*", metavar="section.key=value", help="settings of all runs that differ from the config file")
    options = parser.parse_intermixed_args(arguments)
    # --only takes all words that follow it, settings too; no run has a "=" in its name.
    options.overrides += [word for word in options.only if "=" in word]
    options.only = [word for word in options.only if "=" not in word]
    return options


def chosen_runs(sweep: Sweep, only: Sequence[str]) -> list[Run]:
    """The runs named with --only, all of them if none is. InputError: an unknown name."""
    names = [run.name for run in sweep.runs]
    if unknown := [name for name in only if name not in names]:
        raise InputError(f"--only {unknown[0]} is no run of this sweep; it has {', '.join(names)}")
    return [run for run in sweep.runs if not only or run.name in only]


def listed(sweep: Sweep, chosen: Sequence[Run], base: Config, workdir: Path) -> Iterator[str]:
    """The runs of a sweep, for people: folder, how far it is, what it changes."""
    yield f"{sweep.title}: {len(chosen)} run(s) in {workdir}"
    for run in chosen:
        newest = newest_checkpoint(workdir / run.name / TRAINED / FOLDER)
        state = "not begun" if newest is None else f"at step {int(newest.name):,}"
        evaluated = ", evaluated" if (workdir / run.name / EVALUATED / "results.json").is_file() else ""
        config = run.config(base)
        cached = config.loss.prior > 0 and config.teacher.mode == "cached"
        missing = " (features missing)" if cached and not has_cache(config) else ""
        yield f"{run.name:24} {state}{evaluated}{missing}  {' '.join(map(shlex.quote, run.settings)) or 'the config as it is'}"


@dataclasses.dataclass(frozen=True)
class Work:
    """A run of a sweep and all that it takes to do it.

    folder: of the run; its training and its evaluation have folders in it.
    """

    run: Run
    config: Config
    folder: Path
    pairs: PairList
    options: argparse.Namespace

    @property
    def trained(self) -> Path:
        return self.folder / TRAINED

    def export_command(self) -> list[str]:
        """What fills its teacher's cache, after the name of the interpreter."""
        weights = self.run.weights if self.run.has_own_teacher() else self.options.weights
        given = [] if weights is None else ["--weights", weights]
        teacher = [setting for setting in self.run.settings if setting.startswith("teacher.")]
        return ["-m", "teacher_export", "--config", str(self.options.config), *given, *self.options.overrides, *teacher]

    def is_trained(self) -> bool:
        """Whether the run has all its steps; InputError if its folder holds one with other settings."""
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
        # SIGTERM at the very last step came before its evaluation, which the trainer makes up for at the next start.
        awaited = step == length and stored.get("interrupted", False) and not has_evaluation(self.trained, step)
        return step >= length and not awaited

    def is_evaluated(self) -> bool:
        """Whether its last checkpoint was evaluated on the sweep's pairs, with the weights that were asked for."""
        content, newest = self.results(), newest_checkpoint(self.trained / FOLDER)
        if content is None or newest is None:
            return False
        about = content["about"]
        same = about["pair_list"]["sha256"] == self.pairs.sha256 and about["methods"][self.run.name]["step"] == int(newest.name)
        return same and (self.options.inception is None or "inception" in about["weights"])

    def results(self) -> dict[str, Any] | None:
        return read_results(self.folder / EVALUATED / "results.json")

    def do(self) -> bool:
        """Trains and evaluates; False if SIGTERM came during the training."""
        if not self.is_trained():
            print(f"\n== {self.run.name}: {' '.join(self.run.settings) or 'the config as it is'}", flush=True)
            if self.run.after is not None:
                export(self)
            train.train(self.config, self.trained, config_file=str(self.options.config))
            if not self.is_trained():
                return False
        print(f"\n== {self.run.name}: evaluation", flush=True)
        inception = [] if self.options.inception is None else ["--inception", self.options.inception]
        pairs, output = self.folder.parent / PAIRS, self.folder / EVALUATED
        arguments = ["--checkpoint", f"{self.run.name}={self.trained}", "--pairs", str(pairs), "--output", str(output), *inception]
        evaluate.main(["run", *arguments])
        jax.clear_caches()  # the next run has other shapes
        return True


def read_results(path: Path) -> dict[str, Any] | None:
    """A results.json of an evaluation; None if there is none."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def sweep_pairs(workdir: Path, base: Config, given: str | None) -> PairList:
    """The pair list of all runs, written on the first start. InputError: it does not fit, or is another than the sweep began with."""
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
    """Raises InputError where a run learns from one that is neither there nor among those to be trained."""
    names = {one.run.name for one in work}
    for one in work:
        if (
            one.run.after is not None
            and one.run.after not in names
            and newest_checkpoint(workdir / one.run.after / TRAINED / FOLDER) is None
        ):
            raise InputError(f"{one.run.name} learns from the run {one.run.after}, which is not trained; add it to --only")


def has_cache(config: Config) -> bool:
    """Whether the folder of the teacher's features is a finished cache."""
    return bool(config.teacher.cache) and (Path(config.teacher.cache) / MANIFEST).is_file()


def provide_caches(work: Sequence[Work], workdir: Path) -> None:
    """Sees to the features that the runs learn from, before any of them begins.

    Raises:
        InputError: features that are missing, with the commands that make them, unless --export says to; ones that do not fit.
    """
    needing = [one for one in work if one.config.loss.prior > 0 and one.config.teacher.mode == "cached" and not one.is_trained()]
    missing = {one.config.teacher.cache: one for one in needing if not has_cache(one.config)}
    if missing and not work[0].options.export:
        commands = "; ".join(f"`python {shlex.join(one.export_command())}`" for one in missing.values())
        late = [one for one in missing.values() if one.run.after is not None]
        when = "".join(f" ({one.run.name}'s after the run {one.run.after} is trained: --only {one.run.after})" for one in late)
        raise InputError(f"features of teachers are missing, nothing was trained; add --export, or make them with {commands}{when}")
    with waiting_for(workdir, "another process exports features"):
        for one in missing.values():
            if one.run.after is None and not has_cache(one.config):
                export(one)
    for one in needing:
        if has_cache(one.config):
            train.open_cache(one.config, open_photos(one.config.data.train_photos, "data.train_photos"), str(one.options.config))


def export(one: Work) -> None:
    """Fills the cache of a run's teacher in a process of its own, since the library does not know torch. InputError: that failed."""
    command = one.export_command()
    print(f"\n== {one.run.name}: python {shlex.join(command)}", flush=True)
    # Where JAX holds most of a GPU's memory already, the export has to do with the rest and must not ask for more at once.
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    if subprocess.run([sys.executable, *command], env=environment).returncode:
        raise InputError(f"the features of {one.run.name} could not be exported; what stands above says why")


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Whether the folder is this process's until the end of the block: False where another one is at it."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            lock_folder(handle, "")
            mine = True
        except InputError:
            mine = False
        yield mine
    finally:
        os.close(handle)


@contextlib.contextmanager
def waiting_for(folder: Path, reason: str) -> Iterator[None]:
    """The folder is this process's until the end of the block; waits for the one that is at it, and says so."""
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


def conduct(work: Sequence[Work]) -> bool:
    """Does all runs that no other process is at and waits for those; False if SIGTERM came.

    A run whose process dies is free again, and goes on from its last checkpoint.
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
                elif not one.do():
                    return False
            left.remove(one)
        if left and len(left) == before:
            if not said:
                print(f"other processes are at {', '.join(one.run.name for one in left)}; waiting for them", flush=True)
            said = True
            time.sleep(POLL_SECONDS)
    return True


def report(sweep: Sweep, base: Config, workdir: Path, pairs: PairList) -> None:
    """Prints the sweep's table and writes it into the work directory."""
    contents = {run.name: read_results(workdir / run.name / EVALUATED / "results.json") for run in sweep.runs}
    fitting = {
        name: content
        for name, content in contents.items()
        if content is not None and content["about"]["pair_list"]["sha256"] == pairs.sha256
    }
    layout = next((content["layout"] for content in fitting.values()), LAYOUT)
    entries = [entry_of(cells, run, workdir, fitting.get(run.name)) for cells, run in sweep.rows]
    notes = [f"pair list: {pairs.title}", *sweep.remarks, *notes_of(sweep, base, workdir, fitting)]
    text = as_text(sweep, entries, layout, notes, paper_differences(base, pairs, fitting.values()))
    described = {"table": sweep.table, "title": sweep.title, "reference": sweep.reference, "pair_list": pairs.sha256, "notes": notes}
    name = sweep.table if sweep.table.startswith(("fig", "weights")) else f"table{sweep.table}"
    write_atomically(workdir / f"{name}.md", text)
    write_atomically(workdir / f"{name}.tex", sweep_tables.latex_table(sweep.heads, entries, layout) + "".join(f"% {n}\n" for n in notes))
    write_atomically(workdir / f"{name}.json", sweep_tables.as_json(described, entries, layout))
    print(f"\n{text}\nwritten to {workdir}: {name}.md, {name}.tex, {name}.json", flush=True)


def entry_of(cells: tuple[str, ...], run: Run, workdir: Path, content: dict[str, Any] | None) -> sweep_tables.Entry:
    """A run's row of the table."""
    newest = newest_checkpoint(workdir / run.name / TRAINED / FOLDER)
    results = None if content is None else sweep_tables.results_from_json(content, run.name)
    return sweep_tables.Entry(cells, run.name, None if newest is None else parameter_count(newest), results)


def parameter_count(checkpoint: Path) -> int:
    """Parameters of prior learner and generator in a checkpoint, distillation heads included."""
    return sum(math.prod(leaf.shape) for leaf in stored_metadata(checkpoint).metadata["model"].values())


def notes_of(sweep: Sweep, base: Config, workdir: Path, contents: dict[str, dict[str, Any]]) -> list[str]:
    """What a reader has to know about the runs: their steps, their teachers, what their evaluations say."""
    steps: dict[str, list[str]] = {}
    teachers: dict[str, list[str]] = {}
    said: dict[str, None] = {}
    for name, content in contents.items():
        about = content["about"]["methods"][name]
        steps.setdefault(f"{about['step']:,} steps", []).append(name)
        teachers.setdefault((about.get("teacher") or {}).get("origin") or "none", []).append(name)
        said |= dict.fromkeys(note.replace(f"{name} was trained", "the models were trained") for note in content["about"]["notes"])
    batch = base.train.batch_size
    return [
        *(f"trained for {length} of {batch} photos: {', '.join(names)}" for length, names in steps.items()),
        *(f"weights of the teacher {origin}: {', '.join(names)}" for origin, names in teachers.items()),
        *said,
        f"one run each, of seed {base.train.seed}: ± is about the choice of pictures alone, the spread of seeds is not known",
    ]


def paper_differences(base: Config, pairs: PairList, contents: Iterable[dict[str, Any]]) -> list[str]:
    """What sets the sweep apart from the paper's, a clause each."""
    origins = [content["about"]["weights"].get("inception") for content in contents]
    return paper.differences(
        "paris_streetview",
        "deterministic",
        own_images=False,  # whose names the paper does not tell
        images=len(pairs.photos),
        masks=pairs.set_size,
        image_size=base.data.image_size,
        crop=base.data.crop,
        quantise=base.eval.quantise,
        samples=base.eval.samples,
        inception=next((origin for origin in origins if origin is not None), None),
    )


def as_text(sweep: Sweep, entries: Sequence[sweep_tables.Entry], layout: str, notes: Sequence[str], differing: Sequence[str]) -> str:
    """The whole report as Markdown: table, differences, notes, the paper's figures, and last the scores by hole ratio."""
    parts = [f"## {heading(sweep)}\n\n", sweep_tables.text_table(sweep.heads, entries, layout)]
    if differences := sweep_tables.differences_table(sweep.heads, entries, sweep.reference):
        parts.append(f"\n### difference from {sweep.reference}, picture by picture\n\n{differences}")
    parts.append("\n" + "".join(f"* {note}\n" for note in notes))
    parts.append(sweep_tables.paper_block(sweep.table, differing))
    scored = {entry.run: entry.results for entry in entries if entry.results is not None}
    if scored:
        parts.append(f"\n### by hole ratio\n\n{tables.text_table(scored, layout)}")
    return "".join(parts)


def heading(sweep: Sweep) -> str:
    """Which table of the paper it is like, and of what."""
    name = {"fig": f"Fig. {sweep.table.removeprefix('fig')}: ", "wei": ""}.get(sweep.table[:3], f"Table {sweep.table}: ")
    return f"{name}{sweep.title}"


if __name__ == "__main__":
    set_up(training=True)
    run_command(main)
