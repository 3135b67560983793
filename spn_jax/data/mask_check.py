"""Reads every mask of a set once, so that a broken one is found before the work begins.

A set without broken masks is remembered in the user's cache folder, by names, sizes and
modification times of its files, so that the next start does not read it again.
"""

import contextlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spn_jax.config import DataConfig
from spn_jax.data.images import digest
from spn_jax.data.masks import MaskSource
from spn_jax.errors import InputError, counted, first_few
from spn_jax.runtime.files import write_atomically
from spn_jax.runtime.progress import Progress

FORMAT = 1
REMEMBERED = 200  # newest sets, in a file of some hundred bytes each
MANY = 1000  # number of masks from which on the progress of reading is printed
LARGE_SHARE = 0.6  # mean share of the photo that is hole above which the masks look inverted


@dataclass(frozen=True)
class MaskCheck:
    """The result of reading all masks of a set.

    masks: number of masks read.
    mean_share: mean share of the photo that is hole, in [0, 1].
    """

    masks: int
    mean_share: float

    def question(self, data: DataConfig) -> str | None:
        """Returns a question to the user if the holes are so large that the masks may be inverted,
        else None.
        """
        if self.mean_share <= LARGE_SHARE:
            return None
        colour, remedy = ("white", "false") if data.invert_masks else ("black", "true")
        return (
            f"the hole is {self.mean_share:.0%} of the photo on average, which is unusually large: "
            f"are the holes {colour} in the mask files? If they are, set data.invert_masks={remedy}"
        )


def check_masks(masks: MaskSource, threads: int, indices: Sequence[int] | np.ndarray | None = None) -> MaskCheck | None:
    """Reads all masks, or those with the numbers `indices`.

    Args:
        threads: number of threads that read.

    Returns:
        None for drawn masks, which cannot be broken.

    Raises:
        InputError: some masks cannot be used. One error covers all, with the reason of the first.
    """
    state = masks.state()
    if state is None:
        return None
    numbers = np.arange(len(masks)) if indices is None else np.unique(indices)
    memory = cache_folder() / f"{digest([str(FORMAT), state, *map(str, numbers)])[:32]}.json"
    if (remembered := _recall(memory)) is not None:
        return remembered

    progress = Progress(0, len(numbers), unit="masks") if len(numbers) >= MANY else None
    if progress is not None:
        print(f"checking {len(numbers):,} masks, which is done once for these files", flush=True)

    def share_of(number: int) -> float | InputError:
        try:
            return float(masks.load(number).mean(dtype=np.float64))
        except InputError as error:
            return error
        finally:
            if progress is not None:
                progress.add(1)

    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(share_of, numbers.tolist()))
    broken = {int(number): wrong for number, wrong in zip(numbers, found, strict=True) if isinstance(wrong, InputError)}
    if broken:
        first, *others = broken
        more = (
            f" ({counted(len(others), 'more mask')} cannot be used: {first_few([masks.names[number] for number in others])})"
            if others
            else ""
        )
        raise InputError(f"{broken[first]}{more}") from broken[first].__cause__
    check = MaskCheck(len(found), float(np.mean([share for share in found if not isinstance(share, InputError)])))
    _remember(memory, check)
    return check


def cache_folder() -> Path:
    """Returns the folder where checked sets are remembered, part of the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "spn_jax" / "masks"


def _recall(path: Path) -> MaskCheck | None:
    with contextlib.suppress(OSError, ValueError, TypeError):
        return MaskCheck(**json.loads(path.read_text(encoding="utf-8")))
    return None


def _remember(path: Path, check: MaskCheck) -> None:
    # This is only a cache: where it cannot be written, the next start reads the masks again.
    with contextlib.suppress(OSError, InputError):
        write_atomically(path, json.dumps({"masks": check.masks, "mean_share": check.mean_share}) + "\n")
        newest = sorted(path.parent.glob("*.json"), key=lambda file: file.stat().st_mtime, reverse=True)
        for old in newest[REMEMBERED:]:
            old.unlink(missing_ok=True)
