"""Fills holes smoothly from their borders: an alternative input of the networks
(`model.hole_fill`).
"""

import jax.numpy as jnp
from jax import Array, lax

from spn_jax.models.layers import enlarge

# halvings down to the coarsest size, where holes that are still unknown take the mean colour
HALVINGS = 6
ROUNDS = 4  # rounds of smoothing at every size
GREY = 0.5  # mean colour of a photo without known pixels


def smooth_fill(image: Array, mask: Array) -> Array:
    """Continues the known colours into the hole by push and pull (Gortler et al., The Lumigraph,
    SIGGRAPH 1996), with smoothing.

    The result is close to the solution of Laplace's equation in the hole. Pull halves the photo
    `HALVINGS` times. A pixel becomes the mean of the known ones among the four below it, and is
    unknown where all four are. Push goes from the coarsest photo, whose unknown pixels take the
    mean colour, to the finest. There unknown pixels take the coarser photo's colour, then `ROUNDS`
    times the mean of their 3 x 3 neighbourhood, with edge padding at the border.

    Args:
        image: (b, h, w, c), of any height and width; pixels under the mask are ignored.
        mask: (b, h, w, 1), 1 = hole.

    Returns:
        (b, h, w, c), equal to the image outside the hole.
    """
    known = (mask <= 0).astype(image.dtype)
    sizes = [(jnp.where(known > 0, image, 0), known)]
    for _ in range(HALVINGS):
        sizes.append(_halve(*sizes[-1]))
    image, known = sizes[-1]
    pixels = known.sum((1, 2), keepdims=True)
    mean = jnp.where(pixels > 0, image.sum((1, 2), keepdims=True) / jnp.maximum(pixels, 1), GREY)
    filled = jnp.where(known > 0, image, mean)
    for image, known in reversed(sizes[:-1]):
        filled = _smooth(enlarge(filled)[:, : image.shape[1], : image.shape[2]], image, known)
    return filled


def _halve(image: Array, known: Array) -> tuple[Array, Array]:
    """Halves image (b, h, w, c) and known (b, h, w, 1), rounding sizes up: the means of the known
    pixels, and where there are any. The image must be 0 where it is unknown.
    """
    counts = _sum_of_four(known)
    return _sum_of_four(image) / jnp.maximum(counts, 1), (counts > 0).astype(known.dtype)


def _sum_of_four(x: Array) -> Array:
    b, height, width, c = x.shape
    x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    return x.reshape(b, (height + 1) // 2, 2, (width + 1) // 2, 2, c).sum((2, 4))


def _smooth(filled: Array, image: Array, known: Array) -> Array:
    """Lays the known pixels over `filled` and smoothes the others.

    The rounds are a loop in the compiled program. If they were unrolled, the CPU's compiler would
    recompute each round for every neighbour that the next one reads.
    """

    def one_round(_: int, filled: Array) -> Array:
        return jnp.where(known > 0, image, _mean_of_neighbours(filled))

    return lax.fori_loop(0, ROUNDS, one_round, jnp.where(known > 0, image, filled))


def _mean_of_neighbours(x: Array) -> Array:
    """Returns the mean of 3 x 3 pixels, with edge padding."""
    for axis in (1, 2):
        length = x.shape[axis]
        padding = [(1, 1) if i == axis else (0, 0) for i in range(4)]
        padded = jnp.pad(x, padding, mode="edge")
        parts = [lax.slice_in_dim(padded, start, start + length, axis=axis) for start in range(3)]
        x = sum(parts[1:], parts[0]) / 3
    return x
