"""Measures whether a test's holes are of the kind that a model was trained on.

A model that has seen strokes alone completes rectangles badly, and scores of such a test say more
about the masks than about the model. Three things are measured on some masks of each side: the
share of the photo that is hole, whether the hole touches the photo's border, and whether it is a
solid rectangle.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spn_jax.config import Config
from spn_jax.data.masks import DRAWN, MaskSource, open_train_masks
from spn_jax.errors import InputError

MEASURED = 120  # masks from training and from the test each, evenly chosen
SOLID = 0.95  # share of its bounding box that a rectangular hole fills; strokes stay below
# the test's holes count as larger (or smaller) if this share of them lies beyond nearly all of
# training's
OUTSIDE = 0.25
APART = 0.4  # difference of two shares of masks that counts as a difference in kind
DRAWN_NAMES = {"strokes": "drawn strokes", "objects": "drawn shapes of objects", "drawn": "drawn strokes and shapes of objects"}


@dataclass(frozen=True)
class MaskKind:
    """Measurements of some masks.

    source: "drawn strokes", or the path of the masks.
    shares: share of the photo that is hole, (n,).
    at_border, rectangles: share of the masks whose hole touches the photo's border, or is a solid
    rectangle.
    """

    source: str
    shares: np.ndarray
    at_border: float
    rectangles: float

    def __str__(self) -> str:
        low, middle, high = (f"{100 * share:.0f}" for share in np.quantile(self.shares, (0.05, 0.5, 0.95)))
        border, solid = f"{100 * self.at_border:.0f}", f"{100 * self.rectangles:.0f}"
        return f"holes of {low}-{high} %, median {middle} %, {border} % of them at the border, {solid} % rectangles"


def measure(masks: MaskSource, indices: Sequence[int] | np.ndarray, spec: str) -> MaskKind:
    """Measures at most MEASURED of the masks with these numbers; `spec` is the setting they come
    from.
    """
    chosen = np.unique(np.linspace(0, len(indices) - 1, min(MEASURED, len(indices))).astype(int))
    holes = [masks.load(int(indices[i]))[..., 0] > 0 for i in chosen]
    return MaskKind(
        source=DRAWN_NAMES.get(spec, spec),
        shares=np.array([hole.mean() for hole in holes]),
        at_border=float(np.mean([touches_border(hole) for hole in holes])),
        rectangles=float(np.mean([is_rectangle(hole) for hole in holes])),
    )


def touches_border(hole: np.ndarray) -> bool:
    """Returns whether a hole (h, w) reaches the first or last row or column."""
    return bool(hole[[0, -1]].any() or hole[:, [0, -1]].any())


def is_rectangle(hole: np.ndarray) -> bool:
    """Returns whether a hole (h, w) fills its bounding box."""
    rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
    if not len(rows):
        return False
    return bool(hole[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].mean() >= SOLID)


def differences(trained: MaskKind, tested: MaskKind) -> list[str]:
    """Lists, a clause each, how the test's masks differ in kind from training's."""
    low, high = np.quantile(trained.shares, (0.01, 0.99))
    larger, smaller = float(np.mean(tested.shares > high)), float(np.mean(tested.shares < low))
    rectangles, border = tested.rectangles - trained.rectangles, tested.at_border - trained.at_border
    found = {
        f"{100 * larger:.0f} % of the holes are larger than nearly all in training": larger > OUTSIDE,
        f"{100 * smaller:.0f} % of the holes are smaller than nearly all in training": smaller > OUTSIDE,
        "rectangles in place of irregular holes": rectangles > APART,
        "irregular holes in place of rectangles": rectangles < -APART,
        "more holes reach the border": border > APART,
        "fewer holes reach the border": border < -APART,
    }
    return [clause for clause, differs in found.items() if differs]


def mask_note(name: str, trained: Config, tested: Config, masks: MaskSource, indices: Sequence[int] | np.ndarray) -> str | None:
    """Returns a sentence if the test's masks are not of the kind that the model `name` was trained
    on, else None.

    Args:
        trained, tested: the settings of the training run and of the evaluation.
        masks, indices: the test's masks, and the mask number of each photo.
    """
    before, now = trained.data.train_masks, tested.data.test_masks
    if before == now:
        return None
    try:
        training_masks = open_train_masks(trained)
        kinds = measure(training_masks, range(len(training_masks)), before), measure(masks, indices, now)
    except InputError:
        return (
            f"masks: {name} was trained on those of {before}, which cannot be read here; whether the test's are of their kind is not known"
        )
    sources = f"{name} was trained on {kinds[0].source} ({kinds[0]}) and is tested on {kinds[1].source} ({kinds[1]})"
    if clauses := differences(*kinds):
        return f"the masks differ in kind from training's, {', '.join(clauses)}: {sources}"
    if {before, now} & DRAWN.keys():
        return f"the masks are of another source than training's, in size and place of the holes alike: {sources}"
    return None
