"""Joins prior learner and generator into SPN; SPL and the probabilistic SPN are values of its
config.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from spn_jax.config import ModelConfig
from spn_jax.models.generator import Filled, Generator
from spn_jax.models.prior import PriorLearner, Pyramid
from spn_jax.models.smooth_fill import smooth_fill
from spn_jax.models.variational import Posterior

SMALLEST = 16  # least height and width: below, reflection padding would exceed the features


class SPNOutput(NamedTuple):
    """Holds SPN's output for a batch of b photos and s completions of each (s = 1 in the
    deterministic model).

    image: (b, s, P, P, 3) in [0, 1], the raw prediction, holes and known pixels alike.
    prior: {l: (b, s, P / 2^(l-1), P / 2^(l-1), c_l)}, the semantic pyramid.
    distilled: the heads' prediction of the teacher's features at the same sizes; under jit it is
        computed only where it is used.
    posterior: distribution of the probabilistic model's latents, None in the deterministic one.
    """

    image: Array
    prior: Pyramid
    distilled: Pyramid
    posterior: Posterior | None


class Encoding(NamedTuple):
    """Holds what all completions of a photo share: everything computed before the latent."""

    trunk: Array  # of the prior learner (b, P/4, P/4, c)
    skips: dict[int, Array]  # maps of its encoder by level
    features: Array  # F_enc of the generator (b, P/4, P/4, c)
    base: Filled | None  # filled photos that the generator adds to, if any
    posterior: Posterior | None  # None in the deterministic model


class SPN(nnx.Module):
    """Semantic Pyramid Network (Zhang et al., Pattern Recognition 2023).

    Args:
        config: sizes and kind.
        teacher_channels: {l: channels} of the teacher's maps that the heads predict, from the
            cache's manifest.
        rng: draws the initial parameters.
        dtype: compute type; parameters are float32.
        remat: whether the backward pass recomputes the repeated blocks (rematerialisation).
    """

    def __init__(
        self,
        config: ModelConfig,
        teacher_channels: Mapping[int, int],
        *,
        rng: np.random.Generator,
        dtype: DTypeLike = jnp.float32,
        remat: bool = False,
    ):
        self.hole_fill = config.hole_fill
        self.stride = config.stride  # height and width of the input must be divisible by it
        self.latent_channels = config.latent_channels if config.variational else None
        self.prior_learner = PriorLearner(config, teacher_channels, rng=rng, dtype=dtype, remat=remat)
        self.generator = Generator(config, rng=rng, dtype=dtype, remat=remat)

    @property
    def variational(self) -> bool:
        """Returns whether the completions of a photo depend on noise."""
        return self.latent_channels is not None

    def noise_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Returns the shape (h/32, w/32, z) of one completion's noise. Raises ValueError if the
        model is deterministic.
        """
        if self.latent_channels is None:
            raise ValueError("this SPN is deterministic: it has no variational module to feed noise to")
        return height // self.stride, width // self.stride, self.latent_channels

    def draw_noise(self, key: Array, photos: int, samples: int, height: int, width: int) -> Array:
        """Draws standard normal noise (b, s, h/32, w/32, z) for `samples` completions of `photos`
        photos. Raises ValueError as `noise_shape` does.
        """
        return jax.random.normal(key, (photos, samples, *self.noise_shape(height, width)), jnp.float32)

    def __call__(self, image: Array, mask: Array, noise: Array | None = None, *, key: Array | None = None, samples: int = 1) -> SPNOutput:
        """Completes photos. The part before the latent is computed once per photo, however many
        completions there are.

        Args:
            image: (b, P, P', 3) in [0, 1]; pixels under the mask are ignored.
            mask: (b, P, P', 1), 1 = hole.
            noise: standard normal (b, s, P/32, P'/32, z), one per completion. The probabilistic
                model needs it or `key`.
            key: key of jax.random that noise is drawn with.
            samples: number of completions to draw with `key`.

        Raises:
            ValueError: shapes that do not fit each other or the network's stride; noise or a key
                for a deterministic model, neither or both for a probabilistic one.
        """
        check_input(image, mask, self.stride)
        noise = self._noise(image.shape, noise, key, samples)
        return self.decode(self.encode(image, mask), noise)

    def encode(self, image: Array, mask: Array) -> Encoding:
        """Computes the first half of a call, for photos (b, P, P', 3) and masks (b, P, P', 1)."""
        base = Filled(smooth_fill(image, mask), mask) if self.hole_fill == "smooth" else None
        masked = image * (1 - mask) + mask if base is None else base.image
        with jax.named_scope("prior_learner"):
            trunk, skips = self.prior_learner.encode(masked, mask)
            variational = self.prior_learner.variational
            posterior = None if variational is None else variational.posterior(trunk)
        with jax.named_scope("generator"):
            return Encoding(trunk, skips, self.generator.encode(masked, mask), base, posterior)

    def decode(self, encoding: Encoding, noise: Array | None = None) -> SPNOutput:
        """Computes the second half: a completion for every noise (b, s, P/32, P'/32, z), or the
        only one of a deterministic model.

        Raises:
            ValueError: noise of another shape; noise for a deterministic model, none for a
                probabilistic one.
        """
        check_noise(noise, encoding.posterior)
        shared, latent, samples = encoding[:4], None, 1
        if encoding.posterior is not None and noise is not None:
            samples = noise.shape[1]
            latent = merge_samples(encoding.posterior.sample(noise))
            shared = jax.tree.map(lambda x: jnp.repeat(x, samples, axis=0), shared)
        trunk, skips, features, base = shared
        with jax.named_scope("prior_learner"):
            priors = self.prior_learner.pyramid(trunk, skips, latent)
            distilled = self.prior_learner.distil(priors)
        with jax.named_scope("generator"):
            completed = self.generator.decode(self.generator.refine(features, priors), priors, base)
        image, priors, distilled = jax.tree.map(lambda x: split_samples(x, samples), (completed, priors, distilled))
        return SPNOutput(image=image, prior=priors, distilled=distilled, posterior=encoding.posterior)

    def _noise(self, shape: tuple[int, ...], noise: Array | None, key: Array | None, samples: int) -> Array | None:
        """Returns the noise given or drawn, or None for a deterministic model."""
        batch, height, width, _ = shape
        if not self.variational:
            if noise is not None or key is not None or samples != 1:
                raise ValueError("noise, a key or samples were given, but this SPN is deterministic: it has no variational module")
            return None
        if noise is None and key is not None:
            return self.draw_noise(key, batch, samples, height, width)
        if noise is None or key is not None or samples not in (1, noise.shape[1]):
            raise ValueError("this SPN is probabilistic: give it either noise, which tells the number of samples, or a key to draw some")
        return noise


def check_noise(noise: Array | None, posterior: Posterior | None) -> None:
    """Raises ValueError unless noise (b, s, h, w, z) fits a posterior (b, h, w, z), or both are
    None.
    """
    if posterior is None and noise is None:
        return
    if posterior is None or noise is None:
        raise ValueError("a probabilistic SPN needs noise and a deterministic one takes none")
    b, *rest = posterior.mu.shape
    if noise.ndim != 5 or (noise.shape[0], *noise.shape[2:]) != (b, *rest) or not noise.shape[1]:
        wanted = ", ".join(map(str, rest))
        raise ValueError(f"noise {noise.shape} must have the shape (b, s, h/32, w/32, z), here ({b}, s, {wanted}) with s at least 1")


def merge_samples(x: Array) -> Array:
    """(b, s, ...) -> (b s, ...)."""
    return x.reshape(-1, *x.shape[2:])


def split_samples(x: Array, samples: int) -> Array:
    """(b s, ...) -> (b, s, ...)."""
    return x.reshape(-1, samples, *x.shape[1:])


def check_input(image: Array, mask: Array, stride: int) -> None:
    """Raises ValueError unless image is (b, h, w, 3), mask (b, h, w, 1), and h and w fit the
    network.
    """
    if image.ndim != 4 or image.shape[-1] != 3 or mask.shape != (*image.shape[:3], 1):
        raise ValueError(f"image {image.shape} and mask {mask.shape} must have shapes (b, h, w, 3) and (b, h, w, 1)")
    height, width = image.shape[1:3]
    least = max(SMALLEST, stride)
    if height % stride or width % stride or min(height, width) < least:
        raise ValueError(f"height and width {height} x {width} must be multiples of {stride} and at least {least}")
