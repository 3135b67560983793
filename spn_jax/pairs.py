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
