"""Convolves in PyTorch's conventions. A program for the CPU gets fast forms, any other plain ones.

Activations are `b h w c`, kernels `h w in out`. A kernel may have a wider type than the
activations: it is rounded to theirs here, and its gradient has the wider one.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Mesh, PartitionSpec

from spn_jax.models import cpu_convolution
from spn_jax.models.cpu_convolution import plain_convolution, reflect
from spn_jax.models.tracing import traced_once

EVERY_PLATFORM = "every platform"
AN_ACCELERATOR = "an accelerator"  # none in particular: convolutions have no form of the CPU's

# The platform ("cpu", "gpu", "tpu", ...) that the program being traced will run on:
# `with compiled_for("gpu"): ...`. None means JAX's default device; EVERY_PLATFORM is for exported
# programs, which contain both forms. JAX compiles a separate program for each value.
compiled_for = jax.make_user_context(None)


# The mesh with the axis "data" over whose devices a program splits its batch:
# `with batch_split_over(mesh): ...`. None is one device.
batch_split_over = jax.make_user_context(None)

Form = Callable[[Array, Array], Array]  # x and kernel, which have one type -> (b, h', w', out)


def choose_form(x: Array, kernel: Array, *, cpu: Form, elsewhere: Form) -> Array:
    """Convolves x with the kernel in the form for the platform that the program is traced for."""
    platform = compiled_for.value or jax.default_backend()
    if platform == EVERY_PLATFORM:
        return lax.platform_dependent(x, kernel, cpu=cpu, default=elsewhere)
    return (cpu if platform == "cpu" else elsewhere)(x, kernel)


def convolve(x: Array, kernel: Array, *, stride: int = 1, padding: int = 0, dilation: int = 1) -> Array:
    """Computes the cross-correlation with explicit zero padding: (b, h, w, in) and (k, k, in, out)
    -> (b, h', w', out).

    On the CPU, gradients inside a caller's own `jax.shard_map` need check_vma=False, and the caller
    must sum those with respect to the kernel over the shards.
    """
    zeros = ((padding, padding), (padding, padding))

    def form(x: Array, kernel: Array) -> Array:
        if kernel.shape[:2] == (1, 1) and stride == 1 and padding == 0:
            # A matrix product is used, because the CPU backend's 1x1 convolution is slow.
            return jnp.einsum("bhwi,io->bhwo", x, kernel[0, 0])
        return choose_form(
            x,
            kernel,
            cpu=lambda x, kernel: cpu_convolution.convolve(x, kernel, stride, zeros, dilation),
            elsewhere=lambda x, kernel: plain_convolution(x, kernel, stride, zeros, dilation),
        )

    return in_the_type_of_x(form, x, kernel)


def convolve_reflected(x: Array, kernel: Array, *, padding: int, dilation: int = 1) -> Array:
    """Computes the cross-correlation of stride 1 with reflection padding. The size is preserved:
    (b, h, w, in) -> (b, h, w, out).
    """

    def padded_before(x: Array, kernel: Array) -> Array:
        return plain_convolution(reflect(x, padding), kernel, 1, ((0, 0), (0, 0)), dilation)

    def form(x: Array, kernel: Array) -> Array:
        return choose_form(
            x,
            kernel,
            cpu=lambda x, kernel: cpu_convolution.convolve_reflected(x, kernel, padding, dilation),
            elsewhere=jax.checkpoint(padded_before),  # keeps x, which others keep too, and pads it again
        )

    return in_the_type_of_x(form, x, kernel)


def in_the_type_of_x(form: Form, x: Array, kernel: Array) -> Array:
    """Computes form(x, kernel) in the type of x. Where the kernel's type is wider, several devices
    add up their parts of its gradient in that one.
    """
    mesh = batch_split_over.value
    if mesh is None or mesh.size == 1 or kernel.dtype == x.dtype:
        return form(x, kernel.astype(x.dtype))
    return _in_the_type_of_x(form, mesh, x, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _in_the_type_of_x(form: Form, mesh: Mesh, x: Array, kernel: Array) -> Array:
    return form(x, kernel.astype(x.dtype))


def _forward(form: Form, mesh: Mesh, x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return form(x, kernel.astype(x.dtype)), (x, kernel)


def _backward(form: Form, mesh: Mesh, kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = kept
    narrow = kernel.astype(x.dtype)

    def of_kernel(x: Array, narrow: Array, gradient: Array) -> Array:
        """Differentiates on one device and sums over all. The compiler itself would sum the
        devices' parts where they arise, in the narrow type.
        """
        (part,) = jax.vjp(lambda narrow: form(x, narrow), narrow)[1](gradient)
        return lax.psum(part.astype(kernel.dtype), "data")

    by_photo, whole = PartitionSpec("data"), PartitionSpec()
    summed = jax.shard_map(of_kernel, mesh=mesh, in_specs=(by_photo, whole, by_photo), out_specs=whole, check_vma=False)
    (of_x,) = jax.vjp(lambda x: form(x, narrow), x)[1](gradient)
    return of_x, summed(x, narrow, gradient)


_in_the_type_of_x.defvjp(_forward, _backward)


@jax.custom_vjp
def add_bias(x: Array, bias: Array) -> Array:
    """Adds a bias (c,) to x (b, h, w, c) in the type of x; its gradient has its own type."""
    return _sum(x, bias)


@traced_once()
def _sum(x: Array, bias: Array) -> Array:
    """Returns what `add_bias` does, with or without its gradients."""
    return x + bias.astype(x.dtype)


def _add_forward(x: Array, bias: Array) -> tuple[Array, Array]:
    return _sum(x, bias), jnp.zeros((), bias.dtype)  # its type alone is needed


@traced_once()
def _add_backward(kept: Array, gradient: Array) -> tuple[Array, Array]:
    return gradient, gradient.sum((0, 1, 2), dtype=kept.dtype)


add_bias.defvjp(_add_forward, _add_backward)
