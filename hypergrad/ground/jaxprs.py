"""Walks through jaxprs."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

Mark = TypeVar("Mark")
CALLBACKS = frozenset(("pure_callback", "io_callback", "debug_callback"))  # functions of Python in a program


def walked(
    jaxpr: Jaxpr, inputs: Sequence[Mark], nothing: Mark, through: Callable[[JaxprEqn, list[Mark]], Sequence[Mark]]
) -> list[Mark]:
    """Returns the marks of the outputs, from those of the inputs; `through` takes marks through one equation.

    Constants have the mark `nothing`, and so has what is computed from such numbers alone.
    """
    known = dict(zip(jaxpr.invars, inputs, strict=True))
    mark = lambda atom: nothing if isinstance(atom, Literal) else known.get(atom, nothing)
    for equation in jaxpr.eqns:
        given = [mark(atom) for atom in equation.invars]
        if any(one != nothing for one in given):
            known |= zip(equation.outvars, through(equation, given), strict=True)
    return [mark(atom) for atom in jaxpr.outvars]


def is_floating(atom: Any) -> bool:
    """Returns whether a number in a jaxpr is a floating one."""
    return jnp.issubdtype(atom.aval.dtype, jnp.inexact)


def held(equation: JaxprEqn) -> list[Any]:
    """Returns the jaxprs that an equation holds, such as the body of a loop, closed ones among them."""
    is_jaxpr = lambda value: isinstance(value, ClosedJaxpr | Jaxpr)
    return list(filter(is_jaxpr, jax.tree.leaves(list(equation.params.values()), is_leaf=is_jaxpr)))
