"""What tests of evaluations share: models that fill holes with a colour, networks of three numbers,
and pictures.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spn_jax.config import Config, DataConfig, EvalConfig

SIZE = 32
CONFIG = Config(data=DataConfig(image_size=SIZE), eval=EvalConfig(batch_size=4))


class Output(NamedTuple):
    image: jax.Array
    prior: dict[int, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class FakeModel:
    """Fills holes with each of its colours (s, 3), one sample a colour; sees nothing under the
    mask.
    """

    colours: jax.Array

    def __call__(self, image: jax.Array, mask: jax.Array, noise: None) -> Output:
        b, h, w, _ = image.shape
        samples = jnp.broadcast_to(self.colours[None, :, None, None], (b, len(self.colours), h, w, 3))
        visible = (image * (1 - mask))[:, None, ::4, ::4]
        return Output(samples, {3: jnp.broadcast_to(visible, (b, len(self.colours), *visible.shape[2:]))})


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class FakeSampler:
    """Fills holes with the colour that the noise of each completion says."""

    spread: jax.Array
    variational = True

    def noise_shape(self, height: int, width: int) -> tuple[int, int, int]:
        return height // 32, width // 32, 3

    def __call__(self, image: jax.Array, mask: jax.Array, noise: jax.Array) -> Output:
        (b, s), (h, w) = noise.shape[:2], image.shape[1:3]
        colours = jax.nn.sigmoid(self.spread * noise.mean((2, 3)))
        samples = jnp.broadcast_to(colours[:, :, None, None], (b, s, h, w, 3))
        return Output(samples, {3: samples[:, :, ::4, ::4]})


SAMPLER = FakeSampler(jnp.array(2.0))


def sampling(samples: int, **settings: Any) -> Config:
    return dataclasses.replace(CONFIG, eval=EvalConfig(samples=samples, **settings))


def pictures(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Photos and masks; picture i has a hole of i + 1 columns."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)
    masks = np.zeros((count, SIZE, SIZE, 1), np.uint8)
    for i in range(count):
        masks[i, :, : i + 1] = 1
    return images, masks


def batched(images: np.ndarray, masks: np.ndarray, size: int) -> Iterator[dict[str, np.ndarray]]:
    for start in range(0, len(images), size):
        rows = np.minimum(np.arange(start, start + size), len(images) - 1)
        valid = np.arange(start, start + size) < len(images)
        yield {"image": images[rows], "mask": masks[rows], "index": rows.astype(np.int32), "valid": valid}


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class FakeFeatures:
    """In place of Inception: the mean colours of the four quarters of a picture, three times that
    with clean-fid's resizing.
    """

    scale: jax.Array

    def __call__(self, image: jax.Array) -> jax.Array:
        b, h, w, c = image.shape
        return self.scale * image.reshape(b, 2, h // 2, 2, w // 2, c).mean((2, 4)).reshape(b, -1)

    def clean(self, image: jax.Array) -> jax.Array:
        return 3 * self(image)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class FakeDistance:
    """In place of LPIPS: the mean absolute difference."""

    scale: jax.Array

    def __call__(self, a: jax.Array, b: jax.Array) -> jax.Array:
        return self.scale * jnp.abs(a - b).mean((1, 2, 3))
