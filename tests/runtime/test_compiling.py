"""Python does not search for garbage while JAX traces."""

import gc

import jax
import jax.numpy as jnp
import pytest

from spn_jax.runtime.compiling import without_garbage_collection


@pytest.mark.parametrize("was_on", [True, False])
def test_search_for_garbage_is_off_during_a_trace_and_then_as_it_was(was_on: bool) -> None:
    during = []

    @jax.jit
    def traced(x: jax.Array) -> jax.Array:
        with without_garbage_collection():
            during.append(gc.isenabled())
            return 2 * x

    try:
        if not was_on:
            gc.disable()
        traced(jnp.ones(3))
        assert during == [False]
        assert gc.isenabled() == was_on
    finally:
        gc.enable()


def test_search_for_garbage_goes_on_after_an_error() -> None:
    with pytest.raises(ValueError, match="wrong shape"), without_garbage_collection():
        raise ValueError("wrong shape")
    assert gc.isenabled()


def test_of_several_threads_the_last_one_turns_the_search_on_again() -> None:
    first, second = without_garbage_collection(), without_garbage_collection()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not gc.isenabled()
    second.__exit__(None, None, None)
    assert gc.isenabled()
