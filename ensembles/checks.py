"""Checks before anything is compiled; every message names the argument."""

from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree


def positive(value: int, name: str, least: int = 1) -> int:
    """Returns an integer that is at least `least`, as an `int`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name} must be an integer that is at least {least}, got {value!r}")
    return int(value)


def fraction(value: float, name: str) -> float:
    """Returns a number above 0 and at most 1."""
    if not 0 < value <= 1:
        raise ValueError(f"{name} must be above 0 and at most 1, got {value!r}")
    return value


def has_shape(value: Any, shape: tuple[int | None, ...], name: str) -> None:
    """Checks the shape of an array; `None` in `shape` stands for any length."""
    found = np.shape(value)
    if len(found) != len(shape) or any(want not in (None, have) for have, want in zip(found, shape, strict=True)):
        wanted = ", ".join("any" if want is None else str(want) for want in shape)
        raise ValueError(f"{name} must have shape ({wanted}), got {found}")


def concrete(value: Any) -> bool:
    """Returns whether the numbers of an array are known: inside a transformation they are not."""
    return not isinstance(value, jax.core.Tracer)


def num_replicas(tree: PyTree, name: str = "replicas") -> int:
    """Returns the length of the leading axis that all arrays of `tree` share.

    **Raises** `ValueError` naming the paths where there is none or they differ.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    lengths = {
        name + jax.tree_util.keystr(path): np.shape(leaf)[:1]
        for path, leaf in leaves
        if isinstance(leaf, np.ndarray | jax.Array)
    }
    if not lengths:
        raise ValueError(f"{name} holds no arrays, so no axis of replicas")
    if len(set(lengths.values())) != 1 or () in lengths.values():
        raise ValueError(f"all arrays of {name} must have the same leading axis of replicas, got {lengths}")
    return next(iter(lengths.values()))[0]
