"""Derivatives that `jax.lax.stop_gradient` cuts, found in a jaxpr and measured."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, jaxpr_as_fun
from jaxtyping import PyTree

from .derivatives import linearize
from .jaxprs import CALLBACKS, held, is_floating, walked
from .tree import epsilon
from .units import norm

NAME = "stop_gradient"
CHANGED = 1e-3  # of a derivative, from which a stop counts
FLAT = CALLBACKS | {"reduce_max", "reduce_min", "sign", "floor", "ceil", "round"}  # results that may be stopped
FREE, MOVED, STOPPED = range(3)  # of numbers that depend on no input, on one, on one that was stopped


def holds_stops(closed: ClosedJaxpr) -> bool:
    """Returns whether an output depends on an input through a stop. Nothing is computed.

    Stops of a maximum, as in a softmax, those before a callback, which has no derivative, and those inside of a linear
    solve do not count: they change no derivative.
    """
    return STOPPED in _marks(closed.jaxpr, [MOVED] * len(closed.jaxpr.invars))


def cut_by_stops(function: Callable[[PyTree], PyTree], argument: PyTree, direction: PyTree) -> bool:
    """Returns whether a derivative along `direction` is another one without the stops, and there is one without."""
    closed = jax.make_jaxpr(function)(argument)
    given, along = jax.tree.leaves(argument), jax.tree.leaves(direction)
    slope = lambda jaxpr: jax.jit(lambda *point: linearize(jaxpr_as_fun(jaxpr), *point)[1](*along))(*given)
    cut = slope(closed)
    try:
        whole = slope(closed.replace(jaxpr=_without_stops(closed.jaxpr)))
    except ValueError:  # of a callback that takes what another stop leaves
        return False
    return bool(norm(optax.tree.sub(whole, cut)) > max(CHANGED, 30 * epsilon(along)) * norm(whole))


def _marks(jaxpr: Jaxpr, inputs: Sequence[int]) -> list[int]:
    return walked(jaxpr, inputs, FREE, _through)


def _through(equation: JaxprEqn, given: Sequence[int]) -> list[int]:
    """Returns the marks of the results of one equation."""
    name, most = equation.primitive.name, max(given)
    floating = list(map(is_floating, equation.outvars))
    if name in FLAT:
        most = FREE
    elif name == NAME:
        most = STOPPED
    elif name == "custom_linear_solve":
        most = MOVED
    else:
        for inside in (getattr(jaxpr, "jaxpr", jaxpr) for jaxpr in held(equation)):
            entering = given[-len(inside.invars) :] if inside.invars else []
            same = len(entering) == len(inside.invars)
            found = _marks(inside, entering if same else [most] * len(inside.invars))
            most = max(most, *found, FREE)
            if same and name in ("jit", "pjit"):
                return [each if inexact else FREE for each, inexact in zip(found, floating, strict=True)]
    return [most if inexact else FREE for inexact in floating]


def _without_stops(jaxpr: Jaxpr) -> Jaxpr:
    def opened(value: Any) -> Any:
        if isinstance(value, ClosedJaxpr):
            return value.replace(jaxpr=_without_stops(value.jaxpr))
        if isinstance(value, Jaxpr):
            return _without_stops(value)
        return type(value)(map(opened, value)) if type(value) in (tuple, list) else value

    equations = [
        equation.replace(primitive=jax.lax.copy_p, params={})
        if equation.primitive.name == NAME
        else equation.replace(params={name: opened(value) for name, value in equation.params.items()})
        for equation in jaxpr.eqns
    ]
    return jaxpr.replace(eqns=equations)
