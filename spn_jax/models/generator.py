"""Defines the generator (paper section 3.2): an encoder with region norm, SPADE blocks and a
decoder.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from spn_jax.config import ModelConfig
from spn_jax.models.layers import (
    SPADE,
    Activation,
    ConcatNorm,
    Conv,
    LearntRegionNorm,
    PlainNorm,
    RegionNorm,
    enlarge,
    leaky_relu,
    pixel_shuffle,
    relu,
    statistics_dtype,
)
from spn_jax.models.prior import COARSEST, Pyramid, call_block, prior_width

FIRST_ADDITION = 0.1  # scale of a new network's output kernel where it adds to a filled photo


class Filled(NamedTuple):
    """Holds photos with filled holes: image (b, P, P, 3) in [0, 1], mask (b, P, P, 1), 1 = hole."""

    image: Array
    mask: Array


class EncoderLayer(nnx.Module):
    """Applies a convolution, region normalisation and ReLU."""

    def __init__(self, conv: Conv, features: int):
        self.conv = conv
        self.region_norm = RegionNorm(features)

    def __call__(self, x: Array, mask: Array) -> Array:
        """x (b, h, w, c), mask (b, P, P, 1) -> (b, h', w', features)."""
        return relu(self.region_norm(self.conv(x), mask))


class SPADEResidualBlock(nnx.Module):
    """Adds a shortcut to [SPADE, activation, conv, SPADE, activation, conv] (Fig. 3b).

    Where the width changes, the shortcut is [SPADE, conv] without activation, otherwise the input.
    """

    def __init__(self, norms: Sequence[SPADE | ConcatNorm | PlainNorm], convs: Sequence[Conv], activation: Activation):
        self.norm_in, self.norm_out = norms[:2]
        self.conv_in, self.conv_out = convs[:2]
        self.norm_shortcut = norms[2] if len(norms) > 2 else None
        self.conv_shortcut = convs[2] if len(convs) > 2 else None
        self.activation = activation

    def __call__(self, x: Array, prior: Array | None) -> Array:
        """x (b, h, w, in), prior (b, h, w, p) or None at a level without one -> (b, h, w, out)."""
        shortcut = x
        if self.conv_shortcut is not None and self.norm_shortcut is not None:
            shortcut = self.conv_shortcut(self.norm_shortcut(x, prior))
        h = self.conv_in(self.activation(self.norm_in(x, prior)))
        return shortcut + self.conv_out(self.activation(self.norm_out(h, prior)))


class SPADEUpsampling(SPADEResidualBlock):
    """Performs one step of SPN's decoder: enlarges the map and applies a SPADE block."""

    def __call__(self, x: Array, prior: Array | None) -> Array:
        """x (b, h, w, in), prior (b, 2 h, 2 w, p) or None at a level without one -> (b, 2 h, 2 w,
        out).
        """
        return super().__call__(enlarge(x), prior)


class RegionNormUpsampling(nnx.Module):
    """Performs one step of SPL's decoder: convolution, pixel shuffle, region normalisation with a
    learnt region, ReLU.
    """

    def __init__(self, conv: Conv, region_norm: LearntRegionNorm):
        self.conv, self.region_norm = conv, region_norm

    def __call__(self, x: Array, prior: Array | None) -> Array:
        """(b, h, w, in) -> (b, 2 h, 2 w, out); SPL has no prior at these scales."""
        return relu(self.region_norm(pixel_shuffle(self.conv(x))))


class Generator(nnx.Module):
    """Maps masked photo, mask and prior pyramid to a completed image in [0, 1]."""

    def __init__(self, config: ModelConfig, *, rng: np.random.Generator, dtype: DTypeLike, remat: bool):
        width = config.width
        self.remat = remat

        def conv(features_in: int, features_out: int, size: int, **options: Any) -> Conv:
            return Conv(features_in, features_out, size, rng=rng, dtype=dtype, **options)

        def norm(features: int, level: int) -> SPADE | ConcatNorm | PlainNorm:
            if level not in config.prior_levels:
                return PlainNorm()
            prior = prior_width(config, level)
            if config.conditioning == "concat":
                return ConcatNorm(features, prior, rng=rng, dtype=dtype)
            hidden = min(config.spade_hidden, prior) if config.spade_hidden_up_to_prior else config.spade_hidden
            return SPADE(features, prior, hidden, rng=rng, dtype=dtype)

        def middle_block(features: int) -> SPADEResidualBlock:
            dilated = conv(features, features, 3, padding=2, dilation=2, reflect=True)
            last = conv(features, features, 3, padding=1, reflect=True)
            norms = [norm(features, COARSEST) for _ in range(2)]
            return SPADEResidualBlock(norms, (dilated, last), relu)

        def decoder_block(level: int) -> SPADEUpsampling | RegionNormUpsampling:
            wide, narrow = width * 2**level, width * 2 ** (level - 1)
            if config.decoder == "region_norm":
                return RegionNormUpsampling(conv(wide, 4 * narrow, 3, padding=1), LearntRegionNorm(rng=rng, dtype=dtype))
            norms = norm(wide, level), norm(narrow, level), norm(wide, level)
            convs = [conv(i, narrow, 3, padding=1) for i in (wide, narrow, wide)]
            return SPADEUpsampling(norms, convs, leaky_relu)

        self.encoder = nnx.List(
            [
                EncoderLayer(conv(3, width, 7, padding=3, reflect=True), width),
                EncoderLayer(conv(width, 2 * width, 4, stride=2, padding=1), 2 * width),
                EncoderLayer(conv(2 * width, 4 * width, 4, stride=2, padding=1), 4 * width),
            ]
        )
        self.middle = nnx.List([middle_block(4 * width) for _ in range(config.middle_blocks)])
        self.decoder = nnx.List([decoder_block(level) for level in (2, 1)])
        self.output = conv(width, 3, 7, padding=3, reflect=True)
        if config.hole_fill == "smooth":
            # Training begins near the filled photo. With a kernel of zeros no gradient would reach
            # the layers before this one.
            self.output.kernel[...] *= FIRST_ADDITION
            assert self.output.bias is not None
            self.output.bias[...] = jnp.zeros(3)

    def encode(self, masked: Array, mask: Array) -> Array:
        """F_enc (Eq. 7): masked photo (b, P, P, 3), mask (b, P, P, 1) -> (b, P/4, P/4, c)."""
        x = masked
        for layer in self.encoder:
            x = layer(x, mask)
        return x

    def refine(self, features: Array, priors: Pyramid) -> Array:
        """F_dec at P/4 (Eq. 9, first line): refines F_enc (b, P/4, P/4, c) with the coarsest prior,
        same shape.
        """
        for block in self.middle:
            features = call_block(block, features, priors[COARSEST], remat=self.remat)
        return features

    def decode(self, features: Array, priors: Pyramid, base: Filled | None = None) -> Array:
        """Decodes F_dec (b, P/4, P/4, c) into an image (b, P, P, 3) in [0, 1] (Eq. 9).

        With `base` the network's output in (-1, 1) is added to it, in the holes alone. Elsewhere
        the base is the photo itself, and an l1 loss would keep the output at zero there.
        """
        for level, block in zip((2, 1), self.decoder, strict=True):
            features = call_block(block, features, priors.get(level), remat=self.remat)
        # This LeakyReLU changes nothing in SPL, whose decoder ends in ReLU.
        rgb = self.output(leaky_relu(features))
        tanh = jnp.tanh(rgb.astype(statistics_dtype(rgb)))
        return (tanh + 1) / 2 if base is None else jnp.clip(base.image + base.mask * tanh, 0, 1)
