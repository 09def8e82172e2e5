"""Forward derivatives of functions, also of those that JAX differentiates in reverse alone."""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr
from jaxtyping import Array, PyTree


def linearize(function: Callable[..., PyTree], *primals: PyTree, has_aux: bool = False) -> tuple[Any, ...]:
    """Returns what `jax.linearize` returns: the value, the map from tangents to tangents, and what is auxiliary.

    A `jax.custom_vjp` inside has no forward derivative: there the map is the transpose of the pullback. The rule of the
    `custom_vjp` must then be differentiable, and linear in its cotangent.
    """
    if not reverse_only(function, *primals):
        return jax.linearize(function, *primals, has_aux=has_aux)  # type: ignore[call-overload]
    value, pullback, *aux = jax.vjp(function, *primals, has_aux=has_aux)  # type: ignore[call-overload]
    push = jax.linear_transpose(pullback, value)
    return value, lambda *tangents: push(tangents)[0], *aux


def jvp(function: Callable[[PyTree], Array], primal: PyTree, tangent: PyTree) -> Array:
    """Returns the derivative of `function` along `tangent`, also where JAX has no forward mode; see `linearize`."""
    if not reverse_only(function, primal):
        return jax.jvp(function, (primal,), (tangent,))[1]
    return linearize(function, primal)[1](tangent)


def reverse_only(function: Callable[..., PyTree], *arguments: PyTree) -> bool:
    """Returns `True` if `function` meets a `jax.custom_vjp`. Nothing is computed."""
    return _meets_custom_vjp(jax.make_jaxpr(function)(*arguments).jaxpr)


def _meets_custom_vjp(jaxpr: Jaxpr) -> bool:
    for equation in jaxpr.eqns:
        if equation.primitive.name.startswith("custom_vjp"):
            return True
        inside = jax.tree.leaves(list(equation.params.values()), is_leaf=lambda value: isinstance(value, ClosedJaxpr))
        jaxprs = [value.jaxpr if isinstance(value, ClosedJaxpr) else value for value in inside]
        if any(_meets_custom_vjp(value) for value in jaxprs if isinstance(value, Jaxpr)):
            return True
    return False


REMEDY = (
    "a loop of unknown length, such as lax.while_loop, has to become a lax.scan, or a fori_loop with a known number of "
    "steps, and a callback needs a jax.custom_jvp"
)


def refuse_not_differentiable(name: str, function: Callable[..., Array], *arguments: PyTree) -> None:
    """Raises `ValueError` naming a real function that JAX cannot differentiate in reverse mode. Nothing is computed."""
    try:
        jax.eval_shape(jax.grad(function, argnums=tuple(range(len(arguments)))), *arguments)
    except Exception as error:
        raise ValueError(f"{name} cannot be differentiated: {error} ({REMEDY})") from error
