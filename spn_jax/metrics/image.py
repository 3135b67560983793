"""Computes PSNR, SSIM and MAE of 8-bit pictures, in several definitions, and their diversity.

All functions work over any leading axes. Pictures are arrays (..., h, w, 3) of whole numbers 0..255
in any dtype. Sums are
integers as far as they can be: float32 holds integers only up to 2^24, which the squared sums of
one picture pass, and a variance that is the difference of two large rounded sums loses its digits
in smooth regions.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

WINDOW = 11  # side of SSIM's window in pixels
SIGMA = 1.5  # standard deviation of SSIM's Gaussian window, in pixels
PEAK = 255
BORDER = 3  # depth in pixels of the ring on either side of the hole's border
C1, C2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2  # SSIM's constants


def psnr(a: ArrayLike, b: ArrayLike) -> Array:
    """Returns the peak signal-to-noise ratio in dB over all pixels and channels, (...); infinite
    for identical pictures.
    """
    difference = _integers(a) - _integers(b)
    squares = jnp.sum(difference**2, axis=(-2, -1))  # sums of one row; exact below 11,000 pixels
    error = jnp.mean(squares.astype(jnp.float32), axis=-1) / (3 * difference.shape[-2])
    return 10 * jnp.log10(PEAK**2 / error)


def ssim(a: ArrayLike, b: ArrayLike) -> Array:
    """Returns structural similarity, (...): 11-pixel uniform window, sample covariance, K1 = 0.01,
    K2 = 0.03, data range 255.

    It is averaged over the channels and over the pixels whose window lies inside the picture, as in
    scikit-image's default.

    Raises:
        ValueError: a picture smaller than the window.
    """
    x, y = _pictures_for_ssim(a, b)
    n = WINDOW**2
    sum_x, sum_y, sum_squares, sum_product = _window_sum(jnp.stack([x, y, x * x + y * y, x * y]))
    # n^2 times a mean product and n (n - 1) times a covariance are integers below 2^30, so these
    # differences are exact.
    variances = (n * sum_squares - sum_x**2 - sum_y**2).astype(jnp.float32) / (n * (n - 1))
    covariance = (n * sum_product - sum_x * sum_y).astype(jnp.float32) / (n * (n - 1))
    mean_product = (sum_x * sum_y).astype(jnp.float32) / n**2
    mean_squares = (sum_x**2).astype(jnp.float32) / n**2 + (sum_y**2).astype(jnp.float32) / n**2
    return _similarity(mean_product, mean_squares, covariance, variances)


def ssim_gaussian(a: ArrayLike, b: ArrayLike) -> Array:
    """Returns structural similarity as Wang et al. (2004) define it, (...): 11-pixel Gaussian
    window of sigma 1.5, K1 = 0.01, K2 = 0.03.

    The data range is 255, and the covariance uses the window's weights. It is averaged over the
    channels (Wang et al. have one) and over the pixels whose window lies inside the picture. It
    equals scikit-image's with gaussian_weights=True, sigma=1.5, use_sample_covariance=False.

    Raises:
        ValueError: a picture smaller than the window.
    """
    x, y = _pictures_for_ssim(a, b)
    # Variances are invariant to an offset. Around the picture's mean the squares keep their digits.
    zero = jnp.round(jnp.mean(jnp.mean(x, axis=-1, keepdims=True, dtype=jnp.float32), axis=-2, keepdims=True)).astype(jnp.int32)
    u, v = (x - zero).astype(jnp.float32), (y - zero).astype(jnp.float32)
    mean_u, mean_v, mean_squares, mean_product = _gaussian_mean(jnp.stack([u, v, u * u + v * v, u * v]))
    variances = mean_squares - mean_u**2 - mean_v**2
    covariance = mean_product - mean_u * mean_v
    mean_x, mean_y = mean_u + zero, mean_v + zero
    return _similarity(mean_x * mean_y, mean_x**2 + mean_y**2, covariance, variances)


def _pictures_for_ssim(a: ArrayLike, b: ArrayLike) -> tuple[Array, Array]:
    """Returns both pictures as integers (..., h, w * 3), because CPUs compute fast over a long last
    axis.
    """
    x, y = jnp.broadcast_arrays(_integers(a), _integers(b))
    if min(x.shape[-3:-1]) < WINDOW:
        raise ValueError(f"SSIM needs pictures of at least {WINDOW} x {WINDOW} pixels, not {x.shape[-3]} x {x.shape[-2]}")
    return x.reshape(*x.shape[:-2], -1), y.reshape(*y.shape[:-2], -1)


def _similarity(mean_product: Array, mean_squares: Array, covariance: Array, variances: Array) -> Array:
    """Returns SSIM from the product of two pictures' means, the sum of their squares, the
    covariance and the sum of variances, (..., h, w * 3).
    """
    similarity = (2 * mean_product + C1) * (2 * covariance + C2) / ((mean_squares + C1) * (variances + C2))
    return similarity.mean(-1).mean(-1)  # rows first: long float32 sums lose digits


def mae(a: ArrayLike, b: ArrayLike) -> Array:
    """Returns the released program's "MAE", (...): mean absolute difference of the grey pictures
    (mean of the channels), in [0, 1].

    The paper prints ten times this value.
    """
    # three times the difference of the grey values
    grey = jnp.sum(_integers(a) - _integers(b), axis=-1)
    rows = jnp.sum(jnp.abs(grey), axis=-1).astype(jnp.float32)
    return jnp.mean(rows, axis=-1) / (3 * PEAK * grey.shape[-1])


def mae_rgb(a: ArrayLike, b: ArrayLike) -> Array:
    """Returns the mean absolute difference over all pixels and channels, (...), in [0, 1]. Other
    papers call it MAE or l1 error.

    It is never below `mae`, in which differences of the channels cancel.
    """
    difference = _integers(a) - _integers(b)
    rows = jnp.sum(jnp.abs(difference), axis=(-2, -1)).astype(jnp.float32)
    return jnp.mean(rows, axis=-1) / (3 * PEAK * difference.shape[-2])


def hole_mae(a: ArrayLike, b: ArrayLike, mask: ArrayLike) -> Array:
    """Returns the mean absolute difference over the hole's pixels and channels, (...), in [0, 1]; 0
    without a hole.

    Unlike the other scores it does not improve when the hole is made smaller.

    Args:
        mask: (..., h, w, 1), 1 = hole.
    """
    hole = _integers(mask)
    rows = jnp.sum(jnp.abs(_integers(a) - _integers(b)) * hole, axis=(-2, -1)).astype(jnp.float32)
    return jnp.sum(rows, axis=-1) / (3 * PEAK * jnp.maximum(hole_area(mask), 1))


def border_ring(mask: ArrayLike) -> Array:
    """Returns the ring of BORDER pixels on either side of the hole's border: int32 (..., h, w, 1),
    1 = in the ring.

    The ring consists of the hole's pixels at most BORDER from a known one, and the known ones at
    most BORDER from the hole. The distance is the larger of the steps along rows and columns. The
    picture's own edge is no border. Without a hole, or without a known pixel, the ring is empty.

    Args:
        mask: (..., h, w, 1), 1 = hole.
    """
    hole = (_integers(mask) > 0).astype(jnp.int32)
    return _near(hole) * _near(1 - hole)


def _near(marked: Array) -> Array:
    """Returns 1 where a marked pixel of (..., h, w, 1) is at most BORDER away, else 0."""
    for axis in (-3, -2):
        window, padding = [1] * marked.ndim, [(0, 0)] * marked.ndim
        window[axis], padding[axis] = 2 * BORDER + 1, (BORDER, BORDER)
        marked = jax.lax.reduce_window(marked, 0, jax.lax.max, window, [1] * marked.ndim, padding)
    return marked


def border_psnr(a: ArrayLike, b: ArrayLike, mask: ArrayLike) -> Array:
    """Returns PSNR in dB over the pixels and channels of `border_ring`, (...). It shows how well a
    completion meets its surroundings.

    It is infinite if the pictures are equal in the ring, and if the ring is empty.

    Args:
        mask: (..., h, w, 1), 1 = hole.
    """
    ring = border_ring(mask)
    rows = jnp.sum((_integers(a) - _integers(b)) ** 2 * ring, axis=(-2, -1)).astype(jnp.float32)
    error = jnp.sum(rows, axis=-1) / (3 * jnp.maximum(jnp.sum(ring, axis=(-3, -2, -1)), 1))
    return 10 * jnp.log10(PEAK**2 / error)


def border_mae(a: ArrayLike, b: ArrayLike, mask: ArrayLike) -> Array:
    """Returns the mean absolute difference over the pixels and channels of `border_ring`, (...), in
    [0, 1]; 0 if the ring is empty.

    Args:
        mask: (..., h, w, 1), 1 = hole.
    """
    ring = border_ring(mask)
    rows = jnp.sum(jnp.abs(_integers(a) - _integers(b)) * ring, axis=(-2, -1)).astype(jnp.float32)
    return jnp.sum(rows, axis=-1) / (3 * PEAK * jnp.maximum(jnp.sum(ring, axis=(-3, -2, -1)), 1))


def diversity(completions: ArrayLike, mask: ArrayLike) -> Array:
    """Returns the mean absolute difference of two completions of a photo over the hole's pixels and
    channels, (...), in [0, 1].

    The mean is over all pairs. It is 0 without a hole, which says nothing about a model, so means
    over photos leave such photos out.

    Args:
        completions: (..., s, h, w, 3), two or more of each photo.
        mask: (..., h, w, 1), 1 = hole.

    Raises:
        ValueError: there is only one completion.
    """
    samples = _integers(completions)
    count = samples.shape[-4]
    if count < 2:
        raise ValueError("diversity compares completions of a photo, and there is only one")
    hole = _integers(mask)[..., None, :, :, :]
    # Each sample is compared with all later ones: s - 1 sums instead of one a pair, and no array of
    # all pairs.
    against_later = [jnp.abs(samples[..., i + 1 :, :, :, :] - samples[..., i : i + 1, :, :, :]) * hole for i in range(count - 1)]
    rows = sum(jnp.sum(differences, axis=(-4, -2, -1)).astype(jnp.float32) for differences in against_later)
    pairs = count * (count - 1) // 2
    return jnp.sum(jnp.asarray(rows), axis=-1) / (3 * PEAK * pairs * jnp.maximum(hole_area(mask), 1))


def hole_area(mask: ArrayLike) -> Array:
    """Counts the pixels of a mask (..., h, w, 1) that are hole, int32 (...). A float32 ratio could
    fall on the wrong side of 20 %.
    """
    return jnp.sum(_integers(mask), axis=(-3, -2, -1))


def _integers(values: ArrayLike) -> Array:
    return jnp.asarray(values).astype(jnp.int32)


# The next two functions take the four maps of an SSIM as one array. Otherwise XLA's CPU compiler
# would recompute each of them for every pixel of the window, ten times the work.


def _window_sum(x: Array) -> Array:
    """Returns sums over the 11 x 11 windows that lie inside, (..., h, w * 3) -> (..., h - 10, (w -
    10) * 3).
    """
    for axis, step in _AXES:
        twos = _part(x, axis, 0, step) + _part(x, axis, step, step)
        fours = _part(twos, axis, 0, 2 * step) + _part(twos, axis, 2 * step, 2 * step)
        eights = _part(fours, axis, 0, 4 * step) + _part(fours, axis, 4 * step, 4 * step)
        # 8 + 2 + 1 = 11
        x = _part(eights, axis, 0, 3 * step) + _part(twos, axis, 8 * step, 9 * step) + _part(x, axis, 10 * step, 10 * step)
    return x


def _gaussian_mean(x: Array) -> Array:
    """Returns Gaussian-weighted means over the 11 x 11 windows that lie inside, (..., h, w * 3) ->
    (..., h - 10, (w - 10) * 3).
    """
    # Slices are summed instead of a convolution, whose factors accelerators round.
    weights = np.exp(-0.5 * ((np.arange(WINDOW) - WINDOW // 2) / SIGMA) ** 2)
    centre, *sides = (weights / weights.sum()).tolist()[WINDOW // 2 :]
    for axis, step in _AXES:
        parts = [_part(x, axis, i * step, (WINDOW - 1) * step) for i in range(WINDOW)]
        pairs = [w * (parts[WINDOW // 2 - i] + parts[WINDOW // 2 + i]) for i, w in enumerate(sides, 1)]
        x = functools.reduce(jnp.add, pairs, centre * parts[WINDOW // 2])
    return x


_AXES = ((-2, 1), (-1, 3))  # axes of (..., h, w * 3), and the distance of neighbours along each


def _part(x: Array, axis: int, start: int, less: int) -> Array:
    """Returns the entries along an axis from `start` on, `less` fewer than there are."""
    return jax.lax.slice_in_dim(x, start, start + x.shape[axis] - less, axis=axis % x.ndim)
