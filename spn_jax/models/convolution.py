"""Convolves in PyTorch's conventions. A program for the CPU gets fast forms, any other plain ones.

Activations are `b h w c`, kernels `h w in out`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from spn_jax.models import cpu_convolution
from spn_jax.models.cpu_convolution import plain_convolution

EVERY_PLATFORM = "every platform"

# The platform ("cpu", "gpu", "tpu", ...) that the program being traced will run on:
# `with compiled_for("gpu"): ...`. None means JAX's default device; EVERY_PLATFORM is for exported
# programs, which contain both forms. JAX compiles a separate program for each value.
compiled_for = jax.make_user_context(None)


def choose_form(x: Array, kernel: Array, *, cpu: Callable[[Array, Array], Array], elsewhere: Callable[[Array, Array], Array]) -> Array:
    """Convolves x with the kernel in the form for the platform that the program is traced for."""
    platform = compiled_for.value or jax.default_backend()
    if platform == EVERY_PLATFORM:
        return lax.platform_dependent(x, kernel, cpu=cpu, default=elsewhere)
    return (cpu if platform == "cpu" else elsewhere)(x, kernel)


def convolve(x: Array, kernel: Array, *, stride: int = 1, padding: int = 0, dilation: int = 1) -> Array:
    """Computes the cross-correlation with explicit zero padding: (b, h, w, in) and (k, k, in, out)
    -> (b, h', w', out).

    On the CPU, gradients inside `jax.shard_map` need check_vma=False, and the caller must sum those
    with respect to the kernel over the shards.
    """
    if kernel.shape[:2] == (1, 1) and stride == 1 and padding == 0:
        # A matrix product is used, because the CPU backend's 1x1 convolution is slow.
        return jnp.einsum("bhwi,io->bhwo", x, kernel[0, 0])
    zeros = ((padding, padding), (padding, padding))
    return choose_form(
        x,
        kernel,
        cpu=lambda x, kernel: cpu_convolution.convolve(x, kernel, stride, zeros, dilation),
        elsewhere=lambda x, kernel: plain_convolution(x, kernel, stride, zeros, dilation),
    )


def convolve_reflected(x: Array, kernel: Array, *, padding: int, dilation: int = 1) -> Array:
    """Computes the cross-correlation of stride 1 with reflection padding. The size is preserved:
    (b, h, w, in) -> (b, h, w, out).
    """

    def padded_before(x: Array, kernel: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)), mode="reflect")
        return plain_convolution(x, kernel, 1, ((0, 0), (0, 0)), dilation)

    return choose_form(
        x, kernel, cpu=lambda x, kernel: cpu_convolution.convolve_reflected(x, kernel, padding, dilation), elsewhere=padded_before
    )
