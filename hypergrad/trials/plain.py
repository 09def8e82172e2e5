"""Values that JSON can hold and give back as they were."""

import math
from collections.abc import Mapping
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
        return plain(np.asarray(value).tolist())
    if isinstance(value, int | float | str):  # of a class of its own
        return next(kind(value) for kind in (int, float, str) if isinstance(value, kind))
    raise TypeError(f"got {shown(value)}")


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
