"""Defines layers shared by the networks: convolutions, region norm, SPADE, spectral normalisation.

Activations are `b h w c`, kernels `h w in out`. Parameters are float32; `dtype` is the type
convolutions compute in. Statistics of every normalisation are float32 or wider, whatever the
compute type.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax import Array, lax
from jax.typing import DTypeLike

from spn_jax.models.convolution import add_bias, convolve, convolve_reflected
from spn_jax.models.tracing import traced_once

EPSILON = 1e-5  # of every instance and region normalisation (PyTorch's default)

REGION_THRESHOLD = 0.8  # least importance of the pixels in the region of LearntRegionNorm

Activation = Callable[[Array], Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def leaky_relu(x: Array, slope: float = 0.2) -> Array:
    """Applies LeakyReLU. Decoder, discriminator and posterior encoder have slope 0.2; slope 0 is
    ReLU.

    Its derivative is read from the output, which the next convolution keeps anyway. From the input,
    an accelerator's compiler would compute the output anew, and keep all that the input is made of:
    in SPADE that is one map more for each norm.
    """
    return _activated(x, slope)


@traced_once(1)
def _activated(x: Array, slope: float) -> Array:
    """Returns what `leaky_relu` does, with or without its gradient."""
    return jax.nn.leaky_relu(x, slope) if slope else jax.nn.relu(x)


def _activate(x: Array, slope: float) -> tuple[Array, Array]:
    out = _activated(x, slope)
    return out, out


@traced_once(0)
def _pull_back(slope: float, out: Array, gradient: Array) -> tuple[Array]:
    # Without the barrier the compiler would see through `out` and keep what it is made of.
    out = lax.optimization_barrier(out)
    return (jnp.where(out >= 0, gradient, slope * gradient) if slope else jnp.where(out > 0, gradient, 0),)


leaky_relu.defvjp(_activate, _pull_back)


def relu(x: Array) -> Array:
    """Applies `leaky_relu` of slope 0, for maps that the next convolution keeps."""
    return leaky_relu(x, 0.0)


def torch_uniform(rng: np.random.Generator, shape: tuple[int, ...], fan_in: int) -> Array:
    """Draws PyTorch's default initialisation of weights and biases alike: uniform in
    +-1/sqrt(fan_in).

    NumPy draws it, so every backend has the same numbers, and no program must be compiled for each
    of a hundred shapes (`jnp.asarray` would compile one).
    """
    return jax.device_put((2 * rng.random(shape, np.float32) - 1) * np.float32(fan_in**-0.5))


def resize_mask(mask: Array, height: int) -> Array:
    """Resizes a mask (b, H, W, 1) to a feature map's height by nearest neighbour: takes every k-th
    pixel.
    """
    step = mask.shape[1] // height
    return mask[:, ::step, ::step]


def enlarge(x: Array, factor: int = 2) -> Array:
    """Enlarges by nearest neighbour: (b, h, w, c) -> (b, factor h, factor w, c)."""
    return jnp.repeat(jnp.repeat(x, factor, axis=1), factor, axis=2)


def pixel_shuffle(x: Array) -> Array:
    """Rearranges (b, h, w, 4 c) to (b, 2 h, 2 w, c) with PyTorch's order of channels."""
    return rearrange(x, "b h w (c i j) -> b (h i) (w j) c", i=2, j=2)


class Conv(nnx.Module):
    """Convolves, with a bias by default. `reflect` pads by reflection instead of zeros (stride 1
    only).
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
        padding: int = 0,
        dilation: int = 1,
        reflect: bool = False,
        bias: bool = True,
    ):
        fan_in = size * size * features_in
        self.kernel = nnx.Param(torch_uniform(rng, (size, size, features_in, features_out), fan_in))
        self.bias = nnx.Param(torch_uniform(rng, (features_out,), fan_in)) if bias else None
        self.dtype, self.stride, self.padding, self.dilation, self.reflect = dtype, stride, padding, dilation, reflect

    def __call__(self, x: Array) -> Array:
        """(b, h, w, in) -> (b, h', w', out) in the compute type."""
        x, kernel = jnp.asarray(x, self.dtype), self.kernel[...]
        if self.reflect:
            out = convolve_reflected(x, kernel, padding=self.padding, dilation=self.dilation)
        else:
            out = convolve(x, kernel, stride=self.stride, padding=self.padding, dilation=self.dilation)
        return out if self.bias is None else add_bias(out, self.bias[...])


def dense_maps(x: Array, convs: Sequence[Conv]) -> Array:
    """Returns what the convolutions of a dense block add to x (b, h, w, c), each followed by ReLU,
    in order: (b, h, w, n growth).

    Convolution i (k3 p1, with bias) has as input x and the maps of those before it. The part that
    acts on x is computed for all of them at once: one convolution with many outputs is faster than
    many with few, and x is not copied into a larger map for each.
    """
    x = jnp.asarray(x, convs[0].dtype)
    kernels = [conv.kernel[...] for conv in convs]
    biases = [conv.bias[...] for conv in convs if conv.bias is not None]
    width = x.shape[-1]
    on_x = add_bias(convolve(x, jnp.concatenate([kernel[:, :, :width] for kernel in kernels], -1), padding=1), jnp.concatenate(biases))
    first, *rest = jnp.split(on_x, len(convs), -1)
    maps = jax.nn.relu(first)
    for part, kernel in zip(rest, kernels[1:], strict=True):
        maps = jnp.concatenate([maps, jax.nn.relu(part + convolve(maps, kernel[:, :, width:], padding=1))], -1)
    return maps


class ResidualBlock(nnx.Module):
    """Computes x + [k3 r1, ReLU, k3 r1](x) (r: reflection padding). Where the width changes, the
    shortcut is a k3 r1 convolution.
    """

    def __init__(self, features_in: int, features_out: int, *, rng: np.random.Generator, dtype: DTypeLike):
        def conv(width_in: int) -> Conv:
            return Conv(width_in, features_out, 3, padding=1, reflect=True, rng=rng, dtype=dtype)

        self.conv_in = conv(features_in)
        self.conv_out = conv(features_out)
        self.shortcut = conv(features_in) if features_in != features_out else None

    def __call__(self, x: Array) -> Array:
        """(b, h, w, in) -> (b, h, w, out)."""
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return shortcut + self.conv_out(relu(self.conv_in(x)))


def statistics_dtype(x: Array) -> jnp.dtype:
    """Returns float32, or float64 where the input has it."""
    return jnp.promote_types(x.dtype, jnp.float32)


@jax.named_scope("norm")
@traced_once()
def instance_norm(x: Array) -> Array:
    """Normalises each image and channel to zero mean and unit (biased, two-pass) variance, without
    parameters.
    """
    wide = x.astype(statistics_dtype(x))
    centred = wide - wide.mean((1, 2), keepdims=True)
    variance = jnp.square(centred).mean((1, 2), keepdims=True)
    return (centred * lax.rsqrt(variance + EPSILON)).astype(x.dtype)


def region_normalise(x: Array, region: Array) -> tuple[Array, Array, Array]:
    """Applies region normalisation (Yu et al., AAAI 2020) without its affine map.

    It is defined per region r of `area` pixels out of h w: fill the other region with r's mean,
    instance-normalise the whole and multiply by sqrt(area / (h w)); then add both results. Filling
    with the mean makes the other region exactly zero and scales the variance by area / (h w), so
    both regions are computed at once.

    Args:
        x: (b, h, w, c) in float32 or wider.
        region: (b, h, w, 1) of 0 and 1.

    Returns:
        (centred, scale, scale_rest): the result is centred * scale inside the region and centred *
        scale_rest outside; centred (b, h, w, c), both scales (b, 1, 1, c).
    """
    rest = 1 - region
    centred = x - (region * region_mean(x, region) + rest * region_mean(x, rest))
    return centred, region_scale(centred, region), region_scale(centred, rest)


class RegionNorm(nnx.Module):
    """Applies region normalisation with the given mask as region (RN-B), then one learnt affine map
    per region.
    """

    def __init__(self, features: int):
        self.hole_gamma, self.hole_beta, self.known_gamma, self.known_beta = (nnx.Param(jnp.zeros(features)) for _ in range(4))

    @jax.named_scope("norm")
    def __call__(self, x: Array, mask: Array) -> Array:
        """x (b, h, w, c), mask (b, H, W, 1) at a multiple of x's size -> (b, h, w, c)."""
        wide = x.astype(statistics_dtype(x))
        hole = resize_mask(mask, x.shape[1]).astype(wide.dtype)
        centred, scale_hole, scale_known = region_normalise(wide, hole)
        scale_hole, scale_known = scale_hole * (1 + self.hole_gamma[...]), scale_known * (1 + self.known_gamma[...])
        out = centred * (hole * scale_hole + (1 - hole) * scale_known) + self.hole_beta[...] + self.known_beta[...]
        return out.astype(x.dtype)


class LearntRegionNorm(nnx.Module):
    """Applies region normalisation with a region that the network learns (RN-L; Yu et al., AAAI
    2020).

    Mean and maximum over the channels give each pixel an importance in (0, 1). The region is where
    it reaches 0.8; no gradient flows through this threshold. Importance also gives the affine map,
    which is the same for all channels.
    """

    def __init__(self, *, rng: np.random.Generator, dtype: DTypeLike):
        self.importance = Conv(2, 1, 7, padding=3, bias=False, rng=rng, dtype=dtype)
        self.gamma = Conv(1, 1, 7, padding=3, rng=rng, dtype=dtype)
        self.beta = Conv(1, 1, 7, padding=3, rng=rng, dtype=dtype)

    def __call__(self, x: Array) -> Array:
        """(b, h, w, c) -> (b, h, w, c)."""
        wide = x.astype(statistics_dtype(x))
        summary = jnp.concatenate([wide.mean(-1, keepdims=True), wide.max(-1, keepdims=True)], -1)
        importance = jax.nn.sigmoid(self.importance(summary))
        region = lax.stop_gradient((importance >= REGION_THRESHOLD).astype(wide.dtype))
        centred, scale, scale_rest = region_normalise(wide, region)
        normed = centred * (region * scale + (1 - region) * scale_rest)
        return (normed * (1 + self.gamma(importance)) + self.beta(importance)).astype(x.dtype)


def region_mean(x: Array, region: Array) -> Array:
    """Returns the mean (b, 1, 1, c) of x over a region (b, h, w, 1). An empty region counts as one
    pixel, so its mean is 0.
    """
    area = jnp.maximum(region.sum((1, 2), keepdims=True), 1)
    return (x * region).sum((1, 2), keepdims=True) / area


def region_scale(centred: Array, region: Array) -> Array:
    """Returns the factor (b, 1, 1, c) by which region normalisation multiplies the centred values
    of one region.
    """
    share = jnp.maximum(region.sum((1, 2), keepdims=True), 1) / (centred.shape[1] * centred.shape[2])
    variance = (jnp.square(centred) * region).mean((1, 2), keepdims=True)
    return jnp.sqrt(share) * lax.rsqrt(variance + EPSILON)


class SPADE(nnx.Module):
    """Applies spatially-adaptive normalisation (Eq. 8; Park et al., CVPR 2019): instance norm, then
    gamma and beta from a prior.
    """

    def __init__(self, features: int, prior_features: int, hidden: int, *, rng: np.random.Generator, dtype: DTypeLike):
        self.shared = Conv(prior_features, hidden, 3, padding=1, rng=rng, dtype=dtype)
        self.gamma = Conv(hidden, features, 3, padding=1, rng=rng, dtype=dtype)
        self.beta = Conv(hidden, features, 3, padding=1, rng=rng, dtype=dtype)

    def __call__(self, x: Array, prior: Array | None) -> Array:
        """x (b, h, w, c), prior (b, h, w, p) -> (b, h, w, c)."""
        assert prior is not None, "a level with SPADE has a prior"
        shared = relu(self.shared(prior))
        return instance_norm(x) * (1 + self.gamma(shared)) + self.beta(shared)


class ConcatNorm(nnx.Module):
    """Replaces SPADE in the ablation "w/ Concat" (Fig. 7): instance norm, then a convolution of
    features and prior together.

    The paper only says that features and prior are concatenated in place of the SPADE blocks. Here
    blocks, widths and norms stay. Concatenation and a k3 p1 convolution back to the features' width
    replace only gamma and beta.
    """

    def __init__(self, features: int, prior_features: int, *, rng: np.random.Generator, dtype: DTypeLike):
        self.conv = Conv(features + prior_features, features, 3, padding=1, rng=rng, dtype=dtype)

    def __call__(self, x: Array, prior: Array | None) -> Array:
        """x (b, h, w, c), prior (b, h, w, p) -> (b, h, w, c)."""
        assert prior is not None, "a level with a norm of two inputs has a prior"
        return self.conv(jnp.concatenate([instance_norm(x), prior], -1))


class PlainNorm(nnx.Module):
    """Replaces SPADE at a scale without prior: instance norm alone (the paper's ablation of prior
    scales).
    """

    def __call__(self, x: Array, prior: Array | None) -> Array:
        """(b, h, w, c) -> (b, h, w, c); `prior` is ignored."""
        return instance_norm(x)


class SpectralVector(nnx.Variable):
    """Holds a singular vector that spectral normalisation keeps from step to step: state, not a
    parameter.
    """


class SpectralConv(nnx.Module):
    """Convolves without bias, with a kernel divided by its largest singular value (Miyato et al.,
    ICLR 2018).

    It follows PyTorch's classic form: the kernel is a matrix W (out, in kh kw), sigma = u . (W v),
    and u and v are constant for the gradient. Only `power_iteration` changes u and v, not a call of
    the layer. Flax's own SpectralNorm overwrites the stored kernel at every call, evaluation
    included; hence this class.
    """

    def __init__(
        self, features_in: int, features_out: int, size: int, *, rng: np.random.Generator, dtype: DTypeLike, stride: int, padding: int
    ):
        fan_in = size * size * features_in
        self.kernel = nnx.Param(torch_uniform(rng, (size, size, features_in, features_out), fan_in))
        self.u = SpectralVector(jax.device_put(random_direction(rng, features_out)))
        self.v = SpectralVector(jax.device_put(random_direction(rng, fan_in)))
        self.dtype, self.stride, self.padding = dtype, stride, padding

    def matrix(self) -> Array:
        """Returns the kernel as (out, in kh kw). The order is PyTorch's, so that u and v are
        interchangeable with PyTorch's.
        """
        return rearrange(self.kernel[...], "h w i o -> o (i h w)")

    def power_iteration(self) -> None:
        """Makes one power iteration towards the leading singular vectors. A training forward pass
        begins with it.
        """
        matrix = lax.stop_gradient(self.matrix())
        # An assignment to self.v[...] compares shardings, for which JAX searches the whole program.
        self.v.set_value(unit_vector(jnp.matmul(self.u[...], matrix, precision="highest")))
        self.u.set_value(unit_vector(jnp.matmul(matrix, self.v[...], precision="highest")))

    def __call__(self, x: Array) -> Array:
        """(b, h, w, in) -> (b, h', w', out) with the stored u and v."""
        u, v = lax.stop_gradient((self.u[...], self.v[...]))
        sigma = jnp.dot(u, jnp.matmul(self.matrix(), v, precision="highest"), precision="highest")
        return convolve(jnp.asarray(x, self.dtype), self.kernel[...] / sigma, stride=self.stride, padding=self.padding)


def random_direction(rng: np.random.Generator, size: int) -> np.ndarray:
    """Returns a normalised Gaussian vector (size,) in float32."""
    vector = rng.standard_normal(size, np.float32)
    return vector / np.linalg.norm(vector)


def unit_vector(x: Array) -> Array:
    """Returns x / max(|x|, 1e-12)."""
    return x / jnp.maximum(jnp.linalg.norm(x), 1e-12)
