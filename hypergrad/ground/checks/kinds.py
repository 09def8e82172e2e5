"""Kinds of arguments: numbers, words, objects, functions, paths, random keys."""

import math
import numbers
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .rule import Rule

LARGEST = 2**31 - 1  # counters are int32


def _scalar(value: Any) -> Any:
    """Returns a number, also out of an array without axes; a tracer passes. Truth values and text are no numbers."""
    if isinstance(value, jax.core.Tracer):
        if value.shape or not any(jnp.issubdtype(value.dtype, kind) for kind in (jnp.floating, jnp.integer)):
            raise TypeError
        return value
    if isinstance(value, np.ndarray | jax.Array) and value.ndim == 0 and value.dtype != object:
        value = np.asarray(value)[()] if not jnp.issubdtype(value.dtype, jax.dtypes.prng_key) else None
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
        if not (least is None or least <= value) or value > most:
            raise ValueError
        return int(value)

    bounds = {None: "an integer", 0: "a non-negative integer", 1: "a positive integer"}
    expected = bounds.get(least, f"an integer of at least {least}")
    if most != LARGEST:
        expected = f"an integer from {least} to {most}"
    return Rule(name, expected, convert, optional)


def real(
    name: str,
    least: float = -math.inf,
    most: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    optional: bool = False,
) -> Rule:
    """Makes a rule for a finite number. JAX arrays without axes pass, also tracers, whose range is not known."""

    def convert(value: Any) -> Any:
        number = _scalar(value)
        if isinstance(number, jax.core.Tracer):
            return number
        if not (math.isfinite(number) and least <= number <= most and above < number < below):
            raise ValueError
        return value if isinstance(value, jax.Array) else float(number)

    limits = {"at least": least, "above": above, "at most": most, "below": below}
    given = [f"{word} {limit:g}" for word, limit in limits.items() if math.isfinite(limit)]
    return Rule(name, " ".join(["a finite number", " and ".join(given)]).strip(), convert, optional)


def boolean(name: str) -> Rule:
    """Makes a rule for `True` or `False`."""

    def convert(value: Any) -> Any:
        if not isinstance(value, bool | np.bool_):
            raise TypeError
        return bool(value)

    return Rule(name, "True or False", convert)


def choice(name: str, *options: str, optional: bool = False) -> Rule:
    """Makes a rule for one of several words."""

    def convert(value: Any) -> Any:
        if not isinstance(value, str):
            raise TypeError
        if value not in options:
            raise ValueError
        return value

    return Rule(name, " or ".join(f'"{option}"' for option in options), convert, optional)


def instance(name: str, kinds: Any, expected: str, optional: bool = False) -> Rule:
    """Makes a rule for an object of some class, `expected` in words."""

    def convert(value: Any) -> Any:
        if not isinstance(value, kinds):
            raise TypeError
        return value

    return Rule(name, expected, convert, optional)


def function(name: str, signature: str, optional: bool = False) -> Rule:
    """Makes a rule for a function, whose `signature` is said in words."""

    def convert(value: Any) -> Any:
        if not callable(value):
            raise TypeError
        return value

    return Rule(name, f"a function {signature}", convert, optional)


def number_or_function(number: Rule, signature: str) -> Rule:
    """Returns a rule for what `number` takes, or a function."""

    def convert(value: Any) -> Any:
        return value if callable(value) and not isinstance(value, type) else number.convert(value)

    return Rule(number.name, f"{number.expected} or a function {signature}", convert, number.optional)


def optimiser(name: str) -> Rule:
    """Returns a rule for an optax optimiser."""
    return instance(name, optax.GradientTransformation, "an optax optimiser such as optax.adam(0.1)")


def floating_type(name: str) -> Rule:
    """Returns a rule for a type of floating numbers, or `None`."""

    def convert(value: Any) -> Any:
        if isinstance(value, np.ndarray | jax.Array | numbers.Number | tuple | list | dict):
            raise TypeError
        if not jnp.issubdtype(jnp.dtype(value), jnp.floating):
            raise TypeError
        return value

    return Rule(name, "a floating type such as jnp.float16", convert, optional=True)


def text(name: str, optional: bool = False) -> Rule:
    """Returns a rule for text that is not empty."""

    def convert(value: Any) -> Any:
        if not isinstance(value, str):
            raise TypeError
        if not value:
            raise ValueError
        return value

    return Rule(name, "text", convert, optional)


def several(name: str, kind: type, expected: str) -> Rule:
    """Returns a rule for a sequence of objects of one class, as a tuple."""

    def convert(value: Any) -> Any:
        if isinstance(value, str | bytes | dict | np.ndarray | jax.Array | numbers.Number):
            raise TypeError
        found = tuple(value)
        if not all(isinstance(one, kind) for one in found):
            raise TypeError
        return found

    return Rule(name, expected, convert)


def path(name: str, optional: bool = False) -> Rule:
    """Makes a rule for the path of a file. An integer would be taken for a file that is open, `True` for the output."""

    def convert(value: Any) -> Any:
        text = os.fspath(value)
        if not isinstance(text, str):
            raise TypeError
        if not text or "\0" in text:
            raise ValueError
        return text

    return Rule(name, "the path of a file (str or os.PathLike)", convert, optional)


def random_key(name: str = "key") -> Rule:
    """Makes a rule for one random key. A key of the old style, two `uint32`, becomes a typed one."""

    def convert(value: Any) -> Any:
        if not isinstance(value, jax.Array):
            raise TypeError
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            if value.shape:
                raise ValueError
            return value
        if value.dtype != jnp.uint32 or value.shape != jax.random.PRNGKey(0).shape:
            raise TypeError
        return jax.random.wrap_key_data(value)

    return Rule(name, "one random key such as jax.random.key(0)", convert)
