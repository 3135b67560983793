"""Placement on devices, and the sentence for a batch that does not divide."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from spn_jax.errors import InputError
from spn_jax.runtime.sharding import array_sharding, check_divisible, make_mesh, place, replicate, shard_batch, state_sharding
from spn_jax.training import loop
from tests import trainer
from tests.trainer import Inputs


def test_mesh_has_the_one_axis_over_the_devices_asked_for() -> None:
    assert dict(make_mesh(1).shape) == {"data": 1}
    assert make_mesh().size == jax.device_count()


def test_arrays_keep_their_values_and_types() -> None:
    batch: dict[str, Any] = {"image": np.arange(48, dtype=np.uint8).reshape(4, 2, 2, 3), "targets": {1: np.ones((4, 2), np.float32)}}
    for placed in shard_batch(batch, make_mesh(1)), replicate(batch, make_mesh(1)):
        assert placed["image"].dtype == np.uint8
        np.testing.assert_array_equal(placed["image"], batch["image"])
        np.testing.assert_array_equal(placed["targets"][1], batch["targets"][1])


def test_of_several_processes_none_sends_what_all_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """jax.device_put would compare every array over the network."""

    def send(*arguments: Any, **options: Any) -> None:
        raise AssertionError("an array was sent")

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "device_put", send)
    mesh = make_mesh(1)
    tree = {"a": np.arange(6.0).reshape(2, 3), "b": [np.float32(2)]}
    for placed in replicate(tree, mesh), place(tree, state_sharding(tree, mesh, split=True)):
        assert jax.tree.all(jax.tree.map(lambda ours, theirs: np.array_equal(ours, theirs) and isinstance(ours, jax.Array), placed, tree))


@pytest.mark.parametrize(("batch", "devices", "micro"), [(8, 4, 1), (8, 4, 2), (3, 1, 1), (3, 1, 3)])
def test_batches_that_divide(batch: int, devices: int, micro: int) -> None:
    check_divisible(batch, devices, "train.batch_size", micro)


@pytest.mark.parametrize(
    ("batch", "devices", "micro", "text"),
    [
        (6, 4, 1, "train.batch_size=6 does not divide over 4 devices; the nearest that does is 4 or 8"),
        (3, 4, 1, "train.batch_size=3 does not divide over 4 devices; the nearest that does is 4"),
        (12, 4, 2, "train.batch_size=12 does not divide over 4 devices times 2 micro-batches; the nearest that does is 8 or 16"),
    ],
)
def test_batches_that_do_not_divide_are_told_the_nearest_that_does(batch: int, devices: int, micro: int, text: str) -> None:
    with pytest.raises(InputError) as raised:
        check_divisible(batch, devices, "train.batch_size", micro)
    assert str(raised.value) == text


@pytest.mark.parametrize("setting", ["train.batch_size", "eval.batch_size"])
def test_batch_that_does_not_divide_on_the_command_line(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    monkeypatch.setattr(loop, "make_mesh", lambda: AbstractMesh((4,), ("data",)))
    _, errors = trainer.run_here(inputs.arguments(tmp_path / "run", f"{setting}=6"), status=2)
    assert errors == f"error: {setting}=6 does not divide over 4 devices; the nearest that does is 4 or 8\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((3, 3, 64, 128), (None, None, None, "data")),
        ((3, 3, 128, 66), (None, None, "data")),
        ((4096,), ()),
        ((3, 3, 4, 4), ()),
        ((3, 3, 33, 33), ()),
    ],
)
def test_large_arrays_are_split_along_their_largest_axis_that_divides(shape: tuple[int, ...], expected: tuple[str | None, ...]) -> None:
    mesh = AbstractMesh((4,), ("data",))
    array = jax.ShapeDtypeStruct(shape, np.float32)
    assert array_sharding(array, mesh, split=True).spec == PartitionSpec(*expected)
    assert array_sharding(array, mesh, split=False).spec == PartitionSpec()
