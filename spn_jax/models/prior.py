"""Defines the semantic prior learner (paper section 3.1).

It is a U-Net that predicts a teacher's feature pyramid from the masked photo.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from spn_jax.config import ModelConfig
from spn_jax.models.layers import Conv, ResidualBlock, dense_maps, enlarge, leaky_relu, pixel_shuffle
from spn_jax.models.variational import VariationalModule

COARSEST = 3  # the level l of the prior at P/4

Pyramid = dict[int, Array]  # level l -> map at P / 2^(l-1)


class DenseBlock(nnx.Module):
    """Applies a residual dense block: `layers` convolutions, each on all maps before it, a 1x1
    fusion and a residual.
    """

    def __init__(self, features: int, growth: int, layers: int, *, rng: np.random.Generator, dtype: DTypeLike):
        widths = [features + i * growth for i in range(layers + 1)]
        self.layers = nnx.List([Conv(width, growth, 3, padding=1, rng=rng, dtype=dtype) for width in widths[:-1]])
        self.fusion = Conv(widths[-1], features, 1, rng=rng, dtype=dtype)

    def __call__(self, x: Array) -> Array:
        """(b, h, w, c) -> (b, h, w, c)."""
        return x + self.fusion(jnp.concatenate([x, dense_maps(x, self.layers)], -1))


class PriorUpsampling(nnx.Module):
    """Goes one level up the pyramid (Eq. 3): convolution and pixel shuffle, concatenation with the
    encoder's map, residual block.
    """

    def __init__(self, features_in: int, skip: int, features: int, *, rng: np.random.Generator, dtype: DTypeLike):
        self.conv = Conv(features_in, 4 * features, 3, padding=1, rng=rng, dtype=dtype)
        self.block = ResidualBlock(skip + features, features, rng=rng, dtype=dtype)

    def __call__(self, x: Array, skip: Array) -> Array:
        """x (b, h, w, c), skip (b, 2 h, 2 w, s) -> (b, 2 h, 2 w, features)."""
        return self.block(jnp.concatenate([skip, jax.nn.relu(pixel_shuffle(self.conv(x)))], -1))


def prior_width(config: ModelConfig, level: int) -> int:
    """Returns the channels of the prior at level l: 64, 128, 256 at full size."""
    return config.width * 2 ** (level - 1)


class PriorLearner(nnx.Module):
    """Maps masked photo and mask, enlarged to 2P, to the prior pyramid and, through the
    distillation heads, to the teacher's features.

    Args:
        config: sizes.
        teacher_channels: {l: channels} of the teacher's maps, from the cache's manifest. A level
            that is not in it has no distillation head; the paper's "without distillation" has none.
    """

    def __init__(
        self, config: ModelConfig, teacher_channels: Mapping[int, int], *, rng: np.random.Generator, dtype: DTypeLike, remat: bool
    ):
        width, trunk = config.width, prior_width(config, COARSEST)
        self.remat, self.encoder_slope = remat, config.prior_encoder_slope
        self.stem = Conv(4, width, 7, padding=3, reflect=True, rng=rng, dtype=dtype)
        widths = [width, 2 * width, 4 * width, 4 * width]
        pairs = zip(widths[:-1], widths[1:], strict=True)
        self.downsampling = nnx.List([Conv(i, o, 4, stride=2, padding=1, rng=rng, dtype=dtype) for i, o in pairs])
        self.trunk_in = Conv(trunk, trunk, 3, padding=1, rng=rng, dtype=dtype)
        self.dense_blocks = nnx.List(
            [DenseBlock(trunk, config.growth, config.dense_layers, rng=rng, dtype=dtype) for _ in range(config.dense_blocks)]
        )
        self.trunk_fusion = Conv(config.dense_blocks * trunk, trunk, 1, rng=rng, dtype=dtype)
        self.trunk_out = Conv(trunk, trunk, 3, padding=1, rng=rng, dtype=dtype)
        self.variational = VariationalModule(trunk, config.latent_channels, rng=rng, dtype=dtype) if config.variational else None
        # The decoded latent is concatenated to the trunk.
        inputs = [2 * trunk if config.variational and i == 0 else trunk for i in range(config.prior_blocks)]
        self.prior_blocks = nnx.List([ResidualBlock(i, trunk, rng=rng, dtype=dtype) for i in inputs])

        self.levels = tuple(sorted(config.prior_levels, reverse=True))  # coarsest first
        finer = self.levels[1:]
        self.upsampling = nnx.List(
            [PriorUpsampling(prior_width(config, n + 1), widths[n], prior_width(config, n), rng=rng, dtype=dtype) for n in finer]
        )
        self.distilled_levels = tuple(level for level in self.levels if level in teacher_channels)
        self.distillation_heads = nnx.List(
            [Conv(prior_width(config, n), teacher_channels[n], 1, rng=rng, dtype=dtype) for n in self.distilled_levels]
        )

    def encode(self, masked: Array, mask: Array) -> tuple[Array, dict[int, Array]]:
        """Maps masked photo (b, P, P, 3) and mask (b, P, P, 1) to the trunk (b, P/4, P/4, c) and
        the encoder's maps by level.
        """
        x = leaky_relu(self.stem(enlarge(jnp.concatenate([masked, mask], -1))), self.encoder_slope)
        skips = {}
        for level, conv in enumerate(self.downsampling, 1):
            x = skips[level] = leaky_relu(conv(x), self.encoder_slope)
        return self.trunk(x), skips

    def trunk(self, encoded: Array) -> Array:
        """Applies a residual dense network (Zhang et al., CVPR 2018) at P/4 and adds its input."""
        x, outputs = self.trunk_in(encoded), []
        for block in self.dense_blocks:
            x = call_block(block, x, remat=self.remat)
            outputs.append(x)
        return encoded + self.trunk_out(self.trunk_fusion(jnp.concatenate(outputs, -1)))

    def pyramid(self, trunk: Array, skips: dict[int, Array], latent: Array | None = None) -> Pyramid:
        """Returns the prior pyramid {l: (b, P / 2^(l-1), P / 2^(l-1), c_l)} (Eq. 3; Eq. 5 with a
        latent (b, P/32, P/32, z)).
        """
        x = trunk
        if self.variational is not None:
            assert latent is not None, "a variational prior learner is given a latent"
            x = jnp.concatenate([trunk, self.variational.decode(latent)], -1)
        for block in self.prior_blocks:
            x = block(x)
        priors = {COARSEST: x}
        for level, upsample in zip(self.levels[1:], self.upsampling, strict=True):
            priors[level] = upsample(priors[level + 1], skips[level])
        return priors

    def distil(self, priors: Pyramid) -> Pyramid:
        """Predicts the teacher's features with the heads, at the priors' sizes. Only training needs
        it.
        """
        heads = zip(self.distilled_levels, self.distillation_heads, strict=True)
        return {level: head(priors[level]) for level, head in heads}


def call_block(block: nnx.Module, *inputs: Array | None, remat: bool) -> Array:
    """Returns block(*inputs). With `remat` its activations are recomputed in the backward pass
    instead of stored.
    """
    if not remat:
        return block(*inputs)  # type: ignore[operator]
    return nnx.remat(lambda block, *inputs: block(*inputs))(block, *inputs)
