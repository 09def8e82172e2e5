"""Arguments checked by a table before anything is compiled: one rule a row, every message names the argument.

@checked(KEY, integer("num", least=1))
def bootstrap_weights(key, num_rows, num): ...
"""

import dataclasses
import functools
import inspect
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

Function = TypeVar("Function", bound=Callable[..., Any])
NUMBERS = (jnp.integer, jnp.floating)
INTEGERS = (jnp.integer,)
ANY = (jnp.integer, jnp.floating, jnp.bool_)
LARGEST = 2**31 - 1  # indices are int32


@dataclasses.dataclass(frozen=True)
class Rule:
    """A check of one argument: `convert` returns the value in the form that is used, or raises without a message.

    **Raises** `TypeError` or `ValueError`: "`name` must be `expected`, got ...".
    """

    name: str
    expected: str
    convert: Callable[[Any], Any]
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


def shown(value: Any) -> str:
    """Returns a value on one line of at most 80 characters, arrays by type and shape."""
    if isinstance(value, np.ndarray | jax.Array):
        kind = f"an array {value.dtype}{list(value.shape)}"
        is_bad = concrete(value) and jnp.issubdtype(value.dtype, jnp.floating) and not np.all(np.isfinite(value))
        return f"{kind} with entries that are NaN or infinite" if is_bad else kind
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def integer(name: str, least: int = 1, most: int = LARGEST, optional: bool = False) -> Rule:
    """Returns a rule for an integer that is known before compiling."""

    def convert(value: Any) -> int:
        number = _number(value)
        if not (math.isfinite(number) and number == int(number) and least <= number <= most):
            raise ValueError
        return int(number)

    expected = f"an integer that is at least {least}" + (f" and at most {most}" if most != LARGEST else "")
    return Rule(name, expected, convert, optional)


def real(
    name: str,
    above: float = -math.inf,
    most: float = math.inf,
    below: float = math.inf,
    infinite: bool = False,
    optional: bool = False,
) -> Rule:
    """Returns a rule for a number; a tracer passes."""

    def convert(value: Any) -> Any:
        if isinstance(value, jax.core.Tracer) and value.shape == ():
            return value
        number = float(_number(value))
        if math.isnan(number) or not (above < number <= most and number < below):
            raise ValueError
        if not infinite and math.isinf(number):
            raise ValueError
        return number

    limits = {"above": above, "at most": most, "below": below}
    given = " and ".join(f"{word} {limit:g}" for word, limit in limits.items() if math.isfinite(limit))
    return Rule(name, given or "a finite number", convert, optional)


def _number(value: Any) -> Any:
    """Returns a number, also out of an array without axes. Truth values and text are no numbers."""
    if isinstance(value, jax.core.Tracer):
        raise TypeError
    if isinstance(value, np.ndarray | jax.Array) and value.ndim == 0 and not _is_key(value):
        value = np.asarray(value)[()]
    if isinstance(value, np.generic) and jnp.issubdtype(value.dtype, jnp.floating):
        value = float(value)
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        raise TypeError
    return value


def _is_key(value: Any) -> bool:
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def array(
    name: str,
    *,
    finite: bool = True,
    kinds: tuple[Any, ...] = NUMBERS,
    host: bool = False,
    optional: bool = False,
) -> Rule:
    """Returns a rule for an array of numbers of some kinds, or what becomes one; with `host` it stays with NumPy."""

    def convert(value: Any) -> Any:
        found = _as_array(value, np if host else jnp)
        if not any(jnp.issubdtype(found.dtype, kind) for kind in kinds):
            raise TypeError
        if finite and concrete(found) and not np.all(np.isfinite(np.asarray(found))):
            raise ValueError
        if kinds == NUMBERS and jnp.issubdtype(found.dtype, jnp.integer):
            return found.astype(float)  # squares of small integers would overflow
        return found

    what = "integers" if kinds == INTEGERS else "finite numbers" if finite else "numbers"
    expected = f"an array of {what}"
    return Rule(name, expected, convert, optional)


def mask(name: str, *, host: bool = False, optional: bool = False) -> Rule:
    """Returns a rule for an array of truth values; zeros and ones will do."""

    def convert(value: Any) -> Any:
        found = _as_array(value, np if host else jnp)
        if not any(jnp.issubdtype(found.dtype, kind) for kind in ANY):
            raise TypeError
        if concrete(found) and not np.all((np.asarray(found) == 0) | (np.asarray(found) == 1)):
            raise ValueError
        return found.astype(bool)

    return Rule(name, "an array of truth values", convert, optional)


def factor(name: str = "factor", optional: bool = False) -> Rule:
    """Returns a rule for the lower factor of a covariance."""
    numbers_of = array(name)

    def convert(value: Any) -> Any:
        found = numbers_of.convert(value)
        if found.ndim == 2 and found.shape[0] == found.shape[1] and concrete(found):
            values = np.asarray(found)
            if np.any(np.triu(values, 1)) or not np.all(np.diag(values) > 0):
                raise ValueError
        return found

    return Rule(name, "the lower factor of a covariance, as cholesky returns it", convert, optional)


def _as_array(value: Any, library: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind not in "biuf" and value.dtype != jnp.bfloat16:
        raise TypeError
    if not isinstance(value, np.ndarray | np.generic | jax.Array | list | tuple | bool | int | float) or _is_key(value):
        raise TypeError
    found = library.asarray(value)
    if found.dtype.kind in "OUSMm":
        raise TypeError
    return found


def instance(name: str, kinds: Any, expected: str, optional: bool = False) -> Rule:
    """Returns a rule for an object of some class."""

    def convert(value: Any) -> Any:
        if not isinstance(value, kinds):
            raise TypeError
        return value

    return Rule(name, expected, convert, optional)


def several(name: str, kind: type, expected: str, optional: bool = False) -> Rule:
    """Returns a rule for a sequence of objects of one class, at least one."""

    def convert(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, Sequence) or not all(isinstance(one, kind) for one in value):
            raise TypeError
        if not value:
            raise ValueError
        return tuple(value)

    return Rule(name, expected, convert, optional)


def function(name: str, signature: str, optional: bool = False) -> Rule:
    """Returns a rule for a function, whose `signature` is said in words."""

    def convert(value: Any) -> Any:
        if not callable(value):
            raise TypeError
        return value

    return Rule(name, f"a function {signature}", convert, optional)


def boolean(name: str) -> Rule:
    """Returns a rule for `True` or `False`."""
    return instance(name, bool | np.bool_, "True or False")


def _as_key(value: Any) -> jax.Array:
    if not isinstance(value, jax.Array):
        raise TypeError
    if _is_key(value) and value.shape == ():
        return value
    if value.dtype != jnp.uint32 or value.shape != jax.random.PRNGKey(0).shape:
        raise TypeError
    return jax.random.wrap_key_data(value)


KEY = Rule("key", "one random key such as jax.random.key(0)", _as_key)


def has_shape(value: Any, shape: tuple[int | None, ...], name: str, other: str | None = None) -> None:
    """Checks the shape of an array, that of the argument `other` gives; `None` in `shape` stands for any length."""
    found = np.shape(value)
    if len(found) != len(shape) or any(want not in (None, have) for have, want in zip(found, shape, strict=True)):
        wanted = ", ".join("any" if want is None else str(want) for want in shape)
        fit = "" if other is None else f" to fit {other}"
        raise ValueError(f"{name} must have shape ({wanted}){fit}, got {found}")


def call(name: str, function: Callable[..., Any], arguments: str, *args: Any) -> Any:
    """Calls a function that the user has given as the argument `name`, on what comes from other `arguments`.

    **Raises** `ValueError` naming both, with the reason, where it fails.
    """
    try:
        return function(*args)
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"{name} fails on {arguments}: {type(error).__name__}: {error}") from error


def concrete(value: Any) -> bool:
    """Returns whether the numbers of an array are known: inside a transformation they are not."""
    return not isinstance(value, jax.core.Tracer)


def num_replicas(tree: PyTree, name: str = "replicas") -> int:
    """Returns the length of the leading axis that all arrays of `tree` share.

    **Raises** `ValueError` naming the paths where there is none or they differ.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    for path, leaf in leaves:
        if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "OUSMm":
            raise TypeError(f"{name}{jax.tree_util.keystr(path)} has dtype {leaf.dtype}; arrays must hold numbers")
    lengths = {
        name + jax.tree_util.keystr(path): np.shape(leaf)[:1]
        for path, leaf in leaves
        if isinstance(leaf, np.ndarray | jax.Array)
    }
    if not lengths:
        raise ValueError(f"{name} holds no arrays, so no axis of replicas")
    if len(set(lengths.values())) != 1 or () in lengths.values():
        raise ValueError(f"all arrays of {name} must have the same leading axis of replicas, got {lengths}")
    (number,) = next(iter(lengths.values()))
    if number == 0:
        raise ValueError(f"{name} holds no replica: its leading axis has length 0")
    return number
