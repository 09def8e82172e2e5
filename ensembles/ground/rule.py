"""A rule about one argument, and its use at every call of a function."""

import dataclasses
import functools
import inspect
import itertools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from .axes import is_deleted

Function = TypeVar("Function", bound=Callable[..., Any])


class BeyondError(ValueError):
    """A number above a limit that goes without saying; the message says it."""


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
        except Exception as error:  # also of somebody's class, and of a tree that holds itself
            kind = TypeError if isinstance(error, TypeError) else ValueError
            limit = f" {error}" if isinstance(error, BeyondError) else ""
            wanted = self.expected + limit + (" or None" if self.optional else "")
            raise kind(f"{self.name} must be {wanted}, got {shown(value)}") from None


BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def checked(*rules: Rule) -> Callable[[Function], Function]:
    """Applies rules to the arguments of their names at every call. Defaults are not checked."""

    def decorate(function: Function) -> Function:
        signature, table = inspect.signature(function), {rule.name: rule for rule in rules}
        if unknown := sorted(set(table) - set(signature.parameters)):
            raise TypeError(f"{function.__qualname__} has no argument {', '.join(unknown)}")

        by_position = [table.get(name) for name, one in signature.parameters.items() if one.kind in BY_POSITION]

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            rules = itertools.chain(by_position, itertools.repeat(None))  # Python itself says what is too much
            given = [value if rule is None else rule(value) for rule, value in zip(rules, args, strict=False)]
            named = {name: table[name](value) if name in table else value for name, value in kwargs.items()}
            return function(*given, **named)

        return call  # type: ignore[return-value]

    return decorate


def shown(value: Any) -> str:
    """Returns a value on one line of at most 80 characters, arrays by type and shape."""
    if isinstance(value, np.ndarray | jax.Array):
        kind = f"an array {value.dtype}{list(value.shape)}"
        if is_deleted(value):
            return f"{kind} that has been deleted"
        if isinstance(value, jax.core.Tracer) or not jnp.issubdtype(value.dtype, jnp.number):
            return kind
        bad = " with entries that are NaN or infinite" if not np.all(np.isfinite(value)) else ""
        return f"{kind} {value}" if value.ndim == 0 else kind + bad
    try:
        text = " ".join(repr(value).split())
    except Exception:  # somebody's class
        text = f"an object of type {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."
