"""Defines the trunk of EfficientNet-Lite0, a teacher that runs inside the training step.

It is EfficientNet-B0 (Tan and Le, ICML 2019; the Lite variants: Google, 2020) with ReLU6 in place
of swish, without squeeze and excitation, and with batch norm folded into kernels and biases. It was
trained on ImageNet, and its weights come in a package under a free licence.

Every convolution pads as TensorFlow's "SAME" does, as in the network's training. The output has
ceil(side / stride) pixels. Where the number of zeros is odd, as at stride 2 on an even side, the
extra zero goes below and to the right. The package efficientnet_lite_pytorch fixes its padding for
photos of 224 pixels; at sides that are multiples of 32 it is the same.
"""

import dataclasses
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax
from jax.typing import DTypeLike

from spn_jax.models.convolution import choose_form, convolve
from spn_jax.models.layers import torch_uniform

STEM = 32  # channels of the first convolution
EPSILON = 1e-3  # of batch norm, which `weights.build_efficientnet` folds
MEAN, SCALE = 127.0, 128.0  # of input values 0 to 255


@dataclasses.dataclass(frozen=True)
class Stage:
    """Describes blocks of equal width, of which the first has the stride."""

    expansion: int  # factor of the channels inside a block
    features: int
    blocks: int
    stride: int
    size: int  # of the depthwise kernels


STAGES = (
    Stage(1, 16, 1, 1, 3),
    Stage(6, 24, 2, 2, 3),
    Stage(6, 40, 2, 2, 5),
    Stage(6, 80, 3, 2, 3),
    Stage(6, 112, 3, 1, 5),
    Stage(6, 192, 4, 2, 5),
    Stage(6, 320, 1, 1, 3),
)
# the deepest blocks at 1/2, 1/4, 1/8, 1/16, 1/32 of the photo's side
MAPS = {"block0": 0, "block2": 2, "block4": 4, "block10": 10, "block15": 15}
CHANNELS = {"block0": 16, "block2": 24, "block4": 40, "block10": 112, "block15": 320}


class FoldedConv(nnx.Module):
    """Convolves with "SAME" padding and the bias of the folded batch norm. `depthwise` convolves
    each channel by itself.
    """

    def __init__(
        self,
        features_in: int,
        features_out: int,
        size: int,
        *,
        rng: np.random.Generator,
        dtype: DTypeLike,
        stride: int = 1,
        depthwise: bool = False,
    ):
        per_output = 1 if depthwise else features_in
        self.kernel = nnx.Param(torch_uniform(rng, (size, size, per_output, features_out), size * size * per_output))
        self.bias = nnx.Param(torch_uniform(rng, (features_out,), size * size * per_output))
        self.dtype, self.stride, self.depthwise = dtype, stride, depthwise

    def __call__(self, x: Array) -> Array:
        """(b, h, w, in) -> (b, ceil(h / stride), ceil(w / stride), out) in the compute type."""
        x, kernel = jnp.asarray(x, self.dtype), jnp.asarray(self.kernel[...], self.dtype)
        if self.depthwise:
            out = depthwise_convolution(x, kernel, self.stride)
        elif kernel.shape[:2] == (1, 1):
            out = convolve(x, kernel)
        else:
            out = grouped_convolution(x, kernel, self.stride, groups=1)
        return out + jnp.asarray(self.bias[...], self.dtype)


class InvertedResidual(nnx.Module):
    """Computes [1x1 to more channels, ReLU6,] depthwise, ReLU6, 1x1, plus the input where the shape
    stays (Sandler et al., CVPR 2018).
    """

    def __init__(self, features_in: int, stage: Stage, stride: int, *, rng: np.random.Generator, dtype: DTypeLike):
        inside = features_in * stage.expansion
        self.expand = FoldedConv(features_in, inside, 1, rng=rng, dtype=dtype) if stage.expansion > 1 else None
        self.depthwise = FoldedConv(inside, inside, stage.size, stride=stride, depthwise=True, rng=rng, dtype=dtype)
        self.project = FoldedConv(inside, stage.features, 1, rng=rng, dtype=dtype)
        self.residual = stride == 1 and features_in == stage.features

    def __call__(self, x: Array) -> Array:
        """(b, h, w, c) -> (b, h, w, c'), or half of h and w, rounded up."""
        h = x if self.expand is None else jax.nn.relu6(self.expand(x))
        out = self.project(jax.nn.relu6(self.depthwise(h)))
        return x + out if self.residual else out


class EfficientNetTrunk(nnx.Module):
    """Maps photos to the wanted feature maps by name.

    Args:
        names: keys of MAPS; nothing beyond the deepest of them is built.
        rng: draws random parameters, which only tests use.
        dtype: compute type; parameters are float32, and products have the highest precision that
            the type allows on every backend.
    """

    def __init__(self, names: Iterable[str], *, rng: np.random.Generator, dtype: DTypeLike):
        self.names = tuple(sorted(set(names), key=MAPS.__getitem__))
        self.stem = FoldedConv(3, STEM, 3, stride=2, rng=rng, dtype=dtype)
        blocks = block_shapes()[: MAPS[self.names[-1]] + 1]
        self.blocks = nnx.List([InvertedResidual(*shape, rng=rng, dtype=dtype) for shape in blocks])

    @property
    def channels(self) -> dict[str, int]:
        """Returns the channels of each map."""
        return {name: CHANNELS[name] for name in self.names}

    def __call__(self, photos: Array) -> dict[str, Array]:
        """Photos (b, h, w, 3) in [0, 1] -> {name: (b, ceil(h / 2), ..., c), or smaller by further
        halvings} in the compute type.
        """
        with jax.default_matmul_precision("highest"):
            x = jax.nn.relu6(self.stem((photos * 255 - MEAN) / SCALE))
            maps = []
            for block in self.blocks:
                x = block(x)
                maps.append(x)
        return {name: maps[MAPS[name]] for name in self.names}


def block_shapes() -> list[tuple[int, Stage, int]]:
    """Returns input channels, stage and stride of each of the 16 blocks."""
    shapes, features_in = [], STEM
    for stage in STAGES:
        for i in range(stage.blocks):
            shapes.append((features_in, stage, stage.stride if i == 0 else 1))
            features_in = stage.features
    return shapes


def depthwise_convolution(x: Array, kernel: Array, stride: int) -> Array:
    """Convolves each channel with a kernel of its own, "SAME": (b, h, w, c) and (k, k, 1, c) -> (b,
    ceil(h / stride), ..., c).

    The CPU backend's grouped convolution takes 15 to 40 times as long as the sum of shifted
    products, which it fuses into one loop.
    """

    def grouped(x: Array, kernel: Array) -> Array:
        return grouped_convolution(x, kernel, stride, groups=x.shape[-1])

    def shifted(x: Array, kernel: Array) -> Array:
        return shifted_products(x, kernel, stride)

    return choose_form(x, kernel, cpu=shifted, elsewhere=grouped)


def grouped_convolution(x: Array, kernel: Array, stride: int, groups: int) -> Array:
    """Convolves with "SAME" padding in the backend's own form."""
    dimensions = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=dimensions, feature_group_count=groups)


def shifted_products(x: Array, kernel: Array, stride: int) -> Array:
    """Computes the depthwise convolution as a sum over the kernel's elements of the shifted map
    times the element.
    """
    size = kernel.shape[0]
    rows, columns = (-(-side // stride) for side in x.shape[1:3])
    zeros = lax.padtype_to_pads(x.shape[1:3], (size, size), (stride, stride), "SAME")
    x = jnp.pad(x, ((0, 0), *zeros, (0, 0)))
    total = jnp.zeros((), x.dtype)
    for i in range(size):
        for j in range(size):
            seen = x[:, i : i + (rows - 1) * stride + 1 : stride, j : j + (columns - 1) * stride + 1 : stride]
            total = total + seen * kernel[i, j, 0]
    return total


def released_names() -> dict[str, tuple[str, str]]:
    """Returns {our convolution: (convolution, batch norm)} with the names of the released file,
    those of the package efficientnet_lite_pytorch.
    """
    names = {"stem": ("_conv_stem", "_bn0")}
    for i, (_, stage, _) in enumerate(block_shapes()):
        parts = {"expand": ("_expand_conv", "_bn0"), "depthwise": ("_depthwise_conv", "_bn1"), "project": ("_project_conv", "_bn2")}
        if stage.expansion == 1:
            del parts["expand"]
        names |= {f"blocks.{i}.{ours}": (f"_blocks.{i}.{conv}", f"_blocks.{i}.{norm}") for ours, (conv, norm) in parts.items()}
    return names
