"""Draws which mask each photo gets, for a list to be published."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from spn_jax.config import Config, apply_overrides
from spn_jax.data.images import existing_path, open_photos, read_list
from spn_jax.data.mask_check import check_masks
from spn_jax.data.masks import MaskSource, open_test_masks
from spn_jax.evaluation.pairs import PairList, draw_pairs, draw_pairs_per_bin, make_pair_list


def draw_pair_list(photos: str, masks: str, *, seed: int, per_bin: bool, overrides: Sequence[str]) -> PairList:
    """Draws a mask for each photo, none twice before all have come once.

    Args:
        photos: a folder, a list (whose files need not exist) or ArrayRecord.
        masks: as data.test_masks.
        per_bin: draw equally many masks from each ten-percent bin of hole ratio.
        overrides: settings of data, as section.key=value.

    Raises:
        InputError: photos or masks cannot be read, or a mask has no hole.
    """
    config = apply_overrides(Config(), [*overrides, f"data.test_masks={masks}"])
    source = open_test_masks(config)
    names = photo_names(photos)
    if per_bin:
        bins = source.tenths(np.arange(len(source)))
        chosen = draw_pairs_per_bin(len(names), measured_tenths(source) if bins is None else bins, seed)
    else:
        chosen = draw_pairs(len(names), len(source), seed)
    # A mask without a hole must not get into a published list, since no evaluation takes it.
    check = check_masks(source, config.data.threads, chosen)
    if check is not None and (question := check.question(config.data)):
        print(f"{masks}: {question}", flush=True)
    return make_pair_list(names, source.names, chosen, f"seed {seed}, {'per bin' if per_bin else 'from the whole set'}")


def photo_names(path: str) -> Sequence[str]:
    """Returns the names of the photos at `path`; those of a list need not exist."""
    if Path(path).suffix.lower() == ".flist":
        return read_list(existing_path(path, "--photos"), "--photos", "")[0]
    return open_photos(path, "--photos").names


def measured_tenths(masks: MaskSource) -> np.ndarray:
    """Returns the ten-percent bin of each mask by its hole share, -1 if it has none."""
    shares = np.array([masks.load(i).mean(dtype=np.float64) for i in range(len(masks))])
    return np.ceil(np.round(10 * shares, 9)).astype(int) - 1
