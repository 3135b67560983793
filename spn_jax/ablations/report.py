"""Reports on a sweep: its table, notes and the paper's figures."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from spn_jax.ablations import tables as sweep_tables
from spn_jax.ablations.conduct import read_results
from spn_jax.ablations.plans import EVALUATED, TRAINED, Run, Sweep
from spn_jax.checkpoints.store import FOLDER, newest_checkpoint, stored_metadata
from spn_jax.config import Config
from spn_jax.evaluation import paper, tables
from spn_jax.evaluation.pairs import PairList
from spn_jax.runtime.files import write_atomically

LAYOUT = "deterministic"  # layout of the bins, unless a run draws several samples


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
    """Returns a run's row of the table."""
    newest = newest_checkpoint(workdir / run.name / TRAINED / FOLDER)
    results = None if content is None else sweep_tables.results_from_json(content, run.name)
    return sweep_tables.Entry(cells, run.name, None if newest is None else parameter_count(newest), results)


def parameter_count(checkpoint: Path) -> int:
    """Counts the parameters of prior learner and generator in a checkpoint, distillation heads
    included.
    """
    return sum(math.prod(leaf.shape) for leaf in stored_metadata(checkpoint).metadata["model"].values())


def notes_of(sweep: Sweep, base: Config, workdir: Path, contents: dict[str, dict[str, Any]]) -> list[str]:
    """Returns notes on the runs: their steps, their teachers, and those of their evaluations."""
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
    """Lists, a clause each, how the sweep differs from the paper's."""
    origins = [content["about"]["weights"].get("inception") for content in contents]
    return paper.differences(
        "paris_streetview",
        "deterministic",
        own_images=False,  # the paper does not list their names
        images=len(pairs.photos),
        masks=pairs.set_size,
        image_size=base.data.image_size,
        crop=base.data.crop,
        quantise=base.eval.quantise,
        samples=base.eval.samples,
        inception=next((origin for origin in origins if origin is not None), None),
    )


def as_text(sweep: Sweep, entries: Sequence[sweep_tables.Entry], layout: str, notes: Sequence[str], differing: Sequence[str]) -> str:
    """Returns the whole report as Markdown: table, differences, notes, the paper's figures, and the
    scores by hole ratio.
    """
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
    """Returns a heading with the paper's corresponding table, and its subject."""
    name = {"fig": f"Fig. {sweep.table.removeprefix('fig')}: ", "wei": ""}.get(sweep.table[:3], f"Table {sweep.table}: ")
    return f"{name}{sweep.title}"
