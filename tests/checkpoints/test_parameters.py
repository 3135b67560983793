"""Names of arrays, and what a mismatch is said to be."""

from typing import NamedTuple

import numpy as np
import pytest

from spn_jax.checkpoints.parameters import compare_names, named_arrays, with_named_arrays


class Pair(NamedTuple):
    first: np.ndarray
    second: list[np.ndarray]


TREE = {"generator": Pair(np.zeros((2, 3)), [np.ones(4), np.ones(5)]), "step": np.array(7)}
NAMES = ["generator.first", "generator.second.0", "generator.second.1", "step"]


def test_names_are_attributes_keys_and_positions() -> None:
    named = named_arrays(TREE)
    assert list(named) == NAMES
    assert named["generator.second.1"] is TREE["generator"].second[1]  # type: ignore[attr-defined]


def test_arrays_go_back_to_their_places_whatever_their_order() -> None:
    arrays = {name: np.full_like(array, i) for i, (name, array) in enumerate(named_arrays(TREE).items())}
    tree = with_named_arrays(TREE, dict(reversed(arrays.items())), what="x")
    assert isinstance(tree["generator"], Pair)
    assert {name: array.flat[0] for name, array in named_arrays(tree).items()} == dict(zip(NAMES, range(4), strict=True))


def test_all_that_does_not_fit_is_said_at_once() -> None:
    arrays = {"generator.first": np.zeros((3, 2)), "generator.second.0": np.ones(4), "step": np.array(7), "other": np.ones(1)}
    with pytest.raises(ValueError) as raised:
        with_named_arrays(TREE, arrays, what="the file")
    assert str(raised.value) == (
        "the file does not fit: generator.second.1 is missing; other is left over; generator.first has shape (3, 2) instead of (2, 3)"
    )


def test_equal_names_and_shapes_have_no_differences() -> None:
    shapes = {"a": (1, 2), "b": ()}
    assert compare_names(shapes, dict(shapes)) == []
