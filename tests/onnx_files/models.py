"""Small models of every kind with parameters that matter, biases and affine maps among them, and
how both programs are called.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import onnxruntime

from spn_jax.checkpoints.parameters import named_arrays, with_named_arrays
from spn_jax.checkpoints.store import LoadedModel
from spn_jax.config import ModelConfig
from spn_jax.filling.completion import PRECISION
from spn_jax.models.spn import SPN
from tests.tiny import CHANNELS, tiny

KINDS = {
    "spn": (),
    "spn-probabilistic": ("model.variational=true", "model.latent_channels=4"),
    "spl": ("model.prior_levels=(3,)", "model.decoder=region_norm", "model.prior_encoder_slope=0.1"),
    "concat": ("model.conditioning=concat",),
    "two priors": ("model.prior_levels=(2,3)",),
    "smooth fill": ("model.hole_fill=smooth",),
    "smooth fill, probabilistic": ("model.hole_fill=smooth", "model.variational=true", "model.latent_channels=4"),
}
PAPER = ("spn", "spn-probabilistic", "spl")


def random_model(config: ModelConfig, seed: int = 0) -> SPN:
    """New parameters, to which noise is added where they begin as zeros."""
    model, random = SPN(config, CHANNELS, rng=np.random.default_rng(seed)), np.random.default_rng(seed + 1)

    def moved(array: Any) -> np.ndarray:
        noise = 0.3 * random.standard_normal(array.shape, np.float32) if array.ndim == 1 else 0
        return np.asarray(array + noise, np.float32)

    return with_named_arrays(model, {name: moved(array) for name, array in named_arrays(model).items()}, what="noise")


@functools.cache
def loaded(kind: str) -> LoadedModel:
    config = tiny(*KINDS[kind])
    return LoadedModel(config, random_model(config.model), 7, {"teacher": {"name": "a teacher"}})


def inputs(model: SPN, height: int, width: int, batch: int = 1) -> dict[str, np.ndarray]:
    """Image, mask and, where the model takes it, noise: float32, channels last."""
    random = np.random.default_rng(height + width)
    given = {
        "image": random.random((batch, height, width, 3), np.float32),
        "mask": (random.random((batch, height, width, 1)) < 0.3).astype(np.float32),
    }
    if model.variational:
        given["noise"] = random.standard_normal((batch, *model.noise_shape(height, width)), np.float32)
    return given


@jax.jit
def _predict(model: SPN, image: Any, mask: Any, noise: Any = None) -> Any:
    return model(image, mask, None if noise is None else noise[:, None]).image[:, 0]


def by_jax(model: SPN, given: Mapping[str, np.ndarray]) -> np.ndarray:
    with PRECISION():
        return np.asarray(_predict(model, *given.values()))


def by_onnx(file: bytes, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """{output: array with channels last}."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    outputs = session.run(names, {name: array.transpose(0, 3, 1, 2) for name, array in given.items()})
    return {name: array.transpose(0, 2, 3, 1) for name, array in zip(names, outputs, strict=True)}
