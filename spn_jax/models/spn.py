"""SPN: prior learner and generator as one module."""

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from spn_jax.config import ModelConfig
from spn_jax.models.generator import Generator
from spn_jax.models.prior import PriorLearner, Pyramid


class SPNOutput(NamedTuple):
    """What SPN returns for a batch of b photos and s completions of each (s = 1 in the deterministic model).

    image: (b, s, P, P, 3) in [0, 1], the raw prediction, holes and known pixels alike.
    prior: {l: (b, s, P / 2^(l-1), P / 2^(l-1), c_l)}, the semantic pyramid.
    distilled: the heads' prediction of the teacher's features at the same sizes; computed only where it is used (under jit).
    posterior: (mu, sigma) of the stochastic model, None in the deterministic one.
    """

    image: Array
    prior: Pyramid
    distilled: Pyramid
    posterior: tuple[Array, Array] | None


class SPN(nnx.Module):
    """Semantic Pyramid Network (Zhang et al., Pattern Recognition 2023).

    Args:
        config: sizes.
        teacher_channels: {l: channels} of the teacher's maps that the heads predict, from the cache's manifest.
        rng: draws the initial parameters.
        dtype: compute type; parameters are float32.
        remat: recompute the repeated blocks in the backward pass.
    """

    stride = 4  # height and width of the input must be divisible by it

    def __init__(
        self,
        config: ModelConfig,
        teacher_channels: Mapping[int, int],
        *,
        rng: np.random.Generator,
        dtype: DTypeLike = jnp.float32,
        remat: bool = False,
    ):
        self.prior_learner = PriorLearner(config, teacher_channels, rng=rng, dtype=dtype, remat=remat)
        self.generator = Generator(config, rng=rng, dtype=dtype, remat=remat)

    def __call__(self, image: Array, mask: Array, noise: Array | None = None) -> SPNOutput:
        """Completes photos.

        Args:
            image: (b, P, P', 3) in [0, 1]; what lies under the mask is never looked at.
            mask: (b, P, P', 1), 1 = hole.
            noise: for stochastic models; must be None here.

        Raises:
            ValueError: shapes that do not fit each other or the network's stride, or noise for a deterministic model.
        """
        check_input(image, mask, self.stride)
        if noise is not None:
            raise ValueError("noise was given, but this SPN is deterministic: it has no variational module to feed it to")
        masked = image * (1 - mask) + mask
        trunk, skips = self.prior_learner.encode(masked, mask)
        priors = self.prior_learner.pyramid(trunk, skips)
        features = self.generator.refine(self.generator.encode(masked, mask), priors)
        completed = self.generator.decode(features, priors)
        return SPNOutput(
            image=with_sample_axis(completed),
            prior={level: with_sample_axis(prior) for level, prior in priors.items()},
            distilled={level: with_sample_axis(maps) for level, maps in self.prior_learner.distil(priors).items()},
            posterior=None,
        )


def with_sample_axis(x: Array) -> Array:
    """(b, ...) -> (b, 1, ...)."""
    return x[:, None]


def check_input(image: Array, mask: Array, stride: int) -> None:
    """Raises ValueError unless image is (b, h, w, 3), mask (b, h, w, 1), and h and w fit the network."""
    height, width = image.shape[1:3]
    if image.ndim != 4 or image.shape[-1] != 3 or mask.shape != (*image.shape[:3], 1):
        raise ValueError(f"image {image.shape} and mask {mask.shape} must have shapes (b, h, w, 3) and (b, h, w, 1)")
    if height % stride or width % stride or min(height, width) < 4 * stride:
        raise ValueError(f"height and width {height} x {width} must be multiples of {stride} and at least {4 * stride}")
