"""Formats a sweep's table, with a row a run and a column a score, as the paper's Tables 3 to 5.

Scores are over all hole ratios. Below follow the differences from one of the runs, picture by
picture: all runs completed the same holes, so these are far more certain than the difference of two
means. The paper's figures, as printed, follow in a separate block.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spn_jax.errors import InputError
from spn_jax.evaluation import paper, tables
from spn_jax.evaluation.bins import NORMAL_95, OF_SETS, Row, rows_of
from spn_jax.evaluation.tables import Results, aligned

SCORES = ("ssim", "psnr", "mae", "fid")  # the paper's columns

NOT_YET = "not yet"


@dataclass(frozen=True)
class Entry:
    """A row of the table.

    cells: the cells before the scores.
    run: its name.
    parameters: number in prior learner and generator; None: not known yet.
    results: the run's scores; None: it has not been trained and evaluated yet.
    """

    cells: tuple[str, ...]
    run: str
    parameters: int | None = None
    results: Results | None = None


def text_table(heads: Sequence[str], entries: Sequence[Entry], layout: str) -> str:
    """Returns the scores of every run as Markdown; MAE times ten, as the paper prints it."""
    header, body = _grid(heads, entries, layout, "{mean} ± {interval}")
    return aligned(header, body, left=len(heads) + 1)


def latex_table(heads: Sequence[str], entries: Sequence[Entry], layout: str) -> str:
    """Returns the same as LaTeX's own tabular."""
    _, body = _grid(heads, entries, layout, "{mean} $\\pm$ {interval}", escape=True)
    labels = [tables.LATEX_LABELS[tables.printed_name(score)] for score in SCORES]
    header = [*map(tables.escape_latex, heads), "run", "parameters", *labels]
    lines = [" & ".join(cells) + r" \\" for cells in (header, *body)]
    columns = "l" * (len(heads) + 1) + "r" * (len(labels) + 1)
    return "\n".join([rf"\begin{{tabular}}{{{columns}}}", r"\hline", lines[0], r"\hline", *lines[1:], r"\hline", r"\end{tabular}"]) + "\n"


def _grid(
    heads: Sequence[str], entries: Sequence[Entry], layout: str, form: str, escape: bool = False
) -> tuple[list[str], list[list[str]]]:
    plain = tables.escape_latex if escape else str
    body = []
    for entry in entries:
        counted = "-" if entry.parameters is None else f"{entry.parameters:,}"
        body.append([*map(plain, entry.cells), plain(entry.run), counted, *_scores(entry.results, layout, form)])
    return [*heads, "run", "parameters", *map(tables.printed_name, SCORES)], body


def _scores(results: Results | None, layout: str, form: str) -> list[str]:
    if results is None:
        return [NOT_YET, *["-"] * (len(SCORES) - 1)]
    row = over_all(results, layout)
    factors = {"mae": paper.PRINTED_MAE}
    return [tables.cell(row, score, factors.get(score, 1), results.missing.get(score, "-"), form) for score in SCORES]


def over_all(results: Results, layout: str) -> Row:
    """Returns the scores of a run over all pictures."""
    return rows_of(results.records, layout, results.of_sets)[-1]


def differences_table(heads: Sequence[str], entries: Sequence[Entry], reference: str) -> str:
    """Returns how far each run's scores differ from the reference, averaged over the same pictures;
    empty if there is nothing to compare.

    Raises:
        InputError: runs were evaluated on different pictures.
    """
    scored = {entry.run: entry.results for entry in entries if entry.results is not None}
    if reference not in scored or len(scored) < 2:
        return ""
    body = [
        [*entry.cells, entry.run, *(_difference(entry.results, scored[reference], score) for score in SCORES[:3])]
        for entry in entries
        if entry.results is not None and entry.run != reference
    ]
    return aligned([*heads, "run", *map(tables.printed_name, SCORES[:3])], body, left=len(heads) + 1)


def _difference(results: Results, reference: Results, score: str) -> str:
    ours, theirs = results.records[score], reference.records[score]
    if len(ours) != len(theirs) or not np.array_equal(results.records["hole"], reference.records["hole"], equal_nan=True):
        raise InputError("the runs of the sweep were evaluated on other pictures; evaluate them again in another --workdir")
    finite = np.isfinite(ours) & np.isfinite(theirs)
    change = (ours[finite] - theirs[finite]) * (paper.PRINTED_MAE if score == "mae" else 1)
    if not len(change):
        return "-"
    digits = tables.DIGITS.get(score, tables.FEWER_DIGITS)
    text = f"{change.mean(dtype=np.float64):+.{digits}f}"
    return text if len(change) < 2 else f"{text} ± {NORMAL_95 * change.std(ddof=1, dtype=np.float64) / math.sqrt(len(change)):.{digits}f}"


def paper_block(table: str, differing: Sequence[str]) -> str:
    """Returns the paper's figures for a table of sweeps under a heading, and why they cannot be
    compared; empty if it has none.
    """
    if table in ("3", "4", "5"):
        block, source = _quoted_table(int(table)), f"Table {table}"
    elif table.startswith("fig"):
        block, source = _quoted_chart(paper.CHARTS[int(table.removeprefix("fig"))]), f"Fig. {table.removeprefix('fig')}"
    else:
        return ""
    named = f"Zhang et al., Pattern Recognition 2023, {source}, Paris StreetView, all hole ratios, as printed"
    notes = [f"{named}. What differs: {'; '.join(differing)}.", *(paper.notes_of("paris_streetview") if table in ("3", "5") else ())]
    return f"\n### {tables.NOT_COMPARABLE}\n\n{block}" + "".join(f"\n{note}\n" for note in notes)


def _quoted_table(table: int) -> str:
    figures = paper.ablations(table)
    rows: dict[str, list[str]] = {}
    for figure in figures:
        rows.setdefault(figure.method, []).append(figure.printed)
    return aligned(["paper's row", *map(tables.printed_name, SCORES)], [[name, *cells] for name, cells in rows.items()], left=1)


def _quoted_chart(chart: paper.Chart) -> str:
    axes = ", ".join(f"{score} {low} to {high}" for score, (low, high) in chart.axes.items()) or "not in the paper's text"
    return f"Bars without numbers: {'; '.join(chart.bars)}.\nAxes: {axes}.\nThe paper reads from it: {chart.said}.\n"


def as_json(sweep: Mapping[str, Any], entries: Sequence[Entry], layout: str) -> str:
    """Returns every number of the table unrounded, MAE as it is; null for missing ones."""
    runs = []
    for entry in entries:
        told: dict[str, Any] = {"run": entry.run, "cells": list(entry.cells), "parameters": entry.parameters, "scores": None}
        if entry.results is not None:
            row = over_all(entry.results, layout)
            told |= {"images": row.images, "scores": _finite(row.means), "ci95": _finite(row.intervals)}
        runs.append(told)
    return json.dumps({**sweep, "rows": runs}, indent=1, allow_nan=False) + "\n"


def _finite(numbers: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}


def results_from_json(content: Mapping[str, Any], method: str) -> Results:
    """Returns a method's scores from the content of a results.json. Raises KeyError if it has none.
    Infinite PSNRs, stored as null, are infinite again.
    """
    records = {}
    for name, values in content["images"][method].items():
        empty = math.inf if "psnr" in name else math.nan
        records[name] = np.array([empty if value is None else value for value in values])
    of_sets = {row["hole"]: {score: row[score] for score in OF_SETS if row.get(score) is not None} for row in content["rows"][method]}
    return Results(records, of_sets, content.get("notes", {}).get(method, ()), content.get("missing", {}).get(method, {}))
