"""Defines Inception v3 as in pytorch-fid; FID, KID, P-IDS and U-IDS compare its pooled features.

It is Szegedy et al.'s network (CVPR 2016) with the weights of TensorFlow's FID (2015-12-05). It
differs from torchvision's Inception v3 in three places: average pooling leaves the padding out of
the mean, the last block's pooling branch takes the maximum, and the input is scaled to [-1, 1].
Modules have the names of the released file.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax

from spn_jax.models.layers import torch_uniform

SIZE = 299  # height and width that every image is resized to
FEATURES = 2048
EPSILON = 1e-3  # of batch norm, which `weights.load_inception` folds into the kernels

Size = int | tuple[int, int]


class ConvReLU(nnx.Module):
    """Applies a convolution, a bias and ReLU; `padded` keeps the size (at stride 1).

    Kernel and bias include the release's batch norm. Random ones have He's initialisation and no
    bias, for the reason given at VGG19.
    """

    def __init__(self, features_in: int, features_out: int, size: Size, *, rng: np.random.Generator, stride: int = 1, padded: bool = True):
        height, width = (size, size) if isinstance(size, int) else size
        fan_in = height * width * features_in
        self.kernel = nnx.Param(torch_uniform(rng, (height, width, features_in, features_out), fan_in) * 6**0.5)
        self.bias = nnx.Param(jnp.zeros(features_out))
        self.stride = stride
        self.padding = tuple((n // 2, n // 2) if padded else (0, 0) for n in (height, width))

    def __call__(self, x: Array) -> Array:
        """(b, h, w, in) -> (b, h', w', out)."""
        out = lax.conv_general_dilated(
            x, self.kernel[...], (self.stride, self.stride), self.padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jax.nn.relu(out + self.bias[...])


Conv = Callable[..., ConvReLU]


class BlockA(nnx.Module):
    """Mixed_5b, 5c, 5d: (b, 35, 35, in) -> (b, 35, 35, 224 + pooled)."""

    def __init__(self, features_in: int, pooled: int, conv: Conv):
        self.branch1x1 = conv(features_in, 64, 1)
        self.branch5x5_1 = conv(features_in, 48, 1)
        self.branch5x5_2 = conv(48, 64, 5)
        self.branch3x3dbl_1 = conv(features_in, 64, 1)
        self.branch3x3dbl_2 = conv(64, 96, 3)
        self.branch3x3dbl_3 = conv(96, 96, 3)
        self.branch_pool = conv(features_in, pooled, 1)

    def __call__(self, x: Array) -> Array:
        branches = [
            self.branch1x1(x),
            self.branch5x5_2(self.branch5x5_1(x)),
            self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
            self.branch_pool(average_pool(x)),
        ]
        return jnp.concatenate(branches, -1)


class BlockB(nnx.Module):
    """Mixed_6a: (b, 35, 35, 288) -> (b, 17, 17, 768)."""

    def __init__(self, conv: Conv):
        self.branch3x3 = conv(288, 384, 3, stride=2, padded=False)
        self.branch3x3dbl_1 = conv(288, 64, 1)
        self.branch3x3dbl_2 = conv(64, 96, 3)
        self.branch3x3dbl_3 = conv(96, 96, 3, stride=2, padded=False)

    def __call__(self, x: Array) -> Array:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return jnp.concatenate([self.branch3x3(x), double, max_pool(x, stride=2)], -1)


class BlockC(nnx.Module):
    """Mixed_6b, 6c, 6d, 6e: (b, 17, 17, 768) -> (b, 17, 17, 768); `width` channels inside."""

    def __init__(self, width: int, conv: Conv):
        self.branch1x1 = conv(768, 192, 1)
        self.branch7x7_1 = conv(768, width, 1)
        self.branch7x7_2 = conv(width, width, (1, 7))
        self.branch7x7_3 = conv(width, 192, (7, 1))
        self.branch7x7dbl_1 = conv(768, width, 1)
        self.branch7x7dbl_2 = conv(width, width, (7, 1))
        self.branch7x7dbl_3 = conv(width, width, (1, 7))
        self.branch7x7dbl_4 = conv(width, width, (7, 1))
        self.branch7x7dbl_5 = conv(width, 192, (1, 7))
        self.branch_pool = conv(768, 192, 1)

    def __call__(self, x: Array) -> Array:
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        branches = [
            self.branch1x1(x),
            self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x))),
            self.branch7x7dbl_5(self.branch7x7dbl_4(double)),
            self.branch_pool(average_pool(x)),
        ]
        return jnp.concatenate(branches, -1)


class BlockD(nnx.Module):
    """Mixed_7a: (b, 17, 17, 768) -> (b, 8, 8, 1280)."""

    def __init__(self, conv: Conv):
        self.branch3x3_1 = conv(768, 192, 1)
        self.branch3x3_2 = conv(192, 320, 3, stride=2, padded=False)
        self.branch7x7x3_1 = conv(768, 192, 1)
        self.branch7x7x3_2 = conv(192, 192, (1, 7))
        self.branch7x7x3_3 = conv(192, 192, (7, 1))
        self.branch7x7x3_4 = conv(192, 192, 3, stride=2, padded=False)

    def __call__(self, x: Array) -> Array:
        seven = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        return jnp.concatenate([self.branch3x3_2(self.branch3x3_1(x)), self.branch7x7x3_4(seven), max_pool(x, stride=2)], -1)


class BlockE(nnx.Module):
    """Mixed_7b, 7c: (b, 8, 8, in) -> (b, 8, 8, 2048); `pool` is the pooling of the pooling
    branch.
    """

    def __init__(self, features_in: int, pool: Callable[[Array], Array], conv: Conv):
        self.branch1x1 = conv(features_in, 320, 1)
        self.branch3x3_1 = conv(features_in, 384, 1)
        self.branch3x3_2a = conv(384, 384, (1, 3))
        self.branch3x3_2b = conv(384, 384, (3, 1))
        self.branch3x3dbl_1 = conv(features_in, 448, 1)
        self.branch3x3dbl_2 = conv(448, 384, 3)
        self.branch3x3dbl_3a = conv(384, 384, (1, 3))
        self.branch3x3dbl_3b = conv(384, 384, (3, 1))
        self.branch_pool = conv(features_in, 192, 1)
        self.pool = pool

    def __call__(self, x: Array) -> Array:
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        branches = [
            self.branch1x1(x),
            self.branch3x3_2a(single),
            self.branch3x3_2b(single),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            self.branch_pool(self.pool(x)),
        ]
        return jnp.concatenate(branches, -1)


class InceptionV3(nnx.Module):
    """Computes Inception v3 up to its last pooling, in float32 at the device's highest precision,
    whatever precision is set outside.
    """

    def __init__(self, *, rng: np.random.Generator):
        def conv(features_in: int, features_out: int, size: Size, *, stride: int = 1, padded: bool = True) -> ConvReLU:
            return ConvReLU(features_in, features_out, size, rng=rng, stride=stride, padded=padded)

        self.Conv2d_1a_3x3 = conv(3, 32, 3, stride=2, padded=False)
        self.Conv2d_2a_3x3 = conv(32, 32, 3, padded=False)
        self.Conv2d_2b_3x3 = conv(32, 64, 3)
        self.Conv2d_3b_1x1 = conv(64, 80, 1)
        self.Conv2d_4a_3x3 = conv(80, 192, 3, padded=False)
        self.Mixed_5b = BlockA(192, 32, conv)
        self.Mixed_5c = BlockA(256, 64, conv)
        self.Mixed_5d = BlockA(288, 64, conv)
        self.Mixed_6a = BlockB(conv)
        self.Mixed_6b = BlockC(128, conv)
        self.Mixed_6c = BlockC(160, conv)
        self.Mixed_6d = BlockC(160, conv)
        self.Mixed_6e = BlockC(192, conv)
        self.Mixed_7a = BlockD(conv)
        self.Mixed_7b = BlockE(1280, average_pool, conv)
        self.Mixed_7c = BlockE(2048, padded_max_pool, conv)

    def __call__(self, image: Array) -> Array:
        """Images (b, h, w, 3) in [0, 1], of any size -> features (b, 2048) as pytorch-fid computes
        them.
        """
        with jax.default_matmul_precision("highest"):
            return self.of_resized(2 * resize(jnp.asarray(image, jnp.float32)) - 1)

    def clean(self, image: Array) -> Array:
        """Images (b, h, w, 3) in [0, 1], of any size -> features (b, 2048) as clean-fid computes
        them.

        It resizes as Pillow does and scales 0..255 by (x - 128) / 128. The network and its weights
        are pytorch-fid's.
        """
        with jax.default_matmul_precision("highest"):
            return self.of_resized((clean_resize(255 * jnp.asarray(image, jnp.float32)) - 128) / 128)

    def of_resized(self, x: Array) -> Array:
        """Images (b, 299, 299, 3) about [-1, 1] -> features (b, 2048)."""
        with jax.default_matmul_precision("highest"):
            x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
            x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(max_pool(x, stride=2)))
            x = max_pool(x, stride=2)
            for block in self.blocks():
                x = block(x)
            return x.mean((1, 2))

    def blocks(self) -> list[Callable[[Array], Array]]:
        """Returns all blocks in order."""
        at_35 = [self.Mixed_5b, self.Mixed_5c, self.Mixed_5d]
        at_17 = [self.Mixed_6a, self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e]
        return [*at_35, *at_17, self.Mixed_7a, self.Mixed_7b, self.Mixed_7c]


def resize(image: Array) -> Array:
    """Resizes (b, h, w, c) to (b, 299, 299, c), bilinear between pixel centres without
    antialiasing, as PyTorch's `interpolate(align_corners=False)` does.

    pytorch-fid resizes so. clean-fid (`clean_resize`) and TensorFlow's FID resize otherwise and
    have other scores.
    """
    return jax.image.resize(image, (image.shape[0], SIZE, SIZE, image.shape[-1]), "bilinear", antialias=False)


def clean_resize(image: Array) -> Array:
    """Resizes (b, h, w, c) in 0..255 to (b, 299, 299, c) with Pillow's bicubic filter and
    antialiasing, each channel in floating point.

    clean-fid resizes so (Parmar et al., CVPR 2022). Nothing is rounded; values beyond 0 and 255 are
    clipped.
    """
    rows, columns = (jnp.asarray(bicubic_weights(n)) for n in image.shape[1:3])
    highest = lax.Precision.HIGHEST
    across = jnp.einsum("bhwc,xw->bhxc", image, columns, precision=highest)
    return jnp.clip(jnp.einsum("bhxc,yh->byxc", across, rows, precision=highest), 0, 255)


@functools.cache
def bicubic_weights(length: int) -> np.ndarray:
    """Returns the weights of `length` pixels for each of SIZE, float32 (SIZE, length): Pillow's
    bicubic filter (a = -1/2), widened when shrinking.
    """
    scale = length / SIZE
    wide = max(scale, 1.0)
    centres = (np.arange(SIZE) + 0.5) * scale
    distance = np.abs((np.arange(length) + 0.5 - centres[:, None]) / wide)
    inner = (1.5 * distance - 2.5) * distance**2 + 1
    outer = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = np.where(distance < 1, inner, np.where(distance < 2, outer, 0))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def max_pool(x: Array, *, stride: int) -> Array:
    """Takes the maximum over whole squares of 3 x 3: (b, h, w, c) -> (b, (h - 3) // stride + 1, (w
    - 3) // stride + 1, c).
    """
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, stride, stride, 1), "VALID")


def padded_max_pool(x: Array) -> Array:
    """Takes the maximum over 3 x 3 neighbourhoods, without padding values: (b, h, w, c) -> (b, h,
    w, c).
    """
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")


def average_pool(x: Array) -> Array:
    """Takes the mean over 3 x 3 neighbourhoods, without padding values: (b, h, w, c) -> (b, h, w,
    c).
    """

    def neighbours(x: Array) -> Array:
        return lax.reduce_window(x, 0.0, lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")

    return neighbours(x) / neighbours(jnp.ones((1, *x.shape[1:3], 1), x.dtype))
