"""Saves time where a program calls the same function of arrays hundreds of times."""

from collections.abc import Callable
from typing import TypeVar

import jax

Function = TypeVar("Function", bound=Callable[..., object])


def traced_once(*static: int) -> Callable[[Function], Function]:
    """Decorates a function of arrays which layers of equal shapes call again and again: JAX traces
    it once for each set of shapes, types and values of the arguments at the positions `static`.

    The program contains its operations where they are called (`inline`), as without the decorator,
    so neither its compilation nor its results change. JAX distinguishes contexts (precision,
    `compiled_for`) too, but not values of global names: whoever changes one calls
    `jax.clear_caches`.
    """
    return lambda function: jax.jit(function, static_argnums=static, inline=True)  # type: ignore[return-value]
