"""Checkpoints of tiny models that fill holes, and photos with a hole."""

import dataclasses
from pathlib import Path

import numpy as np

from spn_jax.checkpoint import Checkpoints
from spn_jax.config import to_dict
from spn_jax.parameters import named_arrays, with_named_arrays
from tests.tiny import CHANNELS, new_state, tiny

KINDS = {
    "spn": (),
    "spn-probabilistic": ("model.variational=true", "model.latent_channels=4", "model.discriminator=instance_norm"),
}
SIGMA = "prior_learner.variational.sigma.bias"
HEIGHT, WIDTH = 21, 29  # neither is a multiple of 4


def make_checkpoint(folder: Path, kind: str) -> Path:
    """A run's folder with initial parameters, but for a latent that varies enough to be seen in 8 bits."""
    config = tiny(*KINDS[kind])
    info = {"config": to_dict(config), "teacher": {"channels": {str(level): c for level, c in CHANNELS.items()}}}
    state = new_state(config)[1]
    if config.model.variational:
        names = named_arrays(state.model)
        names[SIGMA] = names[SIGMA] + 20
        state = dataclasses.replace(state, model=with_named_arrays(state.model, names, what=kind))
    with Checkpoints(folder / kind, 1, 0) as saved:
        saved.save(1, state, info, None)
        saved.wait()
    return folder / kind


def photo(height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def corner(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A hole that touches the right and the lower border, where the photo is continued."""
    mask = np.zeros((height, width, 1), np.uint8)
    mask[height // 2 :, width // 3 :] = 1
    return mask
