"""Arrays among arguments: the leading axis that several share, and what holds no numbers."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def leading_axis(leaves: Iterable[tuple[str, Any]], name: str, unit: str) -> int:
    """Returns the length of the leading axis that all arrays among named leaves of `name` share, one `unit` each.

    **Raises** `ValueError` naming the paths where there is none, they differ or it is empty, `TypeError` for arrays
    without numbers.
    """
    lengths = {}
    for path, leaf in leaves:
        refuse_no_numbers(path, leaf)
        if isinstance(leaf, np.ndarray | jax.Array):
            lengths[path] = np.shape(leaf)[:1]
    if not lengths:
        raise ValueError(f"{name} holds no arrays, so no axis of {unit}s")
    if len(set(lengths.values())) != 1 or () in lengths.values():
        raise ValueError(f"all arrays of {name} must have the same leading axis of {unit}s, got {lengths}")
    (number,) = next(iter(lengths.values()))
    if number == 0:
        raise ValueError(f"{name} has no {unit}s: its leading axis has length 0")
    return int(number)


def refuse_no_numbers(path: str, leaf: Any) -> None:
    """Raises `TypeError` naming the path of an array of objects, text, dates, or of numbers that JAX does not know.

    **Raises** `ValueError` for an array that has been deleted.
    """
    if is_deleted(leaf):
        raise ValueError(f"{path} has been deleted, as arrays are that a compiled function was given to write over")
    if isinstance(leaf, np.ma.MaskedArray):
        raise TypeError(f"{path} is a masked array, whose mask would be lost")
    if isinstance(leaf, np.ndarray | np.generic) and not is_known(leaf.dtype):
        raise TypeError(f"{path} has dtype {leaf.dtype}; arrays must hold numbers that JAX knows")


def is_deleted(value: Any) -> bool:
    """Returns whether a value is an array of JAX whose memory has been given away."""
    return isinstance(value, jax.Array) and not isinstance(value, jax.core.Tracer) and value.is_deleted()


def is_key(value: Any) -> bool:
    """Returns whether a value is an array of typed random keys."""
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def is_known(dtype: np.dtype) -> bool:
    """Returns whether JAX knows the numbers of a type of NumPy: not those of another byte order or long doubles."""
    numbers = jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_)
    return numbers and dtype.isnative and dtype.char not in "gG"


def refuse_unfit(path: str, leaf: np.ndarray | np.generic) -> None:
    """Raises `ValueError` naming the path of numbers that become others in the type in which JAX takes them."""
    dtype = jax.dtypes.canonicalize_dtype(leaf.dtype)
    if number := num_lost(leaf):
        raise ValueError(
            f"{path} holds {number} numbers out of the range of {dtype}, in which JAX takes {leaf.dtype}: rescale or "
            "renumber them, or set jax_enable_x64"
        )


def num_lost(leaf: np.ndarray | np.generic) -> int:
    """Returns how many numbers become others in the type in which JAX takes them.

    These are integers out of range, which JAX wraps, and floating numbers of which some would be infinite or all zero.
    """
    dtype = jax.dtypes.canonicalize_dtype(leaf.dtype)
    if dtype == leaf.dtype:
        return 0
    with np.errstate(all="ignore"):
        taken = leaf.astype(dtype)
    if jnp.issubdtype(dtype, jnp.inexact):
        lost = np.isfinite(leaf) & ~np.isfinite(taken) | (leaf != 0) & ~np.any(taken)
    else:
        lost = taken != leaf
    return int(np.sum(lost))
