"""Formats scores by hole ratio as text, TSV, LaTeX and JSON, as in the paper.

A table has a line for each score and method, and a column for each bin (`bins`). Scores of whole
sets, as FID, are in `Results`, beside the records.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from spn_jax.errors import InputError, counted
from spn_jax.evaluation.bins import OF_PICTURES, SCORES, Records, Row, has_score, rows_of
from spn_jax.evaluation.paper import PRINTED_MAE, Quotation
from spn_jax.metrics.image import BORDER
from spn_jax.metrics.sets import FID_RELIABLE

# scores that the text and LaTeX tables omit; files have all scores and digits
NOT_PRINTED = ("kid_std",)
DIGITS = {"psnr": 2, "psnr_mean": 2, "border_psnr": 2, "border_psnr_mean": 2, "fid": 2, "fid_clean": 2, "kid": 5}
FEWER_DIGITS = 4

LATEX_LABELS = {
    "psnr": r"PSNR $\uparrow$",
    "ssim": r"SSIM $\uparrow$",
    "ssim_gaussian": r"SSIM, Gaussian $\uparrow$",
    "mae": r"MAE, grey $\downarrow$",
    "mae_x10": r"MAE, grey, $\times 10$ $\downarrow$",
    "mae_rgb": r"MAE $\downarrow$",
    "hole_mae": r"MAE in the hole $\downarrow$",
    "border_psnr": r"PSNR at the hole's border $\uparrow$",
    "border_mae": r"MAE at the hole's border $\downarrow$",
    "lpips_alex": r"LPIPS, AlexNet $\downarrow$",
    "lpips_vgg": r"LPIPS, VGG $\downarrow$",
    "fid": r"FID $\downarrow$",
    "fid_clean": r"FID, clean $\downarrow$",
    "kid": r"KID $\downarrow$",
    "p_ids": r"P-IDS $\uparrow$",
    "u_ids": r"U-IDS $\uparrow$",
    "diversity": r"Diversity, L1 $\uparrow$",
    "diversity_lpips": r"Diversity, LPIPS $\uparrow$",
}

NOT_COMPARABLE = "From the paper (different images and masks; not comparable)"


@dataclass(frozen=True)
class Results:
    """The scores of one method.

    records: per picture, (n,) each, all optional but "psnr" and "bin" ("hole" with diversity,
        "tenth" for the tenths' layout): the scores OF_COMPLETIONS, with several samples those of
        the one of best PSNR. With several samples also "psnr_mean", "ssim_mean", ..., the mean over
        all samples of a picture, and OF_SAMPLES, the mean distance over all pairs of samples, as L1
        inside the hole ("diversity") and as LPIPS ("diversity_lpips"). Other keys, as "index", are
        passed on to the JSON.
    of_sets: {name of a bin: {score: value}} of the scores OF_SETS. Bins or scores that were not
        computed are left out.
    notes: sentences printed under the table, after the method's name.
    missing: {score: why, in two or three words, as "no weights"}; shown in the score's row instead
        of numbers.
    """

    records: Records
    of_sets: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    missing: Mapping[str, str] = field(default_factory=dict)


Methods = Mapping[str, "Results | Records"]  # bare records are results without scores of sets


@dataclass(frozen=True)
class _Line:
    """A score of a method in every column, for people."""

    score: str
    method: str
    cells: tuple[str, ...]


def text_table(methods: Methods, layout: str = "deterministic", quotation: Quotation | None = None) -> str:
    """Returns a Markdown table that also reads well in a terminal: for each score a line a method,
    a column a bin, and notes below.

    A score that no method has is left out. If only some lack it, they show "-" or the reason. All
    methods must have been scored on the same pairs.

    Args:
        layout: one of LAYOUTS.
        quotation: the paper's figures. Comparable ones are shown under ours, marked as quoted, and
            MAE is printed times ten, as there. Others follow in a separate block, under a heading
            that says so.

    Raises:
        ValueError: methods were not scored on the same pairs, or `of_sets` has a score that tables
            do not know.
        InputError: a method's name holds a tab or a line break.
    """
    rows = _rows_of_all(methods, layout)
    beside = quotation if quotation is not None and quotation.comparable else None
    bins = [row.bin for row in next(iter(rows.values()))]
    text = _markdown(bins, _lines(methods, rows, beside, "{mean} ± {interval}", lambda text: text.replace("|", r"\|"))) + _paragraphs(
        _notes(methods, rows, beside)
    )
    if quotation is None or beside is not None:
        return text
    apart = _markdown(list(dict.fromkeys(figure.bin for figure in quotation.figures)), _quoted_apart(quotation))
    return text + f"\n### {NOT_COMPARABLE}\n\n" + apart + _paragraphs(_notes_of_paper(quotation))


def latex_table(methods: Methods, layout: str = "deterministic", quotation: Quotation | None = None) -> str:
    """Returns the contents of `text_table` as LaTeX's own tabular (no package is needed). Notes are
    comments, and the marks are in the table.
    """
    rows = _rows_of_all(methods, layout)
    beside = quotation if quotation is not None and quotation.comparable else None
    bins = [row.bin for row in next(iter(rows.values()))]
    text = _tabular(bins, _lines(methods, rows, beside, "{mean} $\\pm$ {interval}", escape_latex)) + _comments(
        _notes(methods, rows, beside)
    )
    if quotation is None or beside is not None:
        return text
    apart = _tabular(list(dict.fromkeys(figure.bin for figure in quotation.figures)), _quoted_apart(quotation))
    return text + f"\n\\par\\medskip\\noindent\n{NOT_COMPARABLE}\n\\par\\noindent\n" + apart + _comments(_notes_of_paper(quotation))


def _rows_of_all(methods: Methods, layout: str) -> dict[str, list[Row]]:
    rows = {name: rows_of(results.records, layout, results.of_sets) for name, results in _results(methods).items()}
    shapes = {tuple((row.bin, row.images) for row in of_method) for of_method in rows.values()}
    holes = {results.records["hole"].tobytes() for results in _results(methods).values() if "hole" in results.records}
    if len(shapes) != 1 or len(holes) > 1:
        raise ValueError("methods side by side must be scored on the same pairs")
    return rows


def _results(methods: Methods) -> dict[str, Results]:
    if unprintable := [name for name in methods if not name.isprintable()]:
        raise InputError(f"the name of a method may hold neither tabs nor line breaks: {unprintable[0]!r}")
    return {name: of_method if isinstance(of_method, Results) else Results(of_method) for name, of_method in methods.items()}


def _lines(
    methods: Methods, rows: Mapping[str, Sequence[Row]], beside: Quotation | None, form: str, plain: Callable[[str], str] = str
) -> list[_Line]:
    """Returns every line of the table of our methods, with comparable figures of the paper among
    them. `plain` escapes text for the format.
    """
    results, first = _results(methods), next(iter(rows.values()))
    lines = [_Line("images", "", tuple(str(row.images) for row in first))]
    for score in SCORES:
        if score in NOT_PRINTED or not any(score in row.means or score in results[name].missing for name in rows for row in rows[name]):
            continue
        times_ten = beside is not None and score == "mae"
        label, factor = ("mae_x10", PRINTED_MAE) if times_ten else (score, 1)
        reasons = [results[name].missing.get(score) for name in rows]
        alike = len(rows) > 1 and len(set(reasons)) == 1 and not any(score in row.means for of_method in rows.values() for row in of_method)
        if alike and reasons[0] is not None:
            lines.append(_Line(label, "", tuple(plain(reasons[0]) if row.images else "-" for row in first)))
        else:
            for name, of_method in rows.items():
                reason = plain(results[name].missing.get(score, "-"))
                lines.append(_Line(label, plain(name), tuple(cell(row, score, factor, reason, form) for row in of_method)))
        if beside is not None:
            bins = [row.bin for row in first]
            lines += [
                _Line(label, f"{method} (quoted)", tuple(beside.printed(method, score, bin) or "-" for bin in bins))
                for method in beside.methods(score)
            ]
    return lines


def cell(row: Row, score: str, factor: int, reason: str, form: str) -> str:
    mean, interval = row.means.get(score), row.intervals.get(score, math.nan)
    if mean is None or math.isnan(mean):
        return reason if row.images else "-"
    digits = DIGITS.get(score, FEWER_DIGITS)
    if math.isnan(interval) or math.isinf(mean):
        return f"{factor * mean:.{digits}f}"
    return form.format(mean=f"{factor * mean:.{digits}f}", interval=f"{factor * interval:.{digits}f}")


def _quoted_apart(quotation: Quotation) -> list[_Line]:
    bins = list(dict.fromkeys(figure.bin for figure in quotation.figures))
    return [
        _Line(printed_name(score), method, tuple(quotation.printed(method, score, bin) or "-" for bin in bins))
        for score in dict.fromkeys(figure.score for figure in quotation.figures)
        for method in quotation.methods(score)
    ]


def printed_name(score: str) -> str:
    """Returns the name under which the paper's figures of a score are printed."""
    return "mae_x10" if score == "mae" else score


def _markdown(bins: Sequence[str], lines: Sequence[_Line]) -> str:
    return aligned(["score", "method", *bins], [[line.score, line.method, *line.cells] for line in lines], left=2)


def aligned(header: Sequence[str], body: Sequence[Sequence[str]], left: int) -> str:
    """Returns a Markdown table with aligned columns; the first `left` of them are text, the others
    numbers.
    """
    widths = [max(len(cell) for cell in column) for column in zip(header, *body, strict=True)]
    rule = "|".join([f":{'-' * (width + 1)}" if i < left else f"{'-' * (width + 1)}:" for i, width in enumerate(widths)])
    rows = [
        " | ".join(cell.ljust(width) if i < left else cell.rjust(width) for i, (cell, width) in enumerate(zip(cells, widths, strict=True)))
        for cells in (header, *body)
    ]
    return "\n".join([f"| {rows[0]} |", f"|{rule}|", *(f"| {line} |" for line in rows[1:])]) + "\n"


def _tabular(bins: Sequence[str], lines: Sequence[_Line]) -> str:
    header = " & ".join(["", "", *(bin.replace("-", "--").replace("%", r"\,\%") for bin in bins)])
    rows, before = [], None
    for line in lines:
        if line.score != before:
            rows.append(r"\hline")
        label = "" if line.score == before else _latex_label(line.score)
        rows.append(" & ".join([label, line.method, *line.cells]) + r" \\")
        before = line.score
    begin = rf"\begin{{tabular}}{{ll{'r' * len(bins)}}}"
    return "\n".join([begin, r"\hline", header + r" \\", *rows, r"\hline", r"\end{tabular}"]) + "\n"


def _latex_label(score: str) -> str:
    if score in LATEX_LABELS or not score.endswith("_mean"):
        return LATEX_LABELS.get(score, escape_latex(score))
    return f"{LATEX_LABELS[score.removesuffix('_mean')]} (mean of samples)"


def escape_latex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)


def _paragraphs(notes: Sequence[str]) -> str:
    return "".join(f"\n{note}\n" for note in notes)


def _comments(notes: Sequence[str]) -> str:
    return "".join(f"% {line}\n" for note in notes for line in note.splitlines())


def _notes(methods: Methods, rows: Mapping[str, Sequence[Row]], beside: Quotation | None) -> list[str]:
    notes = [
        f"{name}: {of_method[-1].identical} of {counted(of_method[-1].images, 'result')} equal the photo; "
        "their infinite PSNR is left out of the means."
        for name, of_method in rows.items()
        if of_method[-1].identical
    ]
    every_row = [row for of_method in rows.values() for row in of_method]
    if any(not math.isnan(interval) for row in every_row for interval in row.intervals.values()):
        notes.append(
            "± is half of the 95 % interval of the mean over pictures, 1.96 s / sqrt(n) (normal approximation; s: standard deviation)."
        )
    if any("psnr_mean" in row.means for row in every_row):
        notes.append("Of several samples of a picture the one of best PSNR is scored; scores that end in _mean are means over all samples.")
    if any("border_psnr" in row.means for row in every_row):
        notes.append(
            f"border_psnr and border_mae are over a ring of {BORDER} pixels on either side of the hole's border; where the known pixels "
            "are the photo's own, all differences lie on the inner side. Infinite values are left out of the mean of border_psnr."
        )
    if any("fid_clean" in row.means for row in every_row):
        notes.append(
            "fid has pytorch-fid's resizing (bilinear, without antialiasing), as most papers; fid_clean has clean-fid's (Pillow's bicubic, "
            "antialiased). They are two scores: compare neither with the other."
        )
    few = {f"{row.bin} ({row.images})": None for row in every_row if "fid" in row.means and row.images < FID_RELIABLE}
    if few:
        notes.append(f"Warning: FID over fewer than {FID_RELIABLE:,} images depends on their number: {', '.join(few)}.")
    notes += [f"{name}: {note}" for name, results in _results(methods).items() for note in results.notes]
    return notes + (_notes_of_paper(beside) if beside is not None else [])


def _notes_of_paper(quotation: Quotation) -> list[str]:
    if quotation.comparable:
        first = f"(quoted): {quotation.source}, figures as printed, on other pairs of image and mask (the paper's are unpublished)."
    else:
        first = f"{quotation.source}, figures as printed. What differs: {'; '.join(quotation.differences)}."
    if any(figure.score == "mae" for figure in quotation.figures):
        first += f" mae_x10 is MAE times {PRINTED_MAE}, as the paper prints it."
    return [first, *quotation.notes]


def diversity_in_words(records: Records, samples: int) -> str:
    """Says in one line how far apart a photo's completions are, on average, and over how many
    photos.
    """
    pictures = int(has_score("diversity", records).sum())
    if not pictures:
        return "mean pairwise distance between samples inside the hole: not defined, no picture has a hole\n"
    mean = rows_of(records)[-1].means["diversity"]
    return (
        f"mean pairwise distance between samples inside the hole: {mean:.4f} "
        f"(of 1; over {counted(pictures, 'picture')}, {counted(samples, 'sample')} each)\n"
    )


def tsv_table(methods: Methods, layout: str = "deterministic", quotation: Quotation | None = None) -> str:
    """Returns one line a method and bin, unrounded, for programs to read; missing scores are "nan".

    After the scores come half of their 95 % intervals (psnr_ci95, ...) and, last, the source:
    measured, quoted (the paper's figures, as printed), or "quoted, not comparable".
    """
    rows = {name: rows_of(results.records, layout, results.of_sets) for name, results in _results(methods).items()}
    every_row = [row for of_method in rows.values() for row in of_method]
    scores = [score for score in SCORES if any(score in row.means for row in every_row)]
    with_interval = [score for score in scores if score in OF_PICTURES]
    figures = [] if quotation is None else quotation.figures
    quoted_scores = list(dict.fromkeys(printed_name(figure.score) for figure in figures))
    columns = scores + [score for score in quoted_scores if score not in scores]

    lines = [["method", "hole", "images", "identical", *columns, *(f"{score}_ci95" for score in with_interval), "source"]]
    for name, of_method in rows.items():
        for row in of_method:
            values = dict(row.means)
            if "mae" in values:
                values["mae_x10"] = PRINTED_MAE * values["mae"]
            numbers = [values.get(score, math.nan) for score in columns] + [row.intervals.get(s, math.nan) for s in with_interval]
            lines.append([name, row.bin, str(row.images), str(row.identical), *map(repr, numbers), "measured"])
    if quotation is not None:
        source = "quoted" if quotation.comparable else "quoted, not comparable"
        for method, bin in dict.fromkeys((figure.method, figure.bin) for figure in figures):
            printed = {printed_name(f.score): f.printed for f in figures if (f.method, f.bin) == (method, bin)}
            cells = [printed.get(score, "nan") for score in columns] + ["nan"] * len(with_interval)
            lines.append([f"{method} (quoted)", bin, "nan", "nan", *cells, source])
    return "\n".join("\t".join(line) for line in lines) + "\n"


def as_json(methods: Methods, about: Mapping[str, Any], layout: str = "deterministic", quotation: Quotation | None = None) -> str:
    """Returns everything as JSON: what was evaluated, rows, every picture's scores, notes, the
    paper's figures. Infinite or missing numbers are null.
    """
    results = _results(methods)
    content: dict[str, Any] = {
        "about": dict(about),
        "layout": layout,
        "rows": {name: [_row_as_json(row) for row in rows_of(r.records, layout, r.of_sets)] for name, r in results.items()},
        "notes": {name: list(r.notes) for name, r in results.items() if r.notes},
        "missing": {name: dict(r.missing) for name, r in results.items() if r.missing},
        "images": {
            name: {key: [v if isinstance(v, str) else _number(v) for v in values.tolist()] for key, values in r.records.items()}
            for name, r in results.items()
        },
    }
    if quotation is not None:
        content["paper"] = _quotation_as_json(quotation)
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _row_as_json(row: Row) -> dict[str, Any]:
    numbers = {"hole": row.bin, "images": row.images, "identical": row.identical, **_plain(row.means)}
    return numbers | {"ci95": _plain(row.intervals)}


def _quotation_as_json(quotation: Quotation) -> dict[str, Any]:
    return {
        "heading": "quoted" if quotation.comparable else NOT_COMPARABLE,
        "comparable": quotation.comparable,
        "source": quotation.source,
        "differences": list(quotation.differences),
        "notes": list(quotation.notes),
        "mae_printed_times": PRINTED_MAE,
        "figures": [{"method": f.method, "score": f.score, "hole": f.bin, "printed": f.printed} for f in quotation.figures],
    }


def _plain(means: Mapping[str, float]) -> dict[str, float | None]:
    return {score: _number(value) for score, value in means.items()}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
