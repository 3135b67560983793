"""Layers shared by the networks: convolutions in PyTorch's conventions, region normalisation, SPADE, spectral norm.

Activations are `b h w c`, kernels `h w in out`. Parameters are float32; `dtype` is the type convolutions compute in.
Statistics of every normalisation are float32 or wider, whatever the compute type.
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

EPSILON = 1e-5  # of every instance and region normalisation (PyTorch's default)

REGION_THRESHOLD = 0.8  # importance from which a pixel belongs to the region of LearntRegionNorm

Activation = Callable[[Array], Array]
Padding = tuple[tuple[int, int], tuple[int, int]]  # zeros before and after, of height and of width

# What the CPU backend's convolutions need in order to be fast: docs/performance.md has the measurements.
STRIP_PIXELS, STRIP_ROWS = 1024, 8  # of the output, in one strip of the kernel's gradient: as many pixels, but no fewer rows
SPARE_ROWS = 2  # which a convolution computes too many, where that makes it faster; the next line says where
FEW_PIXELS, FEW_OUTPUTS, FEW_FEATURES, MANY_PRODUCTS = 2**14, 2**20, 32, 2**24


def leaky_relu(x: Array, slope: float = 0.2) -> Array:
    """LeakyReLU; slope 0.2 is the one of decoder, discriminator and posterior encoder, slope 0 is ReLU."""
    return jax.nn.leaky_relu(x, slope) if slope else jax.nn.relu(x)


def torch_uniform(rng: np.random.Generator, shape: tuple[int, ...], fan_in: int) -> Array:
    """PyTorch's default initialisation of weights and biases alike: uniform in +-1/sqrt(fan_in).

    Drawn by NumPy: the same numbers on every backend, and no random program to compile for each of a hundred shapes.
    """
    return jnp.asarray((2 * rng.random(shape, np.float32) - 1) * np.float32(fan_in**-0.5))


def resize_mask(mask: Array, height: int) -> Array:
    """Brings a mask (b, H, W, 1) to a feature map's height by nearest neighbour: every k-th pixel."""
    step = mask.shape[1] // height
    return mask[:, ::step, ::step]


def enlarge(x: Array, factor: int = 2) -> Array:
    """Nearest-neighbour enlargement (b, h, w, c) -> (b, factor h, factor w, c)."""
    return jnp.repeat(jnp.repeat(x, factor, axis=1), factor, axis=2)


def pixel_shuffle(x: Array) -> Array:
    """(b, h, w, 4 c) -> (b, 2 h, 2 w, c) with PyTorch's order of channels."""
    return rearrange(x, "b h w (c i j) -> b (h i) (w j) c", i=2, j=2)


def convolve(x: Array, kernel: Array, *, stride: int = 1, padding: int = 0, dilation: int = 1) -> Array:
    """Cross-correlation with explicit zero padding: (b, h, w, in) and (k, k, in, out) -> (b, h', w', out).

    Its gradients inside `jax.shard_map` need check_vma=False, and there the caller adds up those for the kernel.
    """
    if kernel.shape[:2] == (1, 1) and stride == 1 and padding == 0:
        return jnp.einsum("bhwi,io->bhwo", x, kernel[0, 0])  # a matrix product: the CPU backend's 1x1 convolution is slow
    return _convolution(x, kernel, stride, ((padding, padding), (padding, padding)), dilation)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _convolution(x: Array, kernel: Array, stride: int, padding: Padding, dilation: int) -> Array:
    """Convolution that has forms of its own for the CPU, one for its value and one for each gradient."""

    def plain(x: Array, kernel: Array) -> Array:
        return plain_convolution(x, kernel, stride, padding, dilation)

    if stride > 1 or not runs_on_one_core(x, kernel):
        return plain(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=lambda x, kernel: _with_spare_rows(x, kernel, padding, dilation), default=plain)


def plain_convolution(x: Array, kernel: Array, stride: int, padding: Padding, dilation: int, result_type: DTypeLike | None = None) -> Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        preferred_element_type=result_type,
    )


def runs_on_one_core(x: Array, kernel: Array) -> bool:
    """Whether the CPU backend gives a convolution of stride 1 to a single core, and it is large enough to matter."""
    pixels, features_in, features_out = x.shape[1] * x.shape[2], *kernel.shape[2:]
    few = pixels * features_out < FEW_OUTPUTS or min(features_in, features_out) <= FEW_FEATURES
    return few and pixels <= FEW_PIXELS and pixels * kernel.size >= MANY_PRODUCTS


def _with_spare_rows(x: Array, kernel: Array, padding: Padding, dilation: int) -> Array:
    """Convolution that computes two rows too many and cuts them off.

    The CPU backend divides a small convolution among the cores only where the height is no multiple of its block of rows.
    """
    (top, bottom), sides = padding
    return plain_convolution(x, kernel, 1, ((top, bottom + SPARE_ROWS), sides), dilation)[:, :-SPARE_ROWS]


def _convolution_forward(x: Array, kernel: Array, stride: int, padding: Padding, dilation: int) -> tuple[Array, tuple[Array, Array]]:
    return _convolution(x, kernel, stride, padding, dilation), (x, kernel)


def _convolution_backward(stride: int, padding: Padding, dilation: int, saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved
    return (
        _input_gradient(x, kernel, gradient, stride, padding, dilation),
        _gradient_of_kernel(x, kernel, gradient, stride, padding, dilation),
    )


_convolution.defvjp(_convolution_forward, _convolution_backward)


def _input_gradient(x: Array, kernel: Array, gradient: Array, stride: int, padding: Padding, dilation: int) -> Array:
    """The gradient for x, of which shape and type alone are looked at; `gradient` is that for the output."""

    def plain(kernel: Array, gradient: Array) -> Array:
        (for_x,) = jax.linear_transpose(lambda x: plain_convolution(x, kernel, stride, padding, dilation), x)(gradient)
        return for_x

    def with_spare_rows(kernel: Array, gradient: Array) -> Array:
        return _with_spare_rows(gradient, transposed(kernel), opposite(kernel, padding, dilation), dilation)

    def in_phases(kernel: Array, gradient: Array) -> Array:
        return _input_gradient_in_phases(kernel, gradient, stride, padding[0][0])

    if stride == 1 and runs_on_one_core(gradient, kernel.swapaxes(2, 3)):
        return lax.platform_dependent(kernel, gradient, cpu=with_spare_rows, default=plain)
    if stride > 1 and dilation == 1 and kernel.shape[0] % stride == 0 and x.shape[1:3] == tuple(stride * n for n in gradient.shape[1:3]):
        return lax.platform_dependent(kernel, gradient, cpu=in_phases, default=plain)
    return plain(kernel, gradient)


def transposed(kernel: Array) -> Array:
    """The kernel (kh, kw, out, in) whose convolution is the transpose of convolution with `kernel` (kh, kw, in, out)."""
    return jnp.flip(kernel, (0, 1)).swapaxes(2, 3)


def opposite(kernel: Array, padding: Padding, dilation: int) -> Padding:
    """The padding with which the transposed convolution of stride 1 gives back the input's size."""
    (top, bottom), (left, right) = padding
    high, wide = (dilation * (size - 1) for size in kernel.shape[:2])
    return (high - top, high - bottom), (wide - left, wide - right)


def _input_gradient_in_phases(kernel: Array, gradient: Array, stride: int, padding: int) -> Array:
    """The gradient for the input of a convolution whose output is smaller by exactly `stride`.

    The pixels of one remainder modulo the stride see one part of the kernel: the parts are one convolution with many outputs, put
    into each other afterwards. The CPU backend would multiply the zeros between the spread pixels of the gradient as well.
    """
    phases = range(stride)
    b, h, w, _ = gradient.shape
    size, features = kernel.shape[0] // stride, kernel.shape[2]
    parts = [transposed(kernel[(i + padding) % stride :: stride, (j + padding) % stride :: stride]) for i in phases for j in phases]
    whole = ((size - 1, size - 1), (size - 1, size - 1))
    maps = plain_convolution(gradient, jnp.concatenate(parts, -1), 1, whole, 1)
    maps = maps.reshape(*maps.shape[:3], stride, stride, features)
    first = [(i + padding) // stride for i in phases]
    rows = [jnp.stack([maps[:, first[i] : first[i] + h, first[j] : first[j] + w, i, j] for j in phases], 3) for i in phases]
    return jnp.stack(rows, 2).reshape(b, h * stride, w * stride, features)


def _gradient_of_kernel(x: Array, kernel: Array, gradient: Array, stride: int, padding: Padding, dilation: int) -> Array:
    """The gradient for the kernel, of which shape and type alone are looked at; `gradient` is that for the output."""

    def plain(x: Array, gradient: Array) -> Array:
        (for_kernel,) = jax.linear_transpose(lambda kernel: plain_convolution(x, kernel, stride, padding, dilation), kernel)(gradient)
        return for_kernel

    def in_strips(x: Array, gradient: Array) -> Array:
        size, _, features_in, features_out = kernel.shape
        if stride > 1 or features_out > FEW_FEATURES or features_in <= features_out:
            return _kernel_gradient_in_strips(x, size, gradient, stride, padding, dilation)
        # The backend is slow with few outputs: input and gradient change places, which transposes the kernel.
        return transposed(_kernel_gradient_in_strips(gradient, size, x, 1, opposite(kernel, padding, dilation), dilation))

    return lax.platform_dependent(x, gradient, cpu=in_strips, default=plain)


def _kernel_gradient_in_strips(x: Array, size: int, gradient: Array, stride: int, padding: Padding, dilation: int) -> Array:
    """The gradient for a square kernel of some size as a sum over strips of rows that fit into the processor's caches.

    With stride s and dilation d it is dK[i, j] = sum over photos and pixels (y, x) of X[s y + d i, s x + d j]^T G[y, x]: a convolution
    of X with the kernel G, where channels stand in the place of the batch and photos in the place of channels.
    The CPU backend's own form falls from 140 GFLOP/s on small maps to 20 on large ones (one photo, two cores); so it stays above 150
    with 64 channels or more. The sum is float32 or wider, whatever the compute type.
    """
    height, width = gradient.shape[1:3]
    rows = max(STRIP_ROWS, STRIP_PIXELS // width)
    reach = (size - 1) * dilation + 1  # rows of x that a row of the output sees
    wide = statistics_dtype(x)
    x = jnp.pad(x, ((0, 0), padding[0], (0, 0), (0, 0))).transpose(3, 1, 2, 0)
    kernels = gradient.transpose(1, 2, 0, 3)

    def strip(first: int) -> Array:
        last = min(first + rows, height)
        seen = x[:, first * stride : (last - 1) * stride + reach]
        return plain_convolution(seen, kernels[first:last], dilation, ((0, 0), padding[1]), stride, wide)

    total = functools.reduce(jnp.add, map(strip, range(0, height, rows)))
    return total[:, :, :size].transpose(1, 2, 0, 3).astype(gradient.dtype)


def convolve_reflected(x: Array, kernel: Array, *, padding: int, dilation: int = 1) -> Array:
    """Convolution with reflection padding, size-preserving. The CPU has forms of its own, with the same values to rounding."""

    def padded(x: Array) -> Array:
        return jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)), mode="reflect")

    def plain(x: Array, kernel: Array) -> Array:
        return convolve(padded(x), kernel, dilation=dilation)

    def padded_and_cut(x: Array, kernel: Array) -> Array:
        """The backend runs unpadded convolutions several times slower than padded ones, so the border is cut off afterwards."""
        return convolve(padded(x), kernel, padding=padding, dilation=dilation)[:, padding:-padding, padding:-padding]

    def with_added_borders(x: Array, kernel: Array) -> Array:
        return _with_reflected_borders(x, kernel, dilation)

    borders_differ = padding < min(x.shape[1:3])  # else a pixel is reflected more than once
    three = kernel.shape[:2] == (3, 3) and padding == dilation and borders_differ
    return lax.platform_dependent(x, kernel, cpu=with_added_borders if three else padded_and_cut, default=plain)


def _with_reflected_borders(x: Array, kernel: Array, reach: int) -> Array:
    """3x3 convolution of padding and dilation `reach`, with zeros beyond the borders, and then what their reflection adds.

    Only the rows and columns nearer to a border than `reach` lack something: one row or column of the kernel.
    """
    height, width = x.shape[1:3]
    out = convolve(x, kernel, padding=reach, dilation=reach)

    def taps(line: Array, axis: int, length: int, weights: Array) -> Array:
        """A line of pixels, extended by `reach` at both ends of the axis, times three weights (3, in, out) along it."""
        seen = [lax.slice_in_dim(line, i * reach, i * reach + length, axis=axis) for i in range(3)]
        return jnp.einsum("bhwi,io->bhwo", jnp.concatenate(seen, -1), weights.reshape(-1, weights.shape[-1]))

    for row, first, start in ((0, 1, 0), (2, height - 1 - reach, height - reach)):
        mirrored = jnp.flip(x[:, first : first + reach], 1)
        line = jnp.pad(mirrored, ((0, 0), (0, 0), (reach, reach), (0, 0)), mode="reflect")  # the corners
        out = _add_at(out, taps(line, 2, width, kernel[row]), 1, start)
    for column, first, start in ((0, 1, 0), (2, width - 1 - reach, width - reach)):
        mirrored = jnp.flip(x[:, :, first : first + reach], 2)
        line = jnp.pad(mirrored, ((0, 0), (reach, reach), (0, 0), (0, 0)))
        out = _add_at(out, taps(line, 1, height, kernel[:, column]), 2, start)
    return out


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _add_at(x: Array, part: Array, axis: int, start: int) -> Array:
    """x with `part` added from index `start` of an axis on. As a sum, with a gradient that copies nothing."""
    old = lax.slice_in_dim(x, start, start + part.shape[axis], axis=axis)
    return lax.dynamic_update_slice_in_dim(x, old + part, start, axis)


def _add_at_forward(x: Array, part: Array, axis: int, start: int) -> tuple[Array, int]:
    return _add_at(x, part, axis, start), part.shape[axis]


def _add_at_backward(axis: int, start: int, length: int, gradient: Array) -> tuple[Array, Array]:
    return gradient, lax.slice_in_dim(gradient, start, start + length, axis=axis)


_add_at.defvjp(_add_at_forward, _add_at_backward)


class Conv(nnx.Module):
    """Convolution, with bias unless told otherwise; `reflect` pads by reflection instead of zeros (stride 1 only)."""

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
        x, kernel = jnp.asarray(x, self.dtype), jnp.asarray(self.kernel[...], self.dtype)
        if self.reflect:
            out = convolve_reflected(x, kernel, padding=self.padding, dilation=self.dilation)
        else:
            out = convolve(x, kernel, stride=self.stride, padding=self.padding, dilation=self.dilation)
        return out if self.bias is None else out + jnp.asarray(self.bias[...], self.dtype)


def dense_maps(x: Array, convs: Sequence[Conv]) -> Array:
    """What the convolutions of a dense block add to x (b, h, w, c), each followed by ReLU: (b, h, w, n growth), in their order.

    Convolution i (k3 p1, with bias) is on x and on what those before it added. Its part on x is computed for all of them at once: one
    convolution of many outputs is faster than many of few, and x is not copied into a larger map for each.
    """
    x = jnp.asarray(x, convs[0].dtype)
    kernels = [jnp.asarray(conv.kernel[...], conv.dtype) for conv in convs]
    biases = [jnp.asarray(conv.bias[...], conv.dtype) for conv in convs if conv.bias is not None]
    width = x.shape[-1]
    on_x = convolve(x, jnp.concatenate([kernel[:, :, :width] for kernel in kernels], -1), padding=1) + jnp.concatenate(biases)
    first, *rest = jnp.split(on_x, len(convs), -1)
    maps = jax.nn.relu(first)
    for part, kernel in zip(rest, kernels[1:], strict=True):
        maps = jnp.concatenate([maps, jax.nn.relu(part + convolve(maps, kernel[:, :, width:], padding=1))], -1)
    return maps


class ResidualBlock(nnx.Module):
    """x + [k3 r1, ReLU, k3 r1](x); where the width changes the shortcut is a k3 r1 convolution."""

    def __init__(self, features_in: int, features_out: int, *, rng: np.random.Generator, dtype: DTypeLike):
        def conv(width_in: int) -> Conv:
            return Conv(width_in, features_out, 3, padding=1, reflect=True, rng=rng, dtype=dtype)

        self.conv_in = conv(features_in)
        self.conv_out = conv(features_out)
        self.shortcut = conv(features_in) if features_in != features_out else None

    def __call__(self, x: Array) -> Array:
        """(b, h, w, in) -> (b, h, w, out)."""
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return shortcut + self.conv_out(jax.nn.relu(self.conv_in(x)))


def statistics_dtype(x: Array) -> jnp.dtype:
    """float32, or float64 where the input has it."""
    return jnp.promote_types(x.dtype, jnp.float32)


def instance_norm(x: Array) -> Array:
    """Instance normalisation without parameters: zero mean, unit (biased, two-pass) variance per image and channel."""
    wide = x.astype(statistics_dtype(x))
    centred = wide - wide.mean((1, 2), keepdims=True)
    variance = jnp.square(centred).mean((1, 2), keepdims=True)
    return (centred * lax.rsqrt(variance + EPSILON)).astype(x.dtype)


def region_normalise(x: Array, region: Array) -> tuple[Array, Array, Array]:
    """Region normalisation (Yu et al., AAAI 2020) before its affine map.

    Definition, per region r of `area` pixels out of h w: fill the other region with r's mean, instance-normalise the whole,
    multiply by sqrt(area / (h w)); add both. Filling with the mean makes the other region exactly zero and scales the variance
    by area / (h w), so both regions are computed at once.

    Args:
        x: (b, h, w, c) in float32 or wider.
        region: (b, h, w, 1) of 0 and 1.

    Returns:
        (centred, scale, scale_rest): the result is centred * scale inside the region and centred * scale_rest outside;
        centred (b, h, w, c), both scales (b, 1, 1, c).
    """
    rest = 1 - region
    centred = x - (region * region_mean(x, region) + rest * region_mean(x, rest))
    return centred, region_scale(centred, region), region_scale(centred, rest)


class RegionNorm(nnx.Module):
    """Region normalisation with the given mask as region (RN-B), then one learnt affine map a region."""

    def __init__(self, features: int):
        self.hole_gamma, self.hole_beta, self.known_gamma, self.known_beta = (nnx.Param(jnp.zeros(features)) for _ in range(4))

    def __call__(self, x: Array, mask: Array) -> Array:
        """x (b, h, w, c), mask (b, H, W, 1) at a multiple of x's size -> (b, h, w, c)."""
        wide = x.astype(statistics_dtype(x))
        hole = resize_mask(mask, x.shape[1]).astype(wide.dtype)
        centred, scale_hole, scale_known = region_normalise(wide, hole)
        scale_hole, scale_known = scale_hole * (1 + self.hole_gamma[...]), scale_known * (1 + self.known_gamma[...])
        out = centred * (hole * scale_hole + (1 - hole) * scale_known) + self.hole_beta[...] + self.known_beta[...]
        return out.astype(x.dtype)


class LearntRegionNorm(nnx.Module):
    """Region normalisation whose region the network finds itself (RN-L; Yu et al., AAAI 2020).

    Mean and maximum over the channels give each pixel an importance in (0, 1); the region is where it reaches 0.8, a choice that
    no gradient flows through. Importance also gives the affine map, alike for all channels.
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
    """Mean (b, 1, 1, c) of x over a region (b, h, w, 1); an empty region counts as one pixel, so its mean is 0."""
    area = jnp.maximum(region.sum((1, 2), keepdims=True), 1)
    return (x * region).sum((1, 2), keepdims=True) / area


def region_scale(centred: Array, region: Array) -> Array:
    """Factor (b, 1, 1, c) by which region normalisation multiplies the centred values of one region."""
    share = jnp.maximum(region.sum((1, 2), keepdims=True), 1) / (centred.shape[1] * centred.shape[2])
    variance = (jnp.square(centred) * region).mean((1, 2), keepdims=True)
    return jnp.sqrt(share) * lax.rsqrt(variance + EPSILON)


class SPADE(nnx.Module):
    """Spatially-adaptive normalisation (Eq. 8; Park et al., CVPR 2019): instance norm, then gamma and beta from a prior."""

    def __init__(self, features: int, prior_features: int, hidden: int, *, rng: np.random.Generator, dtype: DTypeLike):
        self.shared = Conv(prior_features, hidden, 3, padding=1, rng=rng, dtype=dtype)
        self.gamma = Conv(hidden, features, 3, padding=1, rng=rng, dtype=dtype)
        self.beta = Conv(hidden, features, 3, padding=1, rng=rng, dtype=dtype)

    def __call__(self, x: Array, prior: Array | None) -> Array:
        """x (b, h, w, c), prior (b, h, w, p) -> (b, h, w, c)."""
        assert prior is not None, "a level with SPADE has a prior"
        shared = jax.nn.relu(self.shared(prior))
        return instance_norm(x) * (1 + self.gamma(shared)) + self.beta(shared)


class ConcatNorm(nnx.Module):
    """Stands where SPADE does in the ablation "w/ Concat" (Fig. 7): instance norm, then a convolution of features and prior together.

    The paper says no more than that features and prior are concatenated in place of the SPADE blocks. Here blocks, widths and norms
    stay, and concatenation with a k3 p1 convolution back to the features' width replaces gamma and beta alone.
    """

    def __init__(self, features: int, prior_features: int, *, rng: np.random.Generator, dtype: DTypeLike):
        self.conv = Conv(features + prior_features, features, 3, padding=1, rng=rng, dtype=dtype)

    def __call__(self, x: Array, prior: Array | None) -> Array:
        """x (b, h, w, c), prior (b, h, w, p) -> (b, h, w, c)."""
        assert prior is not None, "a level with a norm of two inputs has a prior"
        return self.conv(jnp.concatenate([instance_norm(x), prior], -1))


class PlainNorm(nnx.Module):
    """Stands where a scale without prior has no SPADE: instance norm alone (the paper's ablation of prior scales)."""

    def __call__(self, x: Array, prior: Array | None) -> Array:
        """(b, h, w, c) -> (b, h, w, c); `prior` is not looked at."""
        return instance_norm(x)


class SpectralVector(nnx.Variable):
    """A singular vector that spectral norm carries from step to step; state, not a parameter."""


class SpectralConv(nnx.Module):
    """Bias-free convolution whose kernel is divided by its largest singular value (Miyato et al., ICLR 2018).

    PyTorch's classic form: the kernel as a matrix (out, in kh kw), sigma = u . (W v), u and v constant for the gradient.
    Calling the layer never changes u and v; `power_iteration` does. Flax's own SpectralNorm overwrites the stored kernel
    at every call, evaluation included, hence this class.
    """

    def __init__(
        self, features_in: int, features_out: int, size: int, *, rng: np.random.Generator, dtype: DTypeLike, stride: int, padding: int
    ):
        fan_in = size * size * features_in
        self.kernel = nnx.Param(torch_uniform(rng, (size, size, features_in, features_out), fan_in))
        self.u = SpectralVector(jnp.asarray(random_direction(rng, features_out)))
        self.v = SpectralVector(jnp.asarray(random_direction(rng, fan_in)))
        self.dtype, self.stride, self.padding = dtype, stride, padding

    def matrix(self) -> Array:
        """The kernel as (out, in kh kw): PyTorch's flattening, so that u and v are interchangeable with its own."""
        return rearrange(self.kernel[...], "h w i o -> o (i h w)")

    def power_iteration(self) -> None:
        """One step towards the leading singular vectors; a training forward pass begins with it."""
        matrix = lax.stop_gradient(self.matrix())
        self.v[...] = unit_vector(jnp.matmul(self.u[...], matrix, precision="highest"))
        self.u[...] = unit_vector(jnp.matmul(matrix, self.v[...], precision="highest"))

    def __call__(self, x: Array) -> Array:
        """(b, h, w, in) -> (b, h', w', out) with the stored u and v."""
        u, v = lax.stop_gradient((self.u[...], self.v[...]))
        sigma = jnp.dot(u, jnp.matmul(self.matrix(), v, precision="highest"), precision="highest")
        kernel = jnp.asarray(self.kernel[...] / sigma, self.dtype)
        return convolve(jnp.asarray(x, self.dtype), kernel, stride=self.stride, padding=self.padding)


def random_direction(rng: np.random.Generator, size: int) -> np.ndarray:
    """A normalised Gaussian vector (size,), float32."""
    vector = rng.standard_normal(size, np.float32)
    return vector / np.linalg.norm(vector)


def unit_vector(x: Array) -> Array:
    """x / max(|x|, 1e-12)."""
    return x / jnp.maximum(jnp.linalg.norm(x), 1e-12)
