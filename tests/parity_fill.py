"""Deterministic values for the parity checks, from a name alone: weights, images, masks, noise.

Everything is in the authors' (PyTorch) layout: NCHW activations, OIHW convolution kernels.
The arrays in tests/golden are what their programs computed in float64 from exactly these values.
"""

import zlib

import numpy as np


def _rng(name):
    return np.random.default_rng(zlib.crc32(name.encode()))


def weight(name, shape):
    """Value of the authors' parameter or buffer `name`, float32.

    Kernels (4-D) are scaled by 1/sqrt(fan_in). Running variances lie in [1, 1.5),
    normalisation weights of the teacher are near 1, all other vectors are small.
    Three layers are damped so that tanh and the posterior stay away from saturation.
    """
    shape = tuple(shape)
    rng = _rng(name)
    if name.endswith("running_var"):
        return (1.0 + 0.5 * rng.random(shape)).astype(np.float32)
    z = rng.standard_normal(shape)
    if name in ("mu.weight", "sigma.weight", "decoder.6.weight", "decoder.9.weight"):
        return (0.02 * z / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
    if name == "sigma.bias":
        return np.ones(shape, np.float32)
    if len(shape) == 4:
        return (z / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
    if name.startswith("body.") and name.endswith("1.weight"):  # teacher's batch norm
        return (1.0 + 0.1 * z).astype(np.float32)
    return (0.1 * z).astype(np.float32)


def image(case, batch, height, width):
    """(B, 3, H, W) float32 in [0, 1]: a smooth random image with a little noise."""
    rng = _rng(case + "/image")
    coarse = rng.random((batch, 3, height // 8, width // 8))
    smooth = np.kron(coarse, np.ones((1, 1, 8, 8)))
    return (0.8 * smooth + 0.2 * rng.random(smooth.shape)).astype(np.float32)


def mask(case, batch, height, width, ratio=0.35):
    """(B, 1, H, W) float32 of 0 and 1, 1 = missing, in 4 x 4 pixel blocks."""
    coarse = _rng(case + "/mask").random((batch, 1, height // 4, width // 4)) < ratio
    return np.kron(coarse, np.ones((1, 1, 4, 4))).astype(np.float32)


def noise(case, shape):
    """Standard normal float32, e.g. the epsilon of the reparameterisation."""
    return _rng(case + "/noise").standard_normal(shape).astype(np.float32)
