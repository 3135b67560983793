"""Convolves in forms that the CPU backend computes fast, with gradients in fast forms too.

They equal the plain forms of `models.convolution` up to rounding. `models.convolution` chooses them
where a program is for the CPU. docs/performance.md has the measurements.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from spn_jax.models import winograd
from spn_jax.models.tracing import traced_once

Padding = tuple[tuple[int, int], tuple[int, int]]  # zeros before and after, of height and of width

# pixels of the output in one strip of the kernel's gradient, the most numbers of the strip's
# gradient (1 MB), and its fewest rows
STRIP_PIXELS, STRIP_NUMBERS, STRIP_ROWS = 1024, 2**18, 8
# surplus rows that a convolution computes where that makes it faster (see `runs_on_one_core`)
SPARE_ROWS = 2
# sizes up to which the backend runs a convolution on one core
FEW_PIXELS, FEW_OUTPUTS, FEW_FEATURES = 2**14, 2**20, 32
MANY_PRODUCTS = 2**24  # from this many products on, running on one core costs noticeable time
# a convolution of colours: its kernel's least side, features of the photo's side and of the other
LARGE_KERNEL, COLOURS, NARROW = 5, 4, 16
# Winograd's form is faster from this many features on both sides, and between these numbers of
# pixels of a photo; it takes four times the map's memory
MANY_FEATURES, WINOGRAD_PIXELS = 128, (2**10, 2**14)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def convolve(x: Array, kernel: Array, stride: int, padding: Padding, dilation: int) -> Array:
    """Computes the cross-correlation of (b, h, w, in) and (k, k, in, out) -> (b, h', w', out). The
    value and both gradients have forms of their own.
    """
    return _value(x, kernel, stride, padding, dilation)


@traced_once(2, 3, 4)
def _value(x: Array, kernel: Array, stride: int, padding: Padding, dilation: int) -> Array:
    """Returns what `convolve` does, with or without its gradients."""
    if suits_winograd(x, kernel, stride, padding, dilation):
        return winograd.convolve(jnp.pad(x, around(padding)), kernel, dilation)
    if is_of_colours(kernel, stride, dilation):
        return _convolve_colours(x, kernel, padding)
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


def suits_winograd(x: Array, kernel: Array, stride: int, padding: Padding, dilation: int) -> bool:
    """Returns whether the convolution is one that Winograd's form computes, and faster.

    In float32 it rounds as little as the plain form. In a narrower type each transformed map would
    be rounded as well.
    """
    sides = [length + sum(zeros) - 2 * dilation for length, zeros in zip(x.shape[1:3], padding, strict=True)]
    fits = stride == 1 and kernel.shape[:2] == (3, 3) and all(side % (2 * dilation) == 0 for side in sides)
    least, most = WINOGRAD_PIXELS
    large = min(kernel.shape[2:]) >= MANY_FEATURES and least <= sides[0] * sides[1] <= most
    return fits and large and x.dtype in (jnp.float32, jnp.float64)


def around(padding: Padding) -> tuple[tuple[int, int], ...]:
    """Returns the padding of all four axes."""
    return ((0, 0), *padding, (0, 0))


def is_of_colours(kernel: Array, stride: int, dilation: int) -> bool:
    """Returns whether a convolution with a large kernel has so few features on both sides that the
    CPU backend's own form is slow.
    """
    few, other = sorted(kernel.shape[2:])
    return stride == dilation == 1 and kernel.shape[1] >= LARGE_KERNEL and few <= COLOURS and other <= NARROW


def _convolve_colours(x: Array, kernel: Array, padding: Padding) -> Array:
    """Convolves with a kernel of one column, where the kernel's columns are features: of the input,
    or of the output if that has fewer. So the backend multiplies matrices of some width.
    """
    size, columns, features_in, features_out = kernel.shape
    rows, sides = padding
    width = x.shape[2] + sum(sides) - columns + 1
    beside = ((0, 0), (0, 0), sides, (0, 0))
    if features_in <= features_out:
        x = jnp.pad(x, beside)
        seen = jnp.concatenate([x[:, :, j : j + width] for j in range(columns)], -1)
        return plain_convolution(seen, kernel.reshape(size, 1, columns * features_in, features_out), 1, (rows, (0, 0)), 1)
    parts = kernel.swapaxes(1, 2).reshape(size, 1, features_in, columns * features_out)
    of_columns = jnp.pad(plain_convolution(x, parts, 1, (rows, (0, 0)), 1), beside)
    shifted = (of_columns[:, :, j : j + width, j * features_out : (j + 1) * features_out] for j in range(columns))
    return functools.reduce(jnp.add, shifted)


def runs_on_one_core(x: Array, kernel: Array) -> bool:
    """Returns whether the CPU backend runs a convolution of stride 1 on a single core, and it is
    large enough for that to matter. Several photos are divided among the cores anyway.
    """
    photos, pixels, features_in, features_out = x.shape[0], x.shape[1] * x.shape[2], *kernel.shape[2:]
    few = pixels * features_out < FEW_OUTPUTS or min(features_in, features_out) <= FEW_FEATURES
    return photos == 1 and few and pixels <= FEW_PIXELS and pixels * kernel.size >= MANY_PRODUCTS


def _with_spare_rows(x: Array, kernel: Array, padding: Padding, dilation: int) -> Array:
    """Convolves with two surplus rows of output and cuts them off.

    The CPU backend divides a small convolution among the cores only where the height is no multiple
    of its block of rows. With several photos surplus rows would nearly double the time: the
    backend's faster library takes no convolution whose output is larger than its input.
    """
    (top, bottom), sides = padding
    return plain_convolution(x, kernel, 1, ((top, bottom + SPARE_ROWS), sides), dilation)[:, :-SPARE_ROWS]


def _forward(x: Array, kernel: Array, stride: int, padding: Padding, dilation: int) -> tuple[Array, tuple[Array, Array]]:
    return _value(x, kernel, stride, padding, dilation), (x, kernel)


@traced_once(0, 1, 2)
def _backward(stride: int, padding: Padding, dilation: int, saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved
    if suits_winograd(x, kernel, stride, padding, dilation):
        for_padded, for_kernel = winograd.gradients(jnp.pad(x, around(padding)), kernel, gradient, dilation)
        (top, _), (left, _) = padding
        return for_padded[:, top : top + x.shape[1], left : left + x.shape[2]], for_kernel
    return (
        _input_gradient(x, kernel, gradient, stride, padding, dilation),
        _kernel_gradient(x, kernel, gradient, stride, padding, dilation),
    )


convolve.defvjp(_forward, _backward)


@jax.named_scope("input_gradient")
def _input_gradient(x: Array, kernel: Array, gradient: Array, stride: int, padding: Padding, dilation: int) -> Array:
    """Returns the gradient with respect to x, given the `gradient` with respect to the output. Only
    the shape and type of x are used.
    """
    if is_of_colours(kernel, stride, dilation):
        return _convolve_colours(gradient, transposed(kernel), opposite(kernel, padding, dilation))
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


@jax.named_scope("kernel_gradient")
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
    photos, height, width, features = gradient.shape
    rows = max(STRIP_ROWS, min(STRIP_PIXELS, STRIP_NUMBERS // (photos * features)) // width)
    reach = (size - 1) * dilation + 1  # rows of x in the receptive field of one output row
    wide = jnp.promote_types(x.dtype, jnp.float32)
    # Columns of zeros beside one photo are faster as part of the map, beside several as padding,
    # unless the strip were then wider than the map: the backend's faster library refuses that.
    in_map = photos == 1 or width > x.shape[2]
    beside, sides = (padding[1], (0, 0)) if in_map else ((0, 0), padding[1])
    x = jnp.pad(x, ((0, 0), padding[0], beside, (0, 0))).transpose(3, 1, 2, 0)
    kernels = gradient.transpose(1, 2, 0, 3)

    def strip(first: int) -> Array:
        last = min(first + rows, height)
        seen = x[:, first * stride : (last - 1) * stride + reach]
        return plain_convolution(seen, kernels[first:last], dilation, ((0, 0), sides), stride, wide)

    total = functools.reduce(lax.add, map(strip, range(0, height, rows)))
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
    padded = reflect(x, padding)
    if is_of_colours(kernel, 1, dilation):
        return convolve(padded, kernel, 1, ((padding, padding), (0, 0)), 1)[:, padding:-padding]
    zeros = ((padding, padding), (padding, padding))
    return convolve(padded, kernel, 1, zeros, dilation)[:, padding:-padding, padding:-padding]


def reflect(x: Array, reach: int) -> Array:
    """Pads by reflection: (b, h, w, c) -> (b, h + 2 reach, w + 2 reach, c)."""
    return jnp.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="reflect")


def fold(padded: Array, reach: int) -> Array:
    """Adds the border of a map to the pixels that `reflect` made it of, which is the transpose:
    (b, h + 2 reach, w + 2 reach, c) -> (b, h, w, c).
    """
    for axis in (1, 2):
        whole = padded.shape[axis]
        before, x, after = jnp.split(padded, (reach, whole - reach), axis)
        x = _add_at(x, jnp.flip(before, axis), axis, 1)
        padded = _add_at(x, jnp.flip(after, axis), axis, whole - 3 * reach - 1)
    return padded


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _with_reflected_borders(x: Array, kernel: Array, reach: int) -> Array:
    """Convolves 3x3 with zero padding, padding and dilation both `reach`, then adds what reflection
    contributes.

    Only rows and columns closer to a border than `reach` are incomplete: each lacks one row or
    column of the kernel.
    """
    return _reflected_value(x, kernel, reach)


@traced_once(2)
def _reflected_value(x: Array, kernel: Array, reach: int) -> Array:
    """Returns what `_with_reflected_borders` does, with or without its gradients."""
    zeros = ((reach, reach), (reach, reach))
    if suits_winograd(x, kernel, 1, zeros, reach):
        return winograd.convolve(reflect(x, reach), kernel, reach)
    out = _value(x, kernel, 1, zeros, reach)
    for border in borders(x.shape[1:3], reach):
        out = _add_at(out, border.contribution(border.seen(x), kernel), border.axis, border.start)
    return out


class Border(NamedTuple):
    """One border of a map that is convolved 3x3 with reflection padding."""

    axis: int  # 1: of rows, 2: of columns
    tap: int  # row or column of the kernel that lies outside
    first: int  # first of the rows or columns that are reflected
    start: int  # first of those that are incomplete
    reach: int

    def seen(self, x: Array) -> Array:
        """Returns the rows or columns of the map (b, h, w, c) that are reflected."""
        return lax.slice_in_dim(x, self.first, self.first + self.reach, axis=self.axis)

    def contribution(self, seen: Array, kernel: Array) -> Array:
        """Returns what the reflected rows or columns add to the incomplete ones."""
        mirrored, weights = jnp.flip(seen, self.axis), lax.index_in_dim(kernel, self.tap, self.axis - 1, keepdims=False)
        reach, along = self.reach, 3 - self.axis
        # the rows cover the corners
        mode = "reflect" if self.axis == 1 else "constant"
        line = jnp.pad(mirrored, [(reach, reach) if axis == along else (0, 0) for axis in range(4)], mode=mode)
        taps = [lax.slice_in_dim(line, i * reach, i * reach + seen.shape[along], axis=along) for i in range(3)]
        return jnp.einsum("bhwi,io->bhwo", jnp.concatenate(taps, -1), weights.reshape(-1, weights.shape[-1]))


def borders(size: tuple[int, ...], reach: int) -> list[Border]:
    """Returns the four borders of a map of this height and width."""
    ends = [((0, 1, 0), (2, length - 1 - reach, length - reach)) for length in size]
    return [Border(axis, *end, reach) for axis, both in enumerate(ends, 1) for end in both]


def _reflected_forward(x: Array, kernel: Array, reach: int) -> tuple[Array, tuple[Array, Array]]:
    return _reflected_value(x, kernel, reach), (x, kernel)


@traced_once(0)
def _reflected_backward(reach: int, saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    """Differentiates with respect to x as the forward pass computes, adding at the borders in
    place; with respect to the kernel with the reflected map, which has no borders.
    """
    x, kernel = saved
    zeros = ((reach, reach), (reach, reach))
    if suits_winograd(x, kernel, 1, zeros, reach):
        for_padded, for_kernel = winograd.gradients(reflect(x, reach), kernel, gradient, reach)
        return fold(for_padded, reach), for_kernel
    for_x = _input_gradient(x, kernel, gradient, 1, zeros, reach)
    for border in borders(x.shape[1:3], reach):
        incomplete = lax.slice_in_dim(gradient, border.start, border.start + reach, axis=border.axis)
        pull_back = jax.linear_transpose(functools.partial(border.contribution, kernel=kernel), border.seen(x))
        (part,) = pull_back(incomplete)
        for_x = _add_at(for_x, part, border.axis, border.first)
    return for_x, _kernel_gradient(reflect(x, reach), kernel, gradient, 1, ((0, 0), (0, 0)), reach)


_with_reflected_borders.defvjp(_reflected_forward, _reflected_backward)


def _add_at(x: Array, part: Array, axis: int, start: int) -> Array:
    """Returns x with `part` added from index `start` of an axis on."""
    old = lax.slice_in_dim(x, start, start + part.shape[axis], axis=axis)
    return lax.dynamic_update_slice_in_dim(x, old + part, start, axis)
