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
