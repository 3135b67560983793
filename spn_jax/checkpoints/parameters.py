"""Converts any tree of arrays to a flat dictionary of named arrays and back.

A name is a path, such as "generator.middle.0.conv_in.kernel". Checkpoints store these names and the
conversion table uses them, so they must not change.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

Tree = TypeVar("Tree")


def path_name(path: tuple[Any, ...]) -> str:
    """Joins a tree path's attribute names, dictionary keys and list positions with dots."""
    return ".".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def named_arrays(tree: Any) -> dict[str, Any]:
    """Returns {name: leaf} for every array in the tree, in the tree's order."""
    import jax  # imported here, so that `compare_names` does not need it

    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def with_named_arrays(tree: Tree, arrays: Mapping[str, Any], *, what: str) -> Tree:
    """Replaces every leaf of the tree by the array of its name. `what` describes the arrays in
    errors.

    Raises:
        ValueError: names are missing, left over or of another shape; it lists all of them.
    """
    import jax

    wanted = named_arrays(tree)
    problems = compare_names({name: np.shape(leaf) for name, leaf in wanted.items()}, {n: np.shape(a) for n, a in arrays.items()})
    if problems:
        raise ValueError(f"{what} does not fit: " + "; ".join(problems))
    leaves = [arrays[name] for name in wanted]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def compare_names(wanted: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Returns one line for every entry that is missing, left over or of another shape."""
    lines = [f"{name} is missing" for name in wanted if name not in given]
    lines += [f"{name} is left over" for name in given if name not in wanted]
    shared = [name for name in wanted if name in given and tuple(wanted[name]) != tuple(given[name])]
    return lines + [f"{name} has shape {tuple(given[name])} instead of {tuple(wanted[name])}" for name in shared]
