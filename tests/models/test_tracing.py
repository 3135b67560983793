"""Functions that are traced once for equal shapes."""

import jax
import jax.numpy as jnp
from jax import Array

from spn_jax.models.convolution import compiled_for
from spn_jax.models.tracing import traced_once


def wave(x: Array, factor: int) -> Array:
    return jnp.sin(factor * x) @ x.T


def test_program_is_the_same_as_without_the_decorator() -> None:
    """The program of a loss and its gradient, where a layer occurs twice."""
    decorated = traced_once(1)(wave)

    def program(form: object) -> str:
        def loss(x: Array) -> Array:
            return form(form(x, 2), 2).sum() + form(x, 3).sum()  # type: ignore[operator]

        return jax.jit(jax.value_and_grad(loss)).trace(jnp.ones((4, 4))).lower().as_text()

    assert program(decorated) == program(wave)


def test_each_shape_each_static_value_and_each_context_is_traced_once() -> None:
    traced = []

    def counted(x: Array, factor: int) -> Array:
        traced.append((x.shape, factor, compiled_for.value))
        return wave(x, factor)

    decorated, small, large = traced_once(1)(counted), jnp.ones((4, 4)), jnp.ones((5, 5))
    for _ in range(2):  # another program with the same layers
        jax.jit(lambda: (decorated(small, 2), decorated(small, 2), decorated(small, 3), decorated(large, 2))).trace()
        with compiled_for("gpu"):
            jax.jit(lambda: decorated(small, 2)).trace()
    assert traced == [((4, 4), 2, None), ((4, 4), 3, None), ((5, 5), 2, None), ((4, 4), 2, "gpu")]


def test_precision_of_matrix_products_is_that_of_the_call() -> None:
    decorated, x = traced_once(1)(wave), jnp.ones((4, 4))

    def program() -> str:
        return jax.jit(lambda x: decorated(x, 2)).trace(x).lower().as_text()

    before = program()
    with jax.default_matmul_precision("highest"):
        assert "HIGHEST" in program()
    assert "HIGHEST" not in before
