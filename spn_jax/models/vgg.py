"""Defines VGG19 up to relu5_1 (Simonyan and Zisserman, ICLR 2015).

The perceptual and the diversity loss compare its feature maps.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from spn_jax.models.layers import Conv

WIDTHS = (64, 128, 256, 512, 512)  # channels of the five blocks, and so of the five maps
# each block's convolutions as torchvision numbers its `features`
TORCHVISION = ((0, 2), (5, 7), (10, 12, 14, 16), (19, 21, 23, 25), (28,))


class VGG19(nnx.Module):
    """Computes the maps relu1_1, relu2_1, relu3_1, relu4_1 and relu5_1 of an image, at the device's
    highest precision.

    The diversity loss compares samples that differ by a thousandth when training starts. In TF32,
    or in one bfloat16 pass of a TPU, rounding would be a large part of that difference, and the
    gradient would have a wrong direction.

    The image is not normalised but used in [0, 1]: the released program does not subtract
    ImageNet's mean or divide by its standard deviation, although the published weights were trained
    so.

    Random parameters have He's initialisation (ICCV 2015; kernels uniform in +-sqrt(6 / fan_in), no
    biases), with which the mean square of the maps does not change with depth. With PyTorch's
    default it would shrink sixfold per layer, and a loss would hardly depend on the deep levels.
    """

    def __init__(self, *, rng: np.random.Generator, dtype: DTypeLike):
        def conv(features_in: int, features_out: int) -> Conv:
            conv = Conv(features_in, features_out, 3, padding=1, rng=rng, dtype=dtype)
            conv.kernel[...] = conv.kernel[...] * 6**0.5
            conv.bias = nnx.Param(jnp.zeros(features_out))
            return conv

        def block(i: int) -> nnx.List:
            widths = [(3, *WIDTHS)[i]] + [WIDTHS[i]] * len(TORCHVISION[i])
            return nnx.List([conv(*pair) for pair in zip(widths[:-1], widths[1:], strict=True)])

        self.blocks = nnx.List([block(i) for i in range(5)])

    def __call__(self, image: Array) -> tuple[Array, ...]:
        """Image (b, h, w, 3) in [0, 1], sides at least 16 -> maps (b, h', w', c): h' = h, h/2, ...,
        h/16 rounded down, c as in WIDTHS.
        """
        assert min(image.shape[1:3]) >= 16, f"VGG19 halves an image four times, {image.shape} is too small"
        x, maps = image, []
        with jax.default_matmul_precision("highest"):
            for i, block in enumerate(self.blocks):
                x = max_pool(x) if i else x
                for conv in block:
                    x = jax.nn.relu(conv(x))
                    if conv is block[0]:
                        maps.append(x)
        return tuple(maps)


def max_pool(x: Array) -> Array:
    """Takes the maximum over squares of 2 x 2: (b, h, w, c) -> (b, h // 2, w // 2, c).

    It takes two pairwise maxima, whose gradient needs a tenth of the time of a pooling operation's
    on the CPU.
    """
    height, width = (size // 2 * 2 for size in x.shape[1:3])
    x = jnp.maximum(x[:, 0:height:2], x[:, 1:height:2])
    return jnp.maximum(x[:, :, 0:width:2], x[:, :, 1:width:2])
