"""Shows a set of masks by the share of the hole and by whether it touches the border."""

import argparse
import dataclasses
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from spn_jax.config import Config, apply_overrides, load_config
from spn_jax.data.masks import DRAWN, MaskSource, open_test_masks
from spn_jax.drawing.sheet import Cell, Row, sheet
from spn_jax.errors import InputError
from spn_jax.evaluation import gallery
from spn_jax.settings import help_text

CONTACT = {True: "touches\nthe border", False: "does not"}
CELL = 128  # pixels of a mask on the page
PAPER_TENTHS = 6  # number of columns that are always shown; others only if the set has such masks


def add(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    add = parser.add_argument
    add("--masks", help=f"folder, .flist, .zip, or one of the words {', '.join(DRAWN)}; data.test_masks if not given")
    add("--config", help="where data.* come from")
    add("--image-size", type=int, default=256, metavar="P", help="masks are brought to P x P pixels (default 256)")
    add("--measured", type=int, default=3000, metavar="N", help="masks that are measured, evenly chosen from the set (default 3000)")
    add("--examples", type=int, default=2, metavar="N", help="masks shown of each kind (default 2)")
    add("overrides", nargs="*", metavar="data.key=value", help="for instance data.invert_masks=true, see below")
    parser.epilog = help_text(Config, "data.test_masks", "data.invert_masks", "data.mask_fit", "data.crop", "data.seed")


@dataclasses.dataclass(frozen=True)
class Measured:
    """Measurements of some masks of a set, (n,) each."""

    numbers: np.ndarray  # the masks' numbers in the set
    ratios: np.ndarray  # share of the hole
    touching: np.ndarray  # whether a pixel of the hole lies on the border

    @property
    def tenths(self) -> np.ndarray:
        """0 for (0, 10 %], ..., 9 for (90, 100 %]; -1 where resizing lost the hole."""
        return np.ceil(np.round(10 * self.ratios, 9)).astype(int) - 1


def draw(options: argparse.Namespace) -> np.ndarray:
    """Draws examples and counts of masks for each tenth of hole ratio, with and without contact to
    the border.
    """
    if min(options.image_size, options.measured, options.examples) < 1:
        raise InputError("--image-size, --measured and --examples must be at least 1")
    given = [f"data.test_masks={options.masks}"] if options.masks else []
    config = apply_overrides(load_config(options.config) if options.config else Config(), [*options.overrides, *given])
    # The masks have a size of their own, since no network requires another.
    masks = open_test_masks(dataclasses.replace(config, data=dataclasses.replace(config.data, image_size=options.image_size)))
    found = measure(masks, options.measured)
    tenths = sorted({*range(PAPER_TENTHS), *found.tenths.tolist()})
    rows = [row for contact, label in CONTACT.items() for row in rows_of(masks, found, tenths, contact, label, options.examples)]
    which = f"The {len(masks):,}" if len(found.numbers) == len(masks) else f"{len(found.numbers):,} (evenly chosen) of the {len(masks):,}"
    text = (
        f"{which} masks of {config.data.test_masks} at {options.image_size} x {options.image_size} pixels; white is the hole. Columns: its "
        f"measured share of the picture. Numbers: masks of each kind. {found.touching.mean():.0%} of the holes touch the border; "
        f"their mean share is {found.ratios.mean():.0%}."
    )
    return sheet(rows, [f"{10 * t}-{10 * t + 10} %" if t >= 0 else "no hole" for t in tenths], text, cell=CELL)


def rows_of(masks: MaskSource, found: Measured, tenths: list[int], contact: bool, label: str, examples: int) -> list[Row]:
    """Returns examples of masks with or without contact to the border, with the count of each tenth
    under its last one.
    """
    kinds = [found.numbers[(found.tenths == tenth) & (found.touching == contact)] for tenth in tenths]
    columns = []
    for kind in kinds:
        shown = [kind[place] for place in gallery.spread(len(kind), examples)] if len(kind) else []
        cells = [Cell(np.repeat(255 * masks.load(int(number)), 3, axis=-1)) for number in shown]
        cells += [Cell(None)] * (examples - len(cells))
        columns.append([*cells[:-1], dataclasses.replace(cells[-1], note=f"{len(kind):,}")])
    return [Row([cells[i] for cells in columns], label if i == 0 else "") for i in range(examples)]


def measure(masks: MaskSource, count: int) -> Measured:
    """Measures the requested number of masks, evenly chosen from all."""
    numbers = gallery.spread(len(masks), count)

    def of(number: int) -> tuple[float, bool]:
        mask = masks.load(number)[..., 0]
        return float(mask.mean(dtype=np.float64)), bool(mask[[0, -1]].any() or mask[:, [0, -1]].any())

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        ratios, touching = zip(*pool.map(of, numbers), strict=True)
    return Measured(np.array(numbers), np.array(ratios), np.array(touching))
