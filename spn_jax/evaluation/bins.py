"""Averages scores of pictures by hole ratio, in the bins of the paper's tables.

Records are the scores of n pictures: {"psnr": array (n,), "ssim": ..., "hole": measured ratio,
"bin": name of its bin in the paper's layout, "tenth": name of its ten-percent bin}. `bins_of` gives
the names. Identical pictures (for example with an empty mask) have an infinite PSNR, which would
make every mean infinite. So means of PSNR are over the finite values, and the number left out is
stated; such pictures count in all else. If all are identical, the mean is infinite. Diversity,
which only methods with several samples have, is averaged over the pictures that have a hole.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

Records = Mapping[str, np.ndarray]

# Scores of one completion; of all samples of a picture together; of a set of pictures.
OF_COMPLETIONS = ("psnr", "ssim", "ssim_gaussian", "mae", "mae_rgb", "hole_mae", "border_psnr", "border_mae", "lpips_alex", "lpips_vgg")
OF_SAMPLES = ("diversity", "diversity_lpips")
OF_PICTURES = (*OF_COMPLETIONS, *(f"{score}_mean" for score in OF_COMPLETIONS), *OF_SAMPLES)
OF_SETS = ("fid", "fid_clean", "kid", "kid_std", "p_ids", "u_ids")
SCORES = (*OF_COMPLETIONS, *OF_SETS, *OF_PICTURES[len(OF_COMPLETIONS) :])
IN_THE_HOLE = (*OF_SAMPLES, "hole_mae", "border_psnr", "border_mae", "hole_mae_mean", "border_psnr_mean", "border_mae_mean")

NORMAL_95 = 1.96  # number of standard errors on either side that hold 95 % of a normal distribution


@dataclass(frozen=True)
class Bin:
    """Hole ratios in (above, up_to]."""

    name: str
    above: float
    up_to: float
    # a column of the layout, shown even when empty; the others are shown where they have pictures
    always: bool

    def holds(self, ratios: np.ndarray) -> np.ndarray:
        return (ratios > self.above) & (ratios <= self.up_to)


@dataclass(frozen=True)
class Layout:
    """Bins that partition all hole ratios, and then "All".

    key: the records' key for the name of each picture's bin.
    """

    key: str
    bins: tuple[Bin, ...]


ALL = Bin("All", -1.0, 1.0, always=True)


def _layout(key: str, inner: Sequence[Bin]) -> Layout:
    return Layout(key, (Bin("0%", -1.0, 0.0, always=False), *inner, Bin("60-100%", 0.6, 1.0, always=False), ALL))


def _paper_bins(all_always: bool) -> list[Bin]:
    return [Bin("0-20%", 0.0, 0.2, all_always), Bin("20-40%", 0.2, 0.4, True), Bin("40-60%", 0.4, 0.6, True)]


LAYOUTS = {
    "deterministic": _layout("bin", _paper_bins(False)),  # the columns of Table 1
    "probabilistic": _layout("bin", _paper_bins(True)),  # the columns of Table 2
    "tenths": _layout("tenth", [Bin(f"{10 * i}-{10 * i + 10}%", i / 10, (i + 1) / 10, True) for i in range(6)]),
}


def bins_of(ratios: np.ndarray, tenths: np.ndarray | None = None, layout: str = "deterministic") -> np.ndarray:
    """Returns the name of each picture's bin, except "All".

    Args:
        ratios: measured shares of the hole, (n,).
        tenths: (n,), if given, decide instead of the ratios: tenth t holds the hole ratios in (t /
            10, (t + 1) / 10].
        layout: one of LAYOUTS; the paper's two have the same bins.
    """
    deciding = ratios if tenths is None else (tenths + 1) / 10
    bins = [bin for bin in LAYOUTS[layout].bins if bin is not ALL]
    return np.array([bin.name for bin in bins])[np.argmax([bin.holds(deciding) for bin in bins], axis=0)]


@dataclass(frozen=True)
class Row:
    """Scores of one method over the pictures of one bin: means (NaN without pictures) and set
    scores.

    intervals: half of the 95 % interval of each mean, by the normal approximation 1.96 s / sqrt(n)
        with the sample's standard deviation s; NaN for fewer than two pictures. Scores of sets have
        none.
    """

    bin: str
    images: int
    identical: int  # number of pictures of infinite PSNR, left out of its mean
    means: Mapping[str, float]
    intervals: Mapping[str, float] = field(default_factory=dict)


def rows_of(records: Records, layout: str = "deterministic", of_sets: Mapping[str, Mapping[str, float]] | None = None) -> list[Row]:
    """Returns the rows of one method. All but the last, "All", partition the pictures. Some bins of
    the layout are shown even without pictures.

    Raises:
        ValueError: `of_sets` has a score that tables do not know.
    """
    rows = []
    of_sets = {} if of_sets is None else of_sets
    names = records[LAYOUTS[layout].key]
    for bin in LAYOUTS[layout].bins:
        chosen = np.ones(len(names), bool) if bin is ALL else names == bin.name
        if not bin.always and not chosen.any():
            continue
        values = {score: records[score][chosen & has_score(score, records)] for score in OF_PICTURES if score in records}
        means = {score: _mean(v) for score, v in values.items()} | dict(of_sets.get(bin.name, {}))
        if unknown := [score for score in means if score not in SCORES]:
            raise ValueError(f"{unknown} are no scores that tables know")
        in_order = {score: means[score] for score in SCORES if score in means}
        intervals = {score: _interval(v) for score, v in values.items()}
        rows.append(Row(bin.name, int(chosen.sum()), int(np.isposinf(records["psnr"][chosen]).sum()), in_order, intervals))
    return rows


def has_score(score: str, records: Records) -> np.ndarray:
    """Returns which pictures a mean is over, (n,). Scores inside the hole or at its border need a
    hole.
    """
    if score not in IN_THE_HOLE:
        return np.ones(len(records["bin"]), bool)
    of_border = score.startswith("border")
    return (records["hole"] > 0) & ((records["hole"] < 1) | (not of_border))


def _mean(values: np.ndarray) -> float:
    if not len(values):
        return math.nan
    finite = values[~np.isposinf(values)]
    return float(np.mean(finite, dtype=np.float64)) if len(finite) else math.inf


def _interval(values: np.ndarray) -> float:
    finite = values[~np.isposinf(values)]
    return float(NORMAL_95 * np.std(finite, ddof=1, dtype=np.float64) / math.sqrt(len(finite))) if len(finite) > 1 else math.nan
