"""Defines the trunk of TResNet-L (Ridnik et al., WACV 2021), the paper's teacher, for training
steps.

It is timm's `tresnet_l` up to its second stage, with batch norm folded into kernels and biases.
Photos are not normalised by mean or standard deviation. Products have the highest precision of the
device, as for cached features.
"""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from spn_jax.models.layers import Conv, leaky_relu
from spn_jax.models.prior import Pyramid

# channels of stem, layer1, layer2, which are the targets of the prior's levels 1, 2, 3
CHANNELS = {1: 76, 2: 76, 3: 152}
BLOCKS = {2: 4, 3: 5}  # blocks of layer1, layer2
SQUEEZED = 64  # channels inside squeeze and excitation
STEM_SLOPE, BLOCK_SLOPE = 1e-2, 1e-3  # of LeakyReLU
EPSILON = 1e-5  # of batch norm, which `weights.load_tresnet` folds


class SqueezeExcite(nnx.Module):
    """Multiplies every channel by a factor in (0, 1), computed from all channels' means (Hu et al.,
    CVPR 2018).
    """

    def __init__(self, features: int, *, rng: np.random.Generator, dtype: DTypeLike):
        self.squeeze = Conv(features, SQUEEZED, 1, rng=rng, dtype=dtype)
        self.excite = Conv(SQUEEZED, features, 1, rng=rng, dtype=dtype)

    def __call__(self, x: Array) -> Array:
        """(b, h, w, c) -> (b, h, w, c)."""
        means = x.mean((1, 2), keepdims=True, dtype=jnp.float32)
        return x * jax.nn.sigmoid(self.excite(jax.nn.relu(self.squeeze(means))))


class BasicBlock(nnx.Module):
    """Adds a shortcut to [k3, LeakyReLU, k3, squeeze and excitation], then applies ReLU. `halve`
    blurs and halves after the first convolution.
    """

    def __init__(self, features_in: int, features: int, *, halve: bool, rng: np.random.Generator, dtype: DTypeLike):
        self.conv_in = Conv(features_in, features, 3, padding=1, rng=rng, dtype=dtype)
        self.conv_out = Conv(features, features, 3, padding=1, rng=rng, dtype=dtype)
        self.squeeze_excite = SqueezeExcite(features, rng=rng, dtype=dtype)
        self.shortcut = Conv(features_in, features, 1, rng=rng, dtype=dtype) if halve else None

    def __call__(self, x: Array) -> Array:
        """(b, h, w, c) -> (b, h, w, c'), or half of h and w."""
        h = leaky_relu(self.conv_in(x), BLOCK_SLOPE)
        if self.shortcut is None:
            return jax.nn.relu(x + self.squeeze_excite(self.conv_out(h)))
        return jax.nn.relu(self.shortcut(average_pool(x)) + self.squeeze_excite(self.conv_out(blur_pool(h))))


class TResNetTrunk(nnx.Module):
    """Maps photos at 2P to the teacher's features: level 1 at P/2 (the loss enlarges it), 2 at P/2,
    3 at P/4.

    Args:
        levels: wanted levels, ascending; nothing beyond the last is built.
        rng: draws random parameters, which only tests use.
        dtype: compute type; parameters are float32.
    """

    def __init__(self, levels: tuple[int, ...], *, rng: np.random.Generator, dtype: DTypeLike):
        self.levels = levels
        self.stem = Conv(48, CHANNELS[1], 3, padding=1, rng=rng, dtype=dtype)
        self.stages = nnx.List([self._stage(level, rng, dtype) for level in (2, 3) if level <= max(levels)])

    @staticmethod
    def _stage(level: int, rng: np.random.Generator, dtype: DTypeLike) -> nnx.List:
        features_in, features = CHANNELS[level - 1], CHANNELS[level]
        widths = [features_in] + [features] * (BLOCKS[level] - 1)
        halves = [level == 3] + [False] * (BLOCKS[level] - 1)
        return nnx.List([BasicBlock(w, features, halve=half, rng=rng, dtype=dtype) for w, half in zip(widths, halves, strict=True)])

    @property
    def channels(self) -> dict[int, int]:
        """Returns the channels of each level."""
        return {level: CHANNELS[level] for level in self.levels}

    def __call__(self, photos: Array) -> Pyramid:
        """Photos (b, 2P, 2P, 3) in [0, 1], 2P a multiple of 8 -> {level: (b, h, w, c)} in the
        compute type.
        """
        x = rearrange(photos, "b (h i) (w j) c -> b h w (i j c)", i=4, j=4)
        with jax.default_matmul_precision("highest"):
            x = leaky_relu(self.stem(x), STEM_SLOPE)
            maps = {1: x}
            for level, blocks in enumerate(self.stages, 2):
                for block in blocks:
                    x = block(x)
                maps[level] = x
        return {level: maps[level] for level in self.levels}


def blur_pool(x: Array) -> Array:
    """Blurs with [1 2 1] x [1 2 1] / 16 and reflection padding, and takes every second pixel: (b,
    h, w, c) -> (b, h/2, w/2, c) (Zhang, ICML 2019).
    """
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    x = (x[:, 0:-2:2] + 2 * x[:, 1:-1:2] + x[:, 2::2]) / 4
    return (x[:, :, 0:-2:2] + 2 * x[:, :, 1:-1:2] + x[:, :, 2::2]) / 4


def average_pool(x: Array) -> Array:
    """Takes the mean over squares of 2 x 2: (b, h, w, c) -> (b, h/2, w/2, c)."""
    return rearrange(x, "b (h i) (w j) c -> b h w (i j) c", i=2, j=2).mean(3)
