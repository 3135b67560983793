"""Which mask each test photo gets: drawn once for a seed, so that every method is scored on the same pairs."""

import hashlib

import numpy as np


def draw_pairs(photos: int, masks: int, seed: int) -> np.ndarray:
    """The mask index of each photo, int32 (photos,); no mask comes twice before all have come once.

    The first n pairs are the same for any number of photos, and the order is one of hashes: no version of a random
    number generator can change published pairs.
    """
    rounds = -(-photos // masks)
    order = [index for r in range(rounds) for index in _shuffled(masks, f"{seed} {r}")]
    return np.array(order[:photos], np.int32)


def _shuffled(count: int, key: str) -> list[int]:
    return sorted(range(count), key=lambda index: hashlib.sha256(f"{key} {index}".encode()).digest())


def ratios_for_bins(ratios: np.ndarray, mask_indices: np.ndarray, ordered: bool) -> np.ndarray:
    """The hole ratios by which pictures are sorted into rows, from the measured ones (n,).

    In a set laid out as the paper's (`ordered`) mask i belongs to the bin i // 2000 of 10 % each, whatever is left of its hole
    after resizing to the test's size (51 of the paper's leave it by under 0.002). Elsewhere the measured ratio decides.
    """
    if not ordered:
        return ratios
    bins = mask_indices // 2000
    return np.clip(ratios, bins / 10 + 1e-6, (bins + 1) / 10)
