"""Values that JSON can hold and give back as they were."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from ..ground.checks import shown

PLAIN = frozenset((float, int, bool, str, type(None)))


def plain(value: Any) -> Any:
    """Returns numbers and arrays of NumPy and JAX as Python's own, in dictionaries and lists too.

    **Raises** `TypeError` for what JSON could not give back as it was.
    """
    if type(value) in PLAIN:
        return value
    if isinstance(value, Mapping):
        if names := [key for key in value if not isinstance(key, str)]:
            raise TypeError(f"the names of a dictionary must be text, got {names[0]!r}")
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return _of_array(value)
    if isinstance(value, int | float | str):  # of a class of its own
        return next(kind(value) for kind in (int, float, str) if isinstance(value, kind))
    raise TypeError(f"got {shown(value)}")


def _of_array(value: Any) -> Any:
    """Returns an array in lists. **Raises** `TypeError` for one of objects, or with entries that are masked."""
    array = np.asarray(value)
    if array.dtype == object or isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"got {shown(value)}")
    return plain((array.astype(float) if array.dtype == np.longdouble else array).tolist())


def number(value: Any) -> float:
    """Returns a number, also out of an array or a list that holds one. **Raises** `TypeError` for anything else."""
    found = plain(value)
    if isinstance(found, list) and len(found) == 1:
        found = found[0]
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise TypeError
    return found


def numbers(value: Any) -> dict[str, float]:
    """Returns a dictionary of numbers. **Raises** `TypeError` for anything else."""
    if not isinstance(value, dict):
        raise TypeError
    return {name: number(one) for name, one in value.items()}


@contextmanager
def reading(name: str, kind: str) -> Iterator[None]:
    """Raises `ValueError` naming the argument where what is read is not what `to_json` of a class has written."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{name} is not what {kind}.to_json returns: {type(error).__name__}: {error}") from error


def without_infinities(value: Any) -> Any:
    """Returns a value with numbers that are not finite by name."""
    if isinstance(value, dict):
        return {key: without_infinities(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_infinities(item) for item in value]
    return {"not finite": repr(value)} if isinstance(value, float) and not math.isfinite(value) else value


def with_infinities(value: Any) -> Any:
    """Inverts `without_infinities`."""
    if isinstance(value, dict):
        if set(value) == {"not finite"}:
            return float(value["not finite"])
        return {key: with_infinities(item) for key, item in value.items()}
    return [with_infinities(item) for item in value] if isinstance(value, list) else value
