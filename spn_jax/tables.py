"""Scores by hole ratio: the paper's rows, several methods side by side, as text, TSV and JSON.

Records are what n pictures scored: {"psnr": array (n,), "ssim": ..., "mae": ..., "hole": measured ratio, "bin": name of its row}.
Identical pictures have an infinite PSNR (a mask without a hole, for one). It would make every mean infinite, so means of
PSNR are over the finite values and the number left out is stated; such pictures count in all else. If all are identical,
the mean is infinite. Diversity, which only methods with several samples have, is the mean over the pictures that have a hole.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Records = Mapping[str, np.ndarray]

SCORES = ("psnr", "ssim", "mae", "hole_mae", "diversity")
PRINTED = {"psnr": 2, "ssim": 4, "mae": 4, "diversity": 4}  # score: digits in the text table; files have all scores and digits


@dataclass(frozen=True)
class Bin:
    """Hole ratios in (above, up_to]."""

    name: str
    above: float
    up_to: float
    always: bool  # a row of the paper, shown even when empty; the others are shown where they have pictures

    def holds(self, ratios: np.ndarray) -> np.ndarray:
        return (ratios > self.above) & (ratios <= self.up_to)


BINS = (
    Bin("0%", -1.0, 0.0, always=False),
    Bin("0-20%", 0.0, 0.2, always=False),
    Bin("20-40%", 0.2, 0.4, always=True),
    Bin("40-60%", 0.4, 0.6, always=True),
    Bin("60-100%", 0.6, 1.0, always=False),
    Bin("All", -1.0, 1.0, always=True),
)


ALL = BINS[-1]


def bins_of(ratios: np.ndarray, tenths: np.ndarray | None = None) -> np.ndarray:
    """The name of the row each picture belongs to, all but "All".

    Args:
        ratios: measured share of the hole, (n,).
        tenths: where given, (n,), these decide and not the ratios: tenth t is the hole ratios in (t / 10, (t + 1) / 10].
    """
    deciding = ratios if tenths is None else (tenths + 1) / 10
    bins = [bin for bin in BINS if bin is not ALL]
    return np.array([bin.name for bin in bins])[np.argmax([bin.holds(deciding) for bin in bins], axis=0)]


@dataclass(frozen=True)
class Row:
    """Means of one method over the pictures of one bin; NaN where there are none."""

    bin: str
    images: int
    identical: int  # pictures of infinite PSNR, left out of its mean
    means: Mapping[str, float]


def rows_of(records: Records) -> list[Row]:
    """The rows of one method; all but the last, "All", share the pictures out among them."""
    rows = []
    for bin in BINS:
        chosen = np.ones(len(records["bin"]), bool) if bin is ALL else records["bin"] == bin.name
        if bin.always or chosen.any():
            means = {score: _mean(records[score][chosen & _counts(score, records)]) for score in SCORES if score in records}
            rows.append(Row(bin.name, int(chosen.sum()), int(np.isposinf(records["psnr"][chosen]).sum()), means))
    return rows


def _counts(score: str, records: Records) -> np.ndarray:
    """Which pictures a mean is over, (n,): where there is no hole, completions cannot differ."""
    return records["hole"] > 0 if score == "diversity" else np.ones(len(records["bin"]), bool)


def _mean(values: np.ndarray) -> float:
    if not len(values):
        return math.nan
    finite = values[~np.isposinf(values)]
    return float(np.mean(finite, dtype=np.float64)) if len(finite) else math.inf


def text_table(methods: Mapping[str, Records]) -> str:
    """A Markdown table that also reads well in a terminal: a line a bin, for each score a column a method.

    A score that no method has is left out; one that some do not have is "-" there. All methods must have been scored on the same pairs.
    """
    rows = {name: rows_of(records) for name, records in methods.items()}
    first = next(iter(rows.values()))
    if any([(r.bin, r.images) for r in other] != [(r.bin, r.images) for r in first] for other in rows.values()):
        raise ValueError("methods side by side must be scored on the same pairs")
    scores = [score for score in PRINTED if any(score in other[0].means for other in rows.values())]
    header = ["hole", "images", *(f"{score} {name}" for score in scores for name in rows)]
    body = [
        [row.bin, str(row.images), *(_cell(rows[name][i].means.get(score), PRINTED[score]) for score in scores for name in rows)]
        for i, row in enumerate(first)
    ]
    return "\n".join([*_aligned(header, body), *_notes(rows)]) + "\n"


def _cell(mean: float | None, digits: int) -> str:
    return "-" if mean is None else f"{mean:.{digits}f}"


def _aligned(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(header, *body, strict=True)]
    lines = [" | ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)) for cells in (header, *body)]
    rule = "|".join("-" * (width + 1) + ":" for width in widths)
    return [f"| {lines[0]} |", f"|{rule}|", *(f"| {line} |" for line in lines[1:])]


def _notes(rows: Mapping[str, Sequence[Row]]) -> list[str]:
    notes = []
    for name, of_method in rows.items():
        total = of_method[-1]
        if total.identical:
            notes.append(
                f"{name}: {total.identical} of {total.images} results equal the photo; their infinite PSNR is left out of the means."
            )
    return ["", *notes] if notes else []


def diversity_in_words(records: Records, samples: int) -> str:
    """One line: how far apart the completions of a photo are, on average, and over how many photos."""
    pictures = int(_counts("diversity", records).sum())
    if not pictures:
        return "mean pairwise distance between samples inside the hole: not defined, no picture has a hole\n"
    mean = rows_of(records)[-1].means["diversity"]
    return (
        f"mean pairwise distance between samples inside the hole: {mean:.4f} "
        f"(of 1; over {pictures} picture{'' if pictures == 1 else 's'}, {samples} samples each)\n"
    )


def tsv_table(methods: Mapping[str, Records]) -> str:
    """One line a method and bin, unrounded, for programs to read; "nan" for a score that a method does not have."""
    scores = [score for score in SCORES if any(score in records for records in methods.values())]
    lines = ["\t".join(["method", "hole", "images", "identical", *scores])]
    for name, records in methods.items():
        for row in rows_of(records):
            means = (repr(row.means.get(score, math.nan)) for score in scores)
            lines.append("\t".join([name, row.bin, str(row.images), str(row.identical), *means]))
    return "\n".join(lines) + "\n"


def as_json(methods: Mapping[str, Records], about: Mapping[str, Any]) -> str:
    """Everything: what was evaluated, the rows, and every picture's scores. Infinite or missing numbers are null."""
    content = {
        "about": dict(about),
        "rows": {
            name: [{"hole": r.bin, "images": r.images, "identical": r.identical, **_plain(r.means)} for r in rows_of(records)]
            for name, records in methods.items()
        },
        "images": {
            name: {key: [v if isinstance(v, str) else _number(v) for v in values.tolist()] for key, values in r.items()}
            for name, r in methods.items()
        },
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _plain(means: Mapping[str, float]) -> dict[str, float | None]:
    return {score: _number(value) for score, value in means.items()}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
