"""Arguments checked by a table: one rule a row, one error that names the argument and says what would be right.

@checked(random_key("key"), integer("size", least=1))
def minibatch(key, data, size): ...

class CG(AbstractLinearSolver):
    max_steps: int = field(integer("max_steps", least=1), 20)
"""

import dataclasses
import functools
import inspect
import math
import numbers
import os
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

Function = TypeVar("Function", bound=Callable[..., Any])
LARGEST = 2**31 - 1  # counters are int32


@dataclasses.dataclass(frozen=True)
class Rule:
    """A check of one argument, which is called with a value and returns it in the form that the library uses.

    **Raises** `TypeError` or `ValueError`: "`name` must be `expected`, got ...".
    """

    name: str
    expected: str
    convert: Callable[[Any], Any]  # raises TypeError or ValueError, without a message
    optional: bool = False

    def __call__(self, value: Any) -> Any:
        """Returns the value as it is used."""
        if value is None and self.optional:
            return None
        try:
            return self.convert(value)
        except (TypeError, ValueError, OverflowError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            wanted = self.expected + (" or None" if self.optional else "")
            raise kind(f"{self.name} must be {wanted}, got {shown(value)}") from None


def checked(*rules: Rule) -> Callable[[Function], Function]:
    """Applies rules to the arguments of their names at every call. Defaults are not checked."""

    def decorate(function: Function) -> Function:
        signature, table = inspect.signature(function), {rule.name: rule for rule in rules}
        if unknown := sorted(set(table) - set(signature.parameters)):
            raise TypeError(f"{function.__qualname__} has no argument {', '.join(unknown)}")

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            for name in table.keys() & bound.arguments.keys():
                bound.arguments[name] = table[name](bound.arguments[name])
            return function(*bound.args, **bound.kwargs)

        return call  # type: ignore[return-value]

    return decorate


def field(rule: Rule, default: Any = dataclasses.MISSING) -> Any:
    """Returns a field of a class whose value is checked by a rule."""
    return eqx.field(converter=rule, **({} if default is dataclasses.MISSING else {"default": default}))


def shown(value: Any) -> str:
    """Shows a value on one line of at most 80 characters, arrays by type and shape."""
    if isinstance(value, np.ndarray | jax.Array):
        entries = "" if isinstance(value, jax.core.Tracer) or value.ndim else f" {value}"
        return f"an array {value.dtype}{list(value.shape)}{entries}"
    try:
        text = " ".join(repr(value).split())
    except Exception:  # somebody's class
        text = f"an object of type {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


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


def integer(name: str, least: int | None = None, most: int = LARGEST, optional: bool = False) -> Rule:
    """Makes a rule for a count known before compiling: an integer of any library, or a float without a fraction."""

    def convert(value: Any) -> Any:
        value = _scalar(value)
        if isinstance(value, jax.core.Tracer):
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

    limits = {"at least": least, "at most": most, "above": above, "below": below}
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
