"""Places arrays on a mesh with one axis "data" over all devices of all processes.

Batches are sharded. Parameters are replicated, or sharded too.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from spn_jax.errors import InputError

SMALLEST_SPLIT = 1024  # elements below which an array is not sharded


def make_mesh(devices: int | None = None) -> Mesh:
    """Returns a mesh with the axis "data" over all devices, or over the first `devices` of them."""
    chosen = jax.devices()[:devices]
    return jax.make_mesh((len(chosen),), ("data",), axis_types=(AxisType.Auto,), devices=chosen)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Replicates every array of the tree on every device. Every process must hold all of it."""
    return place(tree, NamedSharding(mesh, PartitionSpec()))


def place(tree: Any, shardings: Any) -> Any:
    """Turns arrays that every process holds whole into global arrays.

    `shardings` is a tree of shardings, or one for all arrays. With several processes jax.device_put
    would send every array over the network to check that it is the same everywhere.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    def on_devices(array: Any, sharding: NamedSharding) -> jax.Array:
        whole = np.asarray(array)
        return jax.make_array_from_callback(whole.shape, sharding, lambda part: whole[part])

    if isinstance(shardings, NamedSharding):
        return jax.tree.map(lambda array: on_devices(array, shardings), tree)
    return jax.tree.map(on_devices, tree, shardings)


def array_sharding(array: Any, mesh: Mesh, split: bool) -> NamedSharding:
    """Returns the sharding of an array of a training state: replicated or, if `split`, sharded
    along its largest axis that the number of devices divides.

    Vectors, small arrays and those without such an axis are always replicated.
    """
    axes = [axis for axis, size in enumerate(array.shape) if size % mesh.size == 0]
    if not split or len(array.shape) < 2 or array.size < SMALLEST_SPLIT or not axes:
        return NamedSharding(mesh, PartitionSpec())
    longest = max(axes, key=lambda axis: array.shape[axis])
    return NamedSharding(mesh, PartitionSpec(*[None] * longest, "data"))


def state_sharding(state: Any, mesh: Mesh, split: bool) -> Any:
    """Applies `array_sharding` to every array of a tree."""
    return jax.tree.map(lambda x: array_sharding(x, mesh, split), state)


def gather(tree: Any, mesh: Mesh) -> Any:
    """Replicates every array of a tree of global arrays on every device. Every process must call
    it.
    """
    if all(x.sharding.is_fully_replicated for x in jax.tree.leaves(tree)):
        return tree
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))(tree)


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """Turns this process's rows of a batch into global arrays, sharded along the first axis."""
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def check_divisible(batch_size: int, devices: int, setting: str, micro_batches: int = 1) -> None:
    """Raises InputError, naming the nearest sizes that fit, unless a batch divides evenly over
    devices and micro-batches.
    """
    unit = devices * micro_batches
    if batch_size % unit:
        below, above = batch_size // unit * unit, -(-batch_size // unit) * unit
        nearest = " or ".join(str(size) for size in (below, above) if size > 0)
        parts = f"{devices} devices" + (f" times {micro_batches} micro-batches" if micro_batches > 1 else "")
        raise InputError(f"{setting}={batch_size} does not divide over {parts}; the nearest that does is {nearest}")
