"""Patch discriminator of the deterministic model: five 4x4 convolutions with spectral norm; the score is a map."""

from typing import NamedTuple

import numpy as np
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from spn_jax.models.layers import SpectralConv, leaky_relu


class Judgement(NamedTuple):
    """logits (b, h, w, 1), one per patch, before the sigmoid; features: the maps of all layers, the last being the logits."""

    logits: Array
    features: tuple[Array, ...]


class Discriminator(nnx.Module):
    """Judges patches of an image as real (sigmoid towards 1) or completed (towards 0)."""

    def __init__(self, width: int, *, rng: np.random.Generator, dtype: DTypeLike):
        widths, strides = (3, width, 2 * width, 4 * width, 8 * width, 1), (2, 2, 2, 1, 1)
        self.convs = nnx.List(
            [
                SpectralConv(i, o, 4, stride=stride, padding=1, rng=rng, dtype=dtype)
                for i, o, stride in zip(widths[:-1], widths[1:], strides, strict=True)
            ]
        )

    def power_iteration(self) -> None:
        """Updates the singular vectors of all layers; in training each judgement is preceded by one."""
        for conv in self.convs:
            conv.power_iteration()

    def __call__(self, image: Array) -> Judgement:
        """Image (b, h, w, 3) in [0, 1] -> Judgement; h and w at least 32."""
        x, features = image, []
        for conv in list(self.convs)[:-1]:
            x = leaky_relu(conv(x))
            features.append(x)
        logits = self.convs[-1](x)
        return Judgement(logits, (*features, logits))
