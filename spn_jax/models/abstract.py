"""Makes networks of which only names, shapes and types are wanted, or whose arrays come from a
file.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx

Network = TypeVar("Network", bound=nnx.Module)


class _NoNumbers(np.random.Generator):
    """Stands for a generator of random numbers inside `nnx.eval_shape`, where nobody reads them: a
    full-size network would draw fifty million.
    """

    def random(self, size: Any = None, dtype: Any = np.float64, out: None = None) -> Any:  # type: ignore[override]
        return jnp.zeros(size, dtype)

    def standard_normal(self, size: Any = None, dtype: Any = np.float64, out: None = None) -> Any:  # type: ignore[override]
        return np.ones(size, dtype)


def abstract_network(make: Callable[[np.random.Generator], Network]) -> Network:
    """Returns the network that `make` makes of a random generator, with `jax.ShapeDtypeStruct`s in
    the places of its arrays.
    """
    return nnx.eval_shape(lambda: make(_NoNumbers(np.random.PCG64(0))))
