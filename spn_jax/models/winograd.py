"""Convolves 3x3 by Winograd's F(2x2, 3x3), with 4 products in the place of 9 for each output pixel
(Lavin and Gray, CVPR 2016).

A tile is 4x4 pixels of the padded input and gives 2x2 pixels of the output; tiles overlap by two
pixels. With B, G and A the matrices of `to_products`, `KERNEL` and `from_products` it is A^T [(G K
G^T) * (B^T X B)] A, where * multiplies elements and, over features, matrices. So a convolution is
16 products of matrices (tiles, in) and (in, out). All of this is linear in X and in K, and the
gradients are the same steps transposed, with the same 16 products.

With dilation d, pixels with the same remainder modulo d are a map of their own. An axis of pixels
is seen as (tiles, 2, d) for that: no map is copied.

Barriers keep the compiler from computing a transformed map anew wherever it is read, and the steps
of one dimension small enough that they compile fast.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

TAPS = 4  # of a tile along one axis
KERNEL = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)  # G
BOTH_AXES = np.kron(KERNEL, KERNEL)  # (16, 9)

Four = tuple[Array, Array, Array, Array]


@jax.named_scope("winograd")
def convolve(padded: Array, kernel: Array, dilation: int) -> Array:
    """Convolves a padded map (b, h + 2 d, w + 2 d, in) with a kernel (3, 3, in, out) -> (b, h, w,
    out). Height and width are multiples of 2 d, d being the dilation.
    """
    tiles = transform_map(padded, dilation)
    products = lax.dot_general(flat(tiles), transform_kernel(kernel), (((2,), (1,)), ((0,), (0,))))
    sums = from_products(products.reshape(*tiles.shape[:-1], -1))
    out = jnp.stack([jnp.stack(from_products(part), 4) for part in sums], 2)  # b tiles 2 d tiles 2 d out
    b, h, w, _ = padded.shape
    return out.reshape(b, h - 2 * dilation, w - 2 * dilation, -1)


@jax.named_scope("winograd")
def gradients(padded: Array, kernel: Array, gradient: Array, dilation: int) -> tuple[Array, Array]:
    """Returns the gradients with respect to the padded map and the kernel, given the `gradient`
    (b, h, w, out) with respect to the output.
    """
    tiles = transform_map(padded, dilation)
    of_products = transform_gradient(gradient, dilation)
    with jax.named_scope("kernel_gradient"):
        of_kernel = lax.dot_general(flat(tiles), flat(of_products), (((1,), (1,)), ((0,), (0,))))
        of_kernel = (jnp.asarray(BOTH_AXES.T, kernel.dtype) @ of_kernel.reshape(TAPS**2, -1)).reshape(kernel.shape)
    with jax.named_scope("input_gradient"):
        of_tiles = lax.dot_general(flat(of_products), transform_kernel(kernel), (((2,), (2,)), ((0,), (0,))))
        of_rows = lax.optimization_barrier(jnp.stack(overlap(to_products_transposed(of_tiles.reshape(tiles.shape)), 2), 3))
        of_map = jnp.stack(overlap(to_products_transposed(of_rows), 4), 5)
    return of_map.reshape(padded.shape), of_kernel


def transform_map(padded: Array, dilation: int) -> Array:
    """Returns B^T X B of every tile of a map (b, h + 2 d, w + 2 d, c): (4, 4, b, h / 2 d, d, w / 2
    d, d, c).
    """
    columns = lax.optimization_barrier(jnp.stack(to_products(windows(padded, 2, dilation))))
    return lax.optimization_barrier(jnp.stack(to_products(windows(columns, 2, dilation))))


def transform_kernel(kernel: Array) -> Array:
    """Returns G K G^T of a kernel (3, 3, in, out): (16, in, out)."""
    return (jnp.asarray(BOTH_AXES, kernel.dtype) @ kernel.reshape(9, -1)).reshape(TAPS**2, *kernel.shape[2:])


def transform_gradient(gradient: Array, dilation: int) -> Array:
    """Returns A Y A^T of the gradient (b, h, w, c) with respect to the output: (4, 4, b, h / 2 d,
    d, w / 2 d, d, c).
    """
    b, h, w, c = gradient.shape
    pixels = gradient.reshape(b, h // (2 * dilation), 2, dilation, w // (2 * dilation), 2, dilation, c)
    columns = lax.optimization_barrier(jnp.stack(from_products_transposed(pixels[:, :, :, :, :, 0], pixels[:, :, :, :, :, 1])))
    return lax.optimization_barrier(jnp.stack(from_products_transposed(columns[:, :, :, 0], columns[:, :, :, 1])))


def flat(tiles: Array) -> Array:
    """Returns transformed tiles (4, 4, ..., c) as 16 matrices (16, tiles, c)."""
    return tiles.reshape(TAPS**2, -1, tiles.shape[-1])


def windows(x: Array, axis: int, dilation: int) -> Four:
    """Returns the four pixels of each tile along an axis of 2 d (tiles + 1) pixels, which becomes
    two: (..., tiles, d, ...).
    """
    halves = x.reshape(*x.shape[:axis], -1, 2, dilation, *x.shape[axis + 1 :])
    tiles = halves.shape[axis] - 1
    even, odd = (lax.index_in_dim(halves, i, axis + 1, keepdims=False) for i in range(2))
    first, second, third, fourth = (lax.slice_in_dim(half, i, i + tiles, axis=axis) for i in range(2) for half in (even, odd))
    return first, second, third, fourth


def overlap(pixels: Four, axis: int) -> tuple[Array, Array]:
    """Adds up what `windows` read: four pixels of each tile (..., tiles, d, ...) -> the halves
    (..., tiles + 1, d, ...) of the axis.
    """

    def shifted(x: Array, by: int) -> Array:
        return jnp.pad(x, [(by, 1 - by) if i == axis else (0, 0) for i in range(x.ndim)])

    first, second, third, fourth = pixels
    return shifted(first, 0) + shifted(third, 1), shifted(second, 0) + shifted(fourth, 1)


def to_products(x: Sequence[Array] | Array) -> Four:
    """Multiplies by B^T along one axis."""
    return x[0] - x[2], x[1] + x[2], x[2] - x[1], x[1] - x[3]


def to_products_transposed(x: Array) -> Four:
    """Multiplies by B along the first axis."""
    return x[0], x[1] - x[2] + x[3], x[1] + x[2] - x[0], -x[3]


def from_products(x: Array) -> tuple[Array, Array]:
    """Multiplies by A^T along the first axis."""
    return x[0] + x[1] + x[2], x[1] - x[2] - x[3]


def from_products_transposed(first: Array, second: Array) -> Four:
    """Multiplies by A along one axis."""
    return first, first + second, first - second, -second
