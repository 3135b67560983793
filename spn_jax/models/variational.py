"""Defines the stochastic part of the probabilistic SPN (paper section 3.3).

It gives a distribution of priors for one known surrounding.
"""

from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from spn_jax.models.layers import Conv, leaky_relu, pixel_shuffle, statistics_dtype


class Posterior(NamedTuple):
    """Holds the Gaussian that a masked photo's latent is drawn from: mean and standard deviation,
    (b, P/32, P/32, z), float32.
    """

    mu: Array
    sigma: Array

    def sample(self, noise: Array) -> Array:
        """Returns latents (b, s, P/32, P/32, z) = mu + sigma noise, for standard normal noise (b,
        s, P/32, P/32, z).
        """
        return self.mu[:, None] + self.sigma[:, None] * noise


class VariationalModule(nnx.Module):
    """Maps the trunk to the posterior (Eq. 5), and a latent to the map that is concatenated to the
    trunk.

    Args:
        features: channels c of the trunk.
        latent: channels z of the latent.
    """

    def __init__(self, features: int, latent: int, *, rng: np.random.Generator, dtype: DTypeLike):
        def conv(features_in: int, features_out: int, size: int, stride: int = 1, padding: int = 0) -> Conv:
            return Conv(features_in, features_out, size, stride=stride, padding=padding, rng=rng, dtype=dtype)

        wide = 2 * features
        self.encoder = nnx.List([conv(i, wide, 4, stride=2, padding=1) for i in (features, wide, wide)])
        self.mu = conv(wide, latent, 1)
        self.sigma = conv(wide, latent, 1)
        self.decoder = nnx.List([conv(i, 4 * features, 3, padding=1) for i in (latent, features, features)])

    def posterior(self, trunk: Array) -> Posterior:
        """Trunk (b, P/4, P/4, c) -> Posterior at P/32."""
        x = trunk
        for layer in self.encoder:
            x = leaky_relu(layer(x))
        mu, before_softplus = self.mu(x), self.sigma(x)
        wide = statistics_dtype(mu)
        return Posterior(mu.astype(wide), jax.nn.softplus(before_softplus.astype(wide)))

    def decode(self, latent: Array) -> Array:
        """Latent (b, P/32, P/32, z) -> (b, P/4, P/4, c)."""
        x = latent
        for layer in self.decoder:
            x = jax.nn.relu(pixel_shuffle(layer(x)))
        return x
