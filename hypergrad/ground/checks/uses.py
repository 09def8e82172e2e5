"""Further uses of rules: for the fields of a class, and to explain a call that fails."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax

from ensembles.ground.rule import Function, Rule


def explained(explain: Callable[..., Any]) -> Callable[[Function], Function]:
    """Calls `explain` with the arguments of a call that fails while it is traced.

    What it raises by name takes the place of the call's own error.
    """

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return function(*args, **kwargs)
            except (TypeError, ValueError, LookupError, AttributeError, AssertionError, RuntimeError) as error:
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


def refuse_traced(instead: str, **arguments: Any) -> None:
    """Raises `TypeError` naming an argument that holds a traced array, of a function that works on the host.

    `instead` is what can be called inside jit, grad and vmap.
    """
    for name, value in arguments.items():
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value)):
            raise TypeError(
                f"{name} holds a traced array: inside jit, grad or vmap, where nothing can be stopped, saved or shown, "
                f"call {instead}"
            )
