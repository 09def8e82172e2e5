"""One rule about one argument, and the ways in which rules are applied."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import numpy as np

Function = TypeVar("Function", bound=Callable[..., Any])


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


def explained(explain: Callable[..., Any]) -> Callable[[Function], Function]:
    """Calls `explain` with the arguments of a call that fails while it is traced.

    What it raises by name takes the place of the call's own error.
    """

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return function(*args, **kwargs)
            except (TypeError, ValueError, LookupError, AttributeError, AssertionError) as error:
                try:
                    explain(*args, **kwargs)
                except (TypeError, ValueError) as better:
                    raise better from error
                except Exception:  # the arguments are too wrong to be explained
                    raise error from None
                raise

        return call  # type: ignore[return-value]

    return decorate


def field(rule: Rule, default: Any = dataclasses.MISSING) -> Any:
    """Returns a field of a class whose value is checked by a rule."""
    return eqx.field(converter=rule, **({} if default is dataclasses.MISSING else {"default": default}))


def check_fields(instance: Any, *rules: Rule) -> None:
    """Checks fields of a frozen dataclass, in its `__post_init__`."""
    for rule in rules:
        object.__setattr__(instance, rule.name, rule(getattr(instance, rule.name)))


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
