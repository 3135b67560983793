"""What tests of the model and the step share: the tiny config, its networks, and a batch of random photos."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from spn_jax.config import Config, load_config
from spn_jax.sharding import make_mesh, replicate
from spn_jax.step import Frozen, StepGraph, TrainState, build_networks, compile_train_step, create_state, resolve_schedule

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
def compiled_step() -> Callable[..., Any]:
    """One jitted step for all tests of a process: equal graphs share a compiled program."""
    return compile_train_step(make_mesh(1))


def run_steps(config: Config, steps: int, frozen: Frozen | None = None, batch: Any = None) -> tuple[TrainState, list[dict[str, float]]]:
    """The state and metrics after some steps on different batches, or always the same one."""
    graph, state = new_state(config)
    step, history = compiled_step(), []
    for i in range(steps):
        state, metrics = step(graph, state, frozen or Frozen(), random_batch(config, i) if batch is None else batch)
        history.append({name: float(value) for name, value in metrics.items()})
    return state, history
