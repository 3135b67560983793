"""Where arrays live: one mesh axis "data" over all devices of all processes; parameters replicated, batches split."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from spn_jax.errors import InputError


def make_mesh(devices: int | None = None) -> Mesh:
    """A mesh with the axis "data" over all devices, or over the first `devices` of them."""
    chosen = jax.devices()[:devices]
    return jax.make_mesh((len(chosen),), ("data",), axis_types=(AxisType.Auto,), devices=chosen)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Every array of the tree on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """This process's rows of a batch -> global arrays, split along the first axis, one part a device."""
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def check_divisible(batch_size: int, devices: int, setting: str, micro_batches: int = 1) -> None:
    """Raises InputError, naming the nearest sizes that fit, unless a batch splits evenly over devices and micro-batches."""
    unit = devices * micro_batches
    if batch_size % unit:
        below, above = batch_size // unit * unit, -(-batch_size // unit) * unit
        nearest = " or ".join(str(size) for size in (below, above) if size > 0)
        parts = f"{devices} devices" + (f" times {micro_batches} micro-batches" if micro_batches > 1 else "")
        raise InputError(f"{setting}={batch_size} does not divide over {parts}; the nearest that does is {nearest}")
