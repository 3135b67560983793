"""Fills holes smoothly from their borders: what the networks may start from (`model.hole_fill`)."""

import jax.numpy as jnp
from jax import Array, lax

# of the photo, on the way to the coarsest; a hole that is wider takes the mean colour there
HALVINGS = 6
ROUNDS = 4  # of smoothing at every size
GREY = 0.5  # where no pixel of a photo is known


def smooth_fill(image: Array, mask: Array) -> Array:
    """Continues the known colours into the hole by push and pull (Gortler et al., The Lumigraph,
    SIGGRAPH 1996), smoothed at every size: about the solution of Laplace's equation in the hole.

    Pull: the photo is halved `HALVINGS` times; a pixel is the mean of the known ones among the four
    below it, and is unknown where all four are. Push: from the coarsest photo, whose unknown pixels
    take the mean colour, to the finest, unknown pixels take the coarser one's, and `ROUNDS` times
    the mean of their 3 x 3 neighbours, where the border is continued outwards.

    Args:
        image: (b, h, w, c), of any height and width; what lies under the mask is not looked at.
        mask: (b, h, w, 1), 1 = hole.

    Returns:
        (b, h, w, c): the image outside the hole.
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
        filled = _smooth(_enlarge_to(filled, *image.shape[1:3]), image, known)
    return filled


def _halve(image: Array, known: Array) -> tuple[Array, Array]:
    """(b, h, w, c) and (b, h, w, 1) -> the means of the known pixels at half the size, rounded up,
    and where there are any. The image is 0 where it is unknown."""
    counts = _sum_of_four(known)
    return _sum_of_four(image) / jnp.maximum(counts, 1), (counts > 0).astype(known.dtype)


def _sum_of_four(x: Array) -> Array:
    b, height, width, c = x.shape
    x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    return x.reshape(b, (height + 1) // 2, 2, (width + 1) // 2, 2, c).sum((2, 4))


def _enlarge_to(x: Array, height: int, width: int) -> Array:
    """Every pixel twice in height and width, cut to a size."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)[:, :height, :width]


def _smooth(filled: Array, image: Array, known: Array) -> Array:
    """Lays the known pixels over `filled` and smoothes the others.

    A loop of the program: written out, the CPU's compiler would compute every round anew for each
    of the neighbours that the next one looks at.
    """

    def one_round(_: int, filled: Array) -> Array:
        return jnp.where(known > 0, image, _mean_of_neighbours(filled))

    return lax.fori_loop(0, ROUNDS, one_round, jnp.where(known > 0, image, filled))


def _mean_of_neighbours(x: Array) -> Array:
    """The mean of 3 x 3 pixels, with the border continued outwards."""
    for axis in (1, 2):
        length = x.shape[axis]
        padding = [(1, 1) if i == axis else (0, 0) for i in range(4)]
        padded = jnp.pad(x, padding, mode="edge")
        parts = [lax.slice_in_dim(padded, start, start + length, axis=axis) for start in range(3)]
        x = sum(parts[1:], parts[0]) / 3
    return x
