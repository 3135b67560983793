"""Defines the patch discriminators: five 4x4 convolutions, whose output is a map of scores."""

from typing import NamedTuple

import numpy as np
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from spn_jax.config import ModelConfig
from spn_jax.models.layers import Conv, SpectralConv, instance_norm, leaky_relu


class DiscriminatorOutput(NamedTuple):
    """Holds logits (b, h, w, 1), one per patch, before any sigmoid, and the feature maps that
    feature matching compares.
    """

    logits: Array
    features: tuple[Array, ...]


class Discriminator(nnx.Module):
    """Scores patches of an image: high for a photo, low for a completion.

    `config.discriminator` chooses between the paper's two. With spectral_norm all five layers have
    spectral normalisation, and features are the outputs of all. With instance_norm layers 2 to 4
    have both norms, and features are their outputs; the first and last have a bias and no norm.
    """

    def __init__(self, config: ModelConfig, *, rng: np.random.Generator, dtype: DTypeLike):
        width = config.discriminator_width
        widths, strides = (3, width, 2 * width, 4 * width, 8 * width, 1), (2, 2, 2, 1, 1)
        self.instance_norm = config.discriminator == "instance_norm"

        def layer(i: int) -> SpectralConv | Conv:
            kind = Conv if self.instance_norm and i in (0, 4) else SpectralConv
            return kind(widths[i], widths[i + 1], 4, stride=strides[i], padding=1, rng=rng, dtype=dtype)

        self.convs = nnx.List([layer(i) for i in range(5)])

    def power_iteration(self) -> None:
        """Updates the singular vectors of all layers that have them. In training it precedes each
        pass.
        """
        for conv in self.convs:
            if isinstance(conv, SpectralConv):
                conv.power_iteration()

    def __call__(self, image: Array) -> DiscriminatorOutput:
        """Image (b, h, w, 3) in [0, 1] -> DiscriminatorOutput; h and w at least 32."""
        x, outputs = image, []
        for conv in list(self.convs)[:-1]:
            x = conv(x)
            if self.instance_norm and isinstance(conv, SpectralConv):
                x = instance_norm(x)
            x = leaky_relu(x)
            outputs.append(x)
        logits = self.convs[-1](x)
        return DiscriminatorOutput(logits, tuple(outputs[1:]) if self.instance_norm else (*outputs, logits))
