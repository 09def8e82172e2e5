"""Kinds of arguments: numbers, truth values, words, objects, functions, random keys."""

import math
import numbers
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .axes import is_deleted, is_key
from .rule import BeyondError, Rule

LARGEST = 2**31 - 1  # counters and indices are int32
HIGHEST = sys.float_info.max


def _scalar(value: Any) -> Any:
    """Returns a number, also out of an array without axes; a tracer passes. Truth values and text are no numbers."""
    if isinstance(value, jax.core.Tracer):
        if value.shape or not any(jnp.issubdtype(value.dtype, kind) for kind in (jnp.floating, jnp.integer)):
            raise TypeError
        return value
    if isinstance(value, np.ma.MaskedArray):  # which hides its number
        raise TypeError
    if isinstance(value, np.ndarray | jax.Array) and value.ndim == 0 and value.dtype != object:
        value = None if is_key(value) else np.asarray(value)[()]
    if isinstance(value, np.generic) and jnp.issubdtype(value.dtype, jnp.floating):
        return float(value)  # bfloat16 and its kin are no numbers.Real
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        raise TypeError
    return value


def integer(
    name: str, least: int | None = None, most: int = LARGEST, optional: bool = False, traced: bool = False
) -> Rule:
    """Returns a rule for an integer. Takes integers of NumPy and JAX, and floats without a fraction.

    It is known before compiling, unless it may be `traced`.
    """

    def convert(value: Any) -> Any:
        value = _scalar(value)
        if isinstance(value, jax.core.Tracer):
            if traced and jnp.issubdtype(value.dtype, jnp.integer):
                return value
            raise TypeError
        if not math.isfinite(value) or int(value) != value:
            raise TypeError if isinstance(value, float) and math.isfinite(value) else ValueError
        if not (least is None or least <= value):
            raise ValueError
        if value > most:
            raise ValueError if is_range else BeyondError(f"of at most {most}")
        return int(value)

    bounds = {None: "an integer", 0: "a non-negative integer", 1: "a positive integer"}
    is_range = most != LARGEST and least is not None
    expected = (
        f"an integer from {least} to {most}" if is_range else bounds.get(least, f"an integer of at least {least}")
    )
    return Rule(name, expected, convert, optional)


def real(
    name: str,
    least: float = -HIGHEST,
    most: float = HIGHEST,
    above: float = -math.inf,
    below: float = math.inf,
    optional: bool = False,
) -> Rule:
    """Returns a rule for a number, which may be infinite where `most` or `least` is.

    JAX arrays without axes pass, also tracers, whose range is not known.
    """

    def convert(value: Any) -> Any:
        number = _scalar(value)
        if isinstance(number, jax.core.Tracer):
            return number
        if not (least <= number <= most and above < number < below):
            raise ValueError
        return value if isinstance(value, jax.Array) else float(number)

    limits = {"at least": least, "above": above, "at most": most, "below": below}
    given = [f"{word} {limit:g}" for word, limit in limits.items() if abs(limit) < HIGHEST]
    kind = "a number" if math.inf in (most, -least) else "a finite number"
    return Rule(name, " ".join([kind, " and ".join(given)]).strip(), convert, optional)


def boolean(name: str) -> Rule:
    """Returns a rule for `True` or `False`."""

    def convert(value: Any) -> Any:
        if not isinstance(value, bool | np.bool_):
            raise TypeError
        return bool(value)

    return Rule(name, "True or False", convert)


def choice(name: str, *options: str, optional: bool = False) -> Rule:
    """Returns a rule for one of several words."""

    def convert(value: Any) -> Any:
        if not isinstance(value, str):
            raise TypeError
        if value not in options:
            raise ValueError
        return value

    return Rule(name, " or ".join(f'"{option}"' for option in options), convert, optional)


def instance(name: str, kinds: Any, expected: str, optional: bool = False) -> Rule:
    """Returns a rule for an object of some class, `expected` in words."""

    def convert(value: Any) -> Any:
        if not isinstance(value, kinds):
            raise TypeError
        return value

    return Rule(name, expected, convert, optional)


def function(name: str, signature: str, optional: bool = False) -> Rule:
    """Returns a rule for a function, whose `signature` is said in words."""

    def convert(value: Any) -> Any:
        if not callable(value):
            raise TypeError
        return value

    return Rule(name, f"a function {signature}", convert, optional)


def several(name: str, kind: type, expected: str, least: int = 0, optional: bool = False) -> Rule:
    """Returns a rule for at least so many objects of one class, as a tuple."""

    def convert(value: Any) -> Any:
        if isinstance(value, str | bytes | bytearray | memoryview | dict | np.ndarray | jax.Array | numbers.Number):
            raise TypeError
        found = tuple(value)
        if not all(isinstance(one, kind) for one in found):
            raise TypeError
        if len(found) < least:
            raise ValueError
        return found

    return Rule(name, expected, convert, optional)


def random_key(name: str = "key", optional: bool = False) -> Rule:
    """Returns a rule for one random key. A key of the old style, two `uint32`, becomes a typed one."""

    def convert(value: Any) -> Any:
        if not isinstance(value, jax.Array):
            raise TypeError
        if is_deleted(value):
            raise ValueError
        if is_key(value):
            if value.shape:
                raise ValueError
            return value
        if value.dtype != jnp.uint32 or value.shape != jax.random.PRNGKey(0).shape:
            raise TypeError
        return jax.random.wrap_key_data(value)

    return Rule(name, "one random key such as jax.random.key(0)", convert, optional)
