"""Convolves in forms that the CPU backend computes fast, with gradients in fast forms too.

They equal the plain forms of `models.convolution` up to rounding. `models.convolution` chooses them
where a program is for the CPU. docs/performance.md has the measurements.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

Padding = tuple[tuple[int, int], tuple[int, int]]  # zeros before and after, of height and of width

# pixels of the output in one strip of the kernel's gradient, and its fewest rows
STRIP_PIXELS, STRIP_ROWS = 1024, 8
# surplus rows that a convolution computes where that makes it faster (see `runs_on_one_core`)
SPARE_ROWS = 2
# sizes up to which the backend runs a convolution on one core
FEW_PIXELS, FEW_OUTPUTS, FEW_FEATURES = 2**14, 2**20, 32
MANY_PRODUCTS = 2**24  # from this many products on, running on one core costs noticeable time


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def convolve(x: Array, kernel: Array, stride: int, padding: Padding, dilation: int) -> Array:
    """Computes the cross-correlation of (b, h, w, in) and (k, k, in, out) -> (b, h', w', out). The
    value and both gradients have forms of their own.
    """
    if stride == 1 and runs_on_one_core(x, kernel):
        return _with_spare_rows(x, kernel, padding, dilation)
    return plain_convolution(x, kernel, stride, padding, dilation)


def plain_convolution(x: Array, kernel: Array, stride: int, padding: Padding, dilation: int, result_type: DTypeLike | None = None) -> Array:
    """Computes it in the backend's own form: (b, h, w, in) and (k, k, in, out) -> (b, h', w',
    out).
    """
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
    """Returns whether the CPU backend runs a convolution of stride 1 on a single core, and it is
    large enough for that to matter.
    """
    pixels, features_in, features_out = x.shape[1] * x.shape[2], *kernel.shape[2:]
    few = pixels * features_out < FEW_OUTPUTS or min(features_in, features_out) <= FEW_FEATURES
    return few and pixels <= FEW_PIXELS and pixels * kernel.size >= MANY_PRODUCTS


def _with_spare_rows(x: Array, kernel: Array, padding: Padding, dilation: int) -> Array:
    """Convolves with two surplus rows of output and cuts them off.

    The CPU backend divides a small convolution among the cores only where the height is no multiple
    of its block of rows.
    """
    (top, bottom), sides = padding
    return plain_convolution(x, kernel, 1, ((top, bottom + SPARE_ROWS), sides), dilation)[:, :-SPARE_ROWS]


def _forward(x: Array, kernel: Array, stride: int, padding: Padding, dilation: int) -> tuple[Array, tuple[Array, Array]]:
    return convolve(x, kernel, stride, padding, dilation), (x, kernel)


def _backward(stride: int, padding: Padding, dilation: int, saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved
    return (
        _input_gradient(x, kernel, gradient, stride, padding, dilation),
        _kernel_gradient(x, kernel, gradient, stride, padding, dilation),
    )


convolve.defvjp(_forward, _backward)


def _input_gradient(x: Array, kernel: Array, gradient: Array, stride: int, padding: Padding, dilation: int) -> Array:
    """Returns the gradient with respect to x, given the `gradient` with respect to the output. Only
    the shape and type of x are used.
    """
    if stride == 1 and runs_on_one_core(gradient, kernel.swapaxes(2, 3)):
        return _with_spare_rows(gradient, transposed(kernel), opposite(kernel, padding, dilation), dilation)
    if stride > 1 and dilation == 1 and kernel.shape[0] % stride == 0 and x.shape[1:3] == tuple(stride * n for n in gradient.shape[1:3]):
        return _input_gradient_in_phases(kernel, gradient, stride, padding[0][0])
    (for_x,) = jax.linear_transpose(lambda x: plain_convolution(x, kernel, stride, padding, dilation), x)(gradient)
    return for_x


def transposed(kernel: Array) -> Array:
    """Returns the kernel (kh, kw, out, in) whose convolution is the transpose of the convolution
    with `kernel` (kh, kw, in, out).
    """
    return jnp.flip(kernel, (0, 1)).swapaxes(2, 3)


def opposite(kernel: Array, padding: Padding, dilation: int) -> Padding:
    """Returns the padding with which the transposed convolution of stride 1 restores the input's
    size.
    """
    (top, bottom), (left, right) = padding
    high, wide = (dilation * (size - 1) for size in kernel.shape[:2])
    return (high - top, high - bottom), (wide - left, wide - right)


def _input_gradient_in_phases(kernel: Array, gradient: Array, stride: int, padding: int) -> Array:
    """Returns the gradient with respect to the input of a convolution whose output is smaller by
    exactly `stride`.

    Input pixels with the same remainder modulo the stride (a phase) meet one part of the kernel.
    All parts together are one convolution with many outputs, whose maps are interleaved afterwards.
    The CPU backend's own form would also multiply the zeros between the dilated pixels of the
    gradient.
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


def _kernel_gradient(x: Array, kernel: Array, gradient: Array, stride: int, padding: Padding, dilation: int) -> Array:
    """Returns the gradient with respect to the kernel, given the `gradient` with respect to the
    output. Only the kernel's shape is used.
    """
    size, _, features_in, features_out = kernel.shape
    if stride > 1 or features_out > FEW_FEATURES or features_in <= features_out:
        return _kernel_gradient_in_strips(x, size, gradient, stride, padding, dilation)
    # The backend is slow with few outputs. Input and gradient are swapped, which transposes the
    # kernel.
    return transposed(_kernel_gradient_in_strips(gradient, size, x, 1, opposite(kernel, padding, dilation), dilation))


def _kernel_gradient_in_strips(x: Array, size: int, gradient: Array, stride: int, padding: Padding, dilation: int) -> Array:
    """Returns the gradient with respect to a square kernel as a sum over strips of rows that fit
    into the processor's caches.

    With stride s and dilation d it is dK[i, j] = sum over photos and pixels (y, x) of X[s y + d i,
    s x + d j]^T G[y, x]. That is a convolution of X with the kernel G, where channels take the
    place of the batch and photos the place of channels. The CPU backend's own form falls from 140
    GFLOP/s on small maps to 20 on large ones (one photo, two cores). Strips keep it above 150 with
    64 channels or more. The sum is float32 or wider, whatever the compute type.
    """
    height, width = gradient.shape[1:3]
    rows = max(STRIP_ROWS, STRIP_PIXELS // width)
    reach = (size - 1) * dilation + 1  # rows of x in the receptive field of one output row
    wide = jnp.promote_types(x.dtype, jnp.float32)
    x = jnp.pad(x, ((0, 0), padding[0], (0, 0), (0, 0))).transpose(3, 1, 2, 0)
    kernels = gradient.transpose(1, 2, 0, 3)

    def strip(first: int) -> Array:
        last = min(first + rows, height)
        seen = x[:, first * stride : (last - 1) * stride + reach]
        return plain_convolution(seen, kernels[first:last], dilation, ((0, 0), padding[1]), stride, wide)

    total = functools.reduce(jnp.add, map(strip, range(0, height, rows)))
    return total[:, :, :size].transpose(1, 2, 0, 3).astype(gradient.dtype)


def convolve_reflected(x: Array, kernel: Array, padding: int, dilation: int) -> Array:
    """Convolves with stride 1 and reflection padding. The size is preserved: (b, h, w, in) -> (b,
    h, w, out).

    The backend runs unpadded convolutions several times slower than padded ones. So a 3x3
    convolution is computed with zero padding and corrected at the borders. For another kernel the
    map is padded by reflection and again by zeros, and the border is cut off.
    """
    borders_differ = padding < min(x.shape[1:3])  # else a pixel is reflected more than once
    if kernel.shape[:2] == (3, 3) and padding == dilation and borders_differ:
        return _with_reflected_borders(x, kernel, dilation)
    padded = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)), mode="reflect")
    zeros = ((padding, padding), (padding, padding))
    return convolve(padded, kernel, 1, zeros, dilation)[:, padding:-padding, padding:-padding]


def _with_reflected_borders(x: Array, kernel: Array, reach: int) -> Array:
    """Convolves 3x3 with zero padding, padding and dilation both `reach`, then adds what reflection
    contributes.

    Only rows and columns closer to a border than `reach` are incomplete: each lacks one row or
    column of the kernel.
    """
    height, width = x.shape[1:3]
    out = convolve(x, kernel, 1, ((reach, reach), (reach, reach)), reach)

    def taps(line: Array, axis: int, length: int, weights: Array) -> Array:
        """Multiplies a line of pixels by three weights (3, in, out) along the axis; the line is
        extended by `reach` at both ends.
        """
        seen = [lax.slice_in_dim(line, i * reach, i * reach + length, axis=axis) for i in range(3)]
        return jnp.einsum("bhwi,io->bhwo", jnp.concatenate(seen, -1), weights.reshape(-1, weights.shape[-1]))

    for row, first, start in ((0, 1, 0), (2, height - 1 - reach, height - reach)):
        mirrored = jnp.flip(x[:, first : first + reach], 1)
        # the padding covers the corners
        line = jnp.pad(mirrored, ((0, 0), (0, 0), (reach, reach), (0, 0)), mode="reflect")
        out = _add_at(out, taps(line, 2, width, kernel[row]), 1, start)
    for column, first, start in ((0, 1, 0), (2, width - 1 - reach, width - reach)):
        mirrored = jnp.flip(x[:, :, first : first + reach], 2)
        line = jnp.pad(mirrored, ((0, 0), (reach, reach), (0, 0), (0, 0)))
        out = _add_at(out, taps(line, 1, height, kernel[:, column]), 2, start)
    return out


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _add_at(x: Array, part: Array, axis: int, start: int) -> Array:
    """Returns x with `part` added from index `start` of an axis on. Its gradient copies nothing."""
    old = lax.slice_in_dim(x, start, start + part.shape[axis], axis=axis)
    return lax.dynamic_update_slice_in_dim(x, old + part, start, axis)


def _add_at_forward(x: Array, part: Array, axis: int, start: int) -> tuple[Array, int]:
    return _add_at(x, part, axis, start), part.shape[axis]


def _add_at_backward(axis: int, start: int, length: int, gradient: Array) -> tuple[Array, Array]:
    return gradient, lax.slice_in_dim(gradient, start, start + length, axis=axis)


_add_at.defvjp(_add_at_forward, _add_at_backward)
