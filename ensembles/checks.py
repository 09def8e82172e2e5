"""Arguments checked by a table before anything is compiled: one rule a row, every message names the argument.

@checked(KEY, integer("num", least=1))
def bootstrap_weights(key, num_rows, num): ...
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .ground import kinds
from .ground.axes import is_deleted, is_known, leading_axis, num_lost, refuse_no_numbers
from .ground.axes import is_key as is_key
from .ground.kinds import LARGEST as LARGEST
from .ground.kinds import boolean as boolean
from .ground.kinds import choice as choice
from .ground.kinds import function as function
from .ground.kinds import instance as instance
from .ground.kinds import integer as integer
from .ground.kinds import several as several
from .ground.leaves import named_leaves
from .ground.rule import BeyondError
from .ground.rule import Rule as Rule
from .ground.rule import checked as checked
from .ground.rule import shown as shown

KEY = kinds.random_key()
NUMBERS = (jnp.integer, jnp.floating)
INTEGERS = (jnp.integer,)
ANY = (jnp.integer, jnp.floating, jnp.bool_)


def real(name: str, **limits: Any) -> Rule:
    """Returns a rule for a number, which becomes a `float`; a tracer passes."""
    rule = kinds.real(name, **limits)

    def convert(value: Any) -> Any:
        found = rule.convert(value)
        return float(found) if concrete(found) else found

    return dataclasses.replace(rule, convert=convert)


def array(
    name: str,
    *,
    finite: bool = True,
    kinds: tuple[Any, ...] = NUMBERS,
    host: bool | None = False,
    optional: bool = False,
) -> Rule:
    """Returns a rule for an array of numbers of some kinds, or what becomes one.

    With `host` it stays with NumPy; with `None` what is no array of JAX does.
    """

    def convert(value: Any) -> Any:
        found = _as_array(value, _is_foreign(value) if host is None else host, kinds == NUMBERS)
        if not any(jnp.issubdtype(found.dtype, kind) for kind in kinds):
            raise TypeError
        if finite and concrete(found) and not np.all(np.isfinite(np.asarray(found))):
            raise ValueError
        return found

    what = "integers" if kinds == INTEGERS else "finite numbers" if finite else "numbers"
    expected = f"an array of {what}"
    return Rule(name, expected, convert, optional)


def mask(name: str, *, host: bool = False, optional: bool = False) -> Rule:
    """Returns a rule for an array of truth values; zeros and ones will do."""

    def convert(value: Any) -> Any:
        found = _as_array(value, host)
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


def _as_array(value: Any, host: bool, floating: bool = False) -> Any:
    """Returns an array of NumPy for the `host`, else of JAX; integers as `floating` numbers where that is wanted."""
    is_unknown = isinstance(value, np.ndarray | np.generic) and not is_known(value.dtype)
    if is_unknown or isinstance(value, np.ma.MaskedArray):
        raise TypeError
    if is_deleted(value):
        raise ValueError
    if not isinstance(value, np.ndarray | np.generic | jax.Array | list | tuple | bool | int | float) or is_key(value):
        raise TypeError
    if _is_foreign(value):
        value = np.asarray(value)
    found = np.asarray(value) if host else value if isinstance(value, np.ndarray) else jnp.asarray(value)
    if found.dtype.kind in "OUSMm":
        raise TypeError
    if floating and jnp.issubdtype(found.dtype, jnp.integer):
        found = found.astype(float)  # squares of small integers would overflow, and JAX wraps large ones
    if host or isinstance(found, jax.Array):
        return found
    if jnp.issubdtype(found.dtype, jnp.integer) and num_lost(found):
        raise BeyondError(f"within the range of {jax.dtypes.canonicalize_dtype(found.dtype)}")
    return jnp.asarray(found)


def _is_foreign(value: Any) -> bool:
    """Returns whether a value is an array of NumPy, or a list without an array of JAX."""
    is_array = isinstance(value, np.ndarray | np.generic | list | tuple)
    return is_array and not any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(value))


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


def refuse_unknown(tree: PyTree, name: str) -> None:
    """Raises `TypeError` naming the path of an array that holds no numbers of JAX, or hides some."""
    for path, leaf in named_leaves(tree, name):
        refuse_no_numbers(path, leaf)


def refuse_complex(weights: PyTree, name: str) -> None:
    """Raises `TypeError` naming the path of a complex array among weights that have a distribution."""
    for path, leaf in named_leaves(weights, name):
        if jnp.iscomplexobj(leaf):
            raise TypeError(f"{path} is complex; only real weights have a distribution")


def num_replicas(tree: PyTree, name: str = "replicas") -> int:
    """Returns the length of the leading axis that all arrays of `tree` share.

    **Raises** `ValueError` naming the paths where there is none or they differ.
    """
    return leading_axis(named_leaves(tree, name), name, "replica")
