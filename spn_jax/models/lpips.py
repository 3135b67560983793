"""Defines LPIPS 0.1 (Zhang et al., CVPR 2018), a distance of images in AlexNet's or VGG16's
features.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax

from spn_jax.models.layers import Conv

SHIFT = (-0.030, -0.088, -0.188)  # ImageNet's mean and standard deviation for images in [-1, 1]
SCALE = (0.458, 0.448, 0.450)
EPSILON = 1e-10  # of the normalisation to unit length

Net = Literal["alex", "vgg"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
    """Describes a convolution: its number in torchvision's `features`, channels, kernel size,
    stride and padding.
    """

    number: int
    channels: int
    size: int = 3
    stride: int = 1
    padding: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trunk:
    """Describes the classifier whose features are compared: five stages, each of which ends in a
    compared map.
    """

    stages: tuple[tuple[Layer, ...], ...]
    pooled: tuple[int, ...]  # stages before which the map is max-pooled
    window: int  # height and width of that pooling; its stride is 2
    smallest: int  # height and width of an image below which a map would be empty


def _vgg_stage(channels: int, *numbers: int) -> tuple[Layer, ...]:
    return tuple(Layer(number=number, channels=channels) for number in numbers)


TRUNKS: dict[Net, Trunk] = {
    "alex": Trunk(
        stages=(
            (Layer(number=0, channels=64, size=11, stride=4, padding=2),),
            (Layer(number=3, channels=192, size=5, padding=2),),
            (Layer(number=6, channels=384),),
            (Layer(number=8, channels=256),),
            (Layer(number=10, channels=256),),
        ),
        pooled=(1, 2),
        window=3,
        smallest=31,
    ),
    "vgg": Trunk(
        stages=(
            _vgg_stage(64, 0, 2),
            _vgg_stage(128, 5, 7),
            _vgg_stage(256, 10, 12, 14),
            _vgg_stage(512, 17, 19, 21),
            _vgg_stage(512, 24, 26, 28),
        ),
        pooled=(1, 2, 3, 4),
        window=2,
        smallest=16,
    ),
}


class LPIPS(nnx.Module):
    """Computes the distance of image pairs, in float32 at the device's highest precision, whatever
    precision is set outside.

    Random parameters are kernels by He's initialisation, no biases, and weights `lins` uniform in
    [0, 1), because the released ones are not negative.

    Args:
        net: "alex", the authors' choice for evaluation, or "vgg".
    """

    def __init__(self, net: Net = "alex", *, rng: np.random.Generator):
        def conv(features_in: int, layer: Layer) -> Conv:
            conv = Conv(features_in, layer.channels, layer.size, stride=layer.stride, padding=layer.padding, rng=rng, dtype=jnp.float32)
            conv.kernel[...] = conv.kernel[...] * 6**0.5
            conv.bias = nnx.Param(jnp.zeros(layer.channels))
            return conv

        self.net = net
        trunk = TRUNKS[net]
        widths = [3] + [layer.channels for stage in trunk.stages for layer in stage]
        inputs = iter(widths)
        self.stages = nnx.List([nnx.List([conv(next(inputs), layer) for layer in stage]) for stage in trunk.stages])
        self.lins = nnx.List([nnx.Param(jnp.asarray(rng.random(stage[-1].channels, np.float32))) for stage in trunk.stages])

    def __call__(self, a: Array, b: Array) -> Array:
        """Images a and b, (b, h, w, 3) in [0, 1] and of equal size -> distances (b,). Equal images
        have distance 0 up to rounding (1e-15).

        Raises:
            ValueError: sizes differ, or are smaller than the trunk takes (31 for AlexNet, 16 for
                VGG16).
        """
        smallest = TRUNKS[self.net].smallest
        if a.shape != b.shape or a.ndim != 4 or a.shape[-1] != 3 or min(a.shape[1:3]) < smallest:
            raise ValueError(
                f"LPIPS ({self.net}) takes pairs (b, h, w, 3) with sides of {smallest} pixels at least, not {a.shape} and {b.shape}"
            )
        with jax.default_matmul_precision("highest"):
            # Pairs are adjacent, so that each device of a sharded batch keeps its own.
            images = jnp.stack([a, b], axis=1).reshape(-1, *a.shape[1:])
            maps = [unit(x).reshape(-1, 2, *x.shape[1:]) for x in self.features(images)]
            levels = [(jnp.square(x[:, 0] - x[:, 1]) * lin[...]).sum(-1).mean((1, 2)) for x, lin in zip(maps, self.lins, strict=True)]
            return jnp.stack(levels).sum(0)

    def features(self, image: Array) -> list[Array]:
        """Image (b, h, w, 3) in [0, 1] -> the maps after the last ReLU of each of the five
        stages.
        """
        trunk = TRUNKS[self.net]
        x, maps = (2 * jnp.asarray(image, jnp.float32) - 1 - jnp.asarray(SHIFT)) / jnp.asarray(SCALE), []
        for i, stage in enumerate(self.stages):
            x = max_pool(x, trunk.window) if i in trunk.pooled else x
            for conv in stage:
                x = jax.nn.relu(conv(x))
            maps.append(x)
        return maps


def unit(x: Array) -> Array:
    """Divides each pixel's vector of channels by its length: (b, h, w, c) -> (b, h, w, c)."""
    return x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + EPSILON)


def max_pool(x: Array, window: int) -> Array:
    """Takes the maximum over whole squares at stride 2: (b, h, w, c) -> (b, (h - window) // 2 + 1,
    (w - window) // 2 + 1, c).
    """
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, window, window, 1), (1, 2, 2, 1), "VALID")
