"""What tests marked `gpu` share: the same computation on this machine's processor."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from spn_jax.models.convolution import compiled_for


def on_the_cpu(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of arrays gives when it is compiled for the CPU and run there, in NumPy."""
    cpu = jax.devices("cpu")[0]
    with compiled_for("cpu"), jax.default_device(cpu):
        return jax.tree.map(np.asarray, jax.jit(function)(*jax.device_put(arguments, cpu)))


def memory(statistic: str = "bytes_in_use") -> int:
    """Bytes on the first device, which has to be one that tells."""
    stats = jax.devices()[0].memory_stats()
    if stats is None:
        pytest.skip("this device does not tell how much memory is in use")
    return stats[statistic]
