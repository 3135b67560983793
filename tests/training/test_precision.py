"""bfloat16 trains like float32: its loss curve strays less from float32's than another
seed's does.
"""

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest

from spn_jax.config import Config
from spn_jax.training.state import Frozen, build_networks, create_state, resolve_schedule
from tests.tiny import CHANNELS, compiled_step, tiny

STEPS, WINDOW, SEEDS = 120, 10, (0, 1, 2)


def learnable_batches(config: Config) -> list[dict[str, Any]]:
    """Smooth random photos with one rectangular hole each; targets are fixed linear maps of the
    photo's means.
    """
    random, p, b = np.random.default_rng(0), config.data.image_size, config.train.batch_size
    waves = np.cos(np.pi * np.arange(4)[:, None] * (np.arange(p) + 0.5) / p)
    maps = {level: random.standard_normal((3, width)) for level, width in CHANNELS.items()}
    batches = []
    for _ in range(STEPS):
        photos = np.einsum("bijc,ih,jw->bhwc", random.normal(0, 0.2, (b, 4, 4, 3)), waves, waves)
        photos = np.clip(photos + 0.5, 0, 1)
        mask = np.zeros((b, p, p, 1), np.uint8)
        for one, (top, left) in zip(mask, random.integers(0, p // 2, (b, 2)), strict=True):
            one[top : top + p // 2, left : left + p // 3] = 1
        means = {factor: photos.reshape(b, p // factor, factor, p // factor, factor, 3).mean((2, 4)) for factor in (2, 4)}
        targets = {level: (means[4 if level == 3 else 2] @ maps[level]).astype(np.float32) for level in CHANNELS}
        batches.append({"image": (255 * photos).round().astype(np.uint8), "mask": mask, "targets": targets})
    return batches


def loss_curve(config: Config, batches: list[dict[str, Any]]) -> np.ndarray:
    """Logarithms of reconstruction and prior loss (windows, 2), each the mean of a window of steps.

    Their seed draws the parameters; all runs see the same batches.
    """
    graph, state = create_state(config, resolve_schedule(config, STEPS), *build_networks(config, CHANNELS))
    # one program for all seeds
    step, losses = compiled_step(dataclasses.replace(graph, seed=0)), []
    for batch in batches:
        state, metrics = step(state, Frozen(), batch)
        losses.append([float(metrics[f"generator/{name}"]) for name in ("reconstruction", "prior")])
    return np.log(np.reshape(losses, (-1, WINDOW, 2)).mean(1))


def distance(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Root mean square over the windows, for each of the two losses."""
    return np.sqrt(np.square(ours - theirs).mean(0))


@pytest.mark.long
def test_bfloat16_stays_within_the_spread_of_seeds() -> None:
    """Same seed, other type: closer than the two closest of three seeds in float32; and the losses
    do fall.
    """
    batches = learnable_batches(tiny())

    def curve(compute_dtype: str, seed: int) -> np.ndarray:
        settings = f"train.compute_dtype={compute_dtype}", f"train.seed={seed}", "optimizer.learning_rate=0.001"
        return loss_curve(tiny(*settings), batches)

    curves = [curve("float32", seed) for seed in SEEDS]
    between_seeds = np.min([distance(a, b) for a, b in itertools.combinations(curves, 2)], axis=0)
    between_types, fall = distance(curve("bfloat16", SEEDS[0]), curves[0]), curves[0][0] - curves[0][-1]
    print(f"reconstruction and prior loss: between types {between_types}, between seeds {between_seeds}, fall {fall}")
    assert (fall > 0.15).all()
    assert (between_types < between_seeds).all()
