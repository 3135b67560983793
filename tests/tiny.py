"""What tests of the model, the step and the programs on top share: the tiny config, its networks,
its checkpoints, random photos.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np

from spn_jax.checkpoints.parameters import named_arrays, with_named_arrays
from spn_jax.checkpoints.store import Checkpoints
from spn_jax.config import Config, load_config
from spn_jax.runtime.sharding import make_mesh, replicate
from spn_jax.settings import to_dict
from spn_jax.training.state import Frozen, StepGraph, TrainState, build_networks, create_state, resolve_schedule
from spn_jax.training.step import compile_train_step

CONFIG_FILE = Path(__file__).parent.parent / "configs" / "tiny.py"
CHANNELS = {1: 5, 2: 6, 3: 7}


def tiny(*overrides: str) -> Config:
    return load_config(CONFIG_FILE, overrides)


def new_state(config: Config) -> tuple[StepGraph, TrainState]:
    """Graph and initial state, placed as the trainer places them."""
    graph, state = create_state(config, resolve_schedule(config, 10), *build_networks(config, CHANNELS))
    return graph, replicate(state, make_mesh(1))


def random_batch(config: Config, seed: int = 0) -> dict[str, Any]:
    """Photos, masks and cached targets as the pipeline delivers them."""
    random = np.random.default_rng(seed)
    b, p = config.train.batch_size, config.data.image_size
    sizes = {1: p // 2, 2: p // 2, 3: p // 4}
    return {
        "image": random.integers(0, 256, (b, p, p, 3), np.uint8),
        "mask": (random.random((b, p, p, 1)) < 0.3).astype(np.uint8),
        "targets": {level: random.standard_normal((b, n, n, CHANNELS[level])).astype(np.float32) for level, n in sizes.items()},
    }


@functools.cache
def compiled_step(graph: StepGraph) -> Any:
    """One jitted step a graph for all tests of a process."""
    return compile_train_step(graph, make_mesh(1))


def run_steps(config: Config, steps: int, frozen: Frozen | None = None, batch: Any = None) -> tuple[TrainState, list[dict[str, float]]]:
    """The state and metrics after some steps on different batches, or always the same one."""
    graph, state = new_state(config)
    step, history = compiled_step(graph), []
    for i in range(steps):
        state, metrics = step(state, frozen or Frozen(), random_batch(config, i) if batch is None else batch)
        history.append({name: float(value) for name, value in metrics.items()})
    return state, history


KINDS = {
    "spn": (),
    "spn-probabilistic": ("model.variational=true", "model.latent_channels=4", "model.discriminator=instance_norm"),
}
SIGMA = "prior_learner.variational.sigma.bias"


def save_checkpoints(folder: Path) -> dict[str, Path]:
    """A run's folder by kind of model, with initial parameters, but for a latent that varies enough
    to be seen in 8 bits.
    """
    for kind, overrides in KINDS.items():
        config = tiny(*overrides)
        info = {"config": to_dict(config), "teacher": {"channels": {str(level): c for level, c in CHANNELS.items()}}}
        state = new_state(config)[1]
        if config.model.variational:
            names = named_arrays(state.model)
            names[SIGMA] = names[SIGMA] + 20
            state = dataclasses.replace(state, model=with_named_arrays(state.model, names, what=kind))
        with Checkpoints(folder / kind, 1, 0) as saved:
            saved.save(1, state, info, None)
            saved.wait()
    return {kind: folder / kind for kind in KINDS}


def photo(height: int = 21, width: int = 29, seed: int = 0) -> np.ndarray:
    """Random colours, of a size whose sides are no multiples of 4."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def corner(height: int = 21, width: int = 29) -> np.ndarray:
    """A hole that touches the right and the lower border, where the photo is continued."""
    mask = np.zeros((height, width, 1), np.uint8)
    mask[height // 2 :, width // 3 :] = 1
    return mask
