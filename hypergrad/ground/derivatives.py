"""Forward derivatives of functions, also of those that JAX differentiates in reverse alone."""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun
from jaxtyping import Array, PyTree

from .jaxprs import held
from .tree import pairing


def linearize(function: Callable[..., PyTree], *primals: PyTree, has_aux: bool = False) -> tuple[Any, ...]:
    """Returns what `jax.linearize` returns: the value, the map from tangents to tangents, and what is auxiliary.

    A `jax.custom_vjp` inside has no forward derivative: there the map is the transpose of the pullback. The rule of the
    `custom_vjp` must then be differentiable, and linear in its cotangent: else the map raises `ValueError`.
    """
    closed, function = _replayed(function, *primals)
    if not meets_custom_vjp(closed):
        return jax.linearize(function, *primals, has_aux=has_aux)  # type: ignore[call-overload]
    value, pullback, *aux = jax.vjp(function, *primals, has_aux=has_aux)  # type: ignore[call-overload]
    push = jax.linear_transpose(pullback, value)

    def along(*tangents: PyTree) -> PyTree:
        try:
            return push(tangents)[0]
        except NotImplementedError as error:
            raise ValueError(
                f"a jax.custom_vjp whose rule is not linear in the cotangent has no forward derivative: {error}; write "
                "it as a jax.custom_jvp, or use Reverse"
            ) from error

    return value, along, *aux


def jvp(function: Callable[[PyTree], Array], primal: PyTree, tangent: PyTree) -> Array:
    """Returns the derivative of a scalar `function` along `tangent`, where JAX has no forward mode by its gradient."""
    closed, function = _replayed(function, primal)
    if not meets_custom_vjp(closed):
        return jax.jvp(function, (primal,), (tangent,))[1]
    return pairing(jax.grad(function)(primal), tangent)


def once(function: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """Returns the function of arrays, whose Python code runs once for arguments of one form, derivatives included.

    It is for use within one trace, and forgotten with it: what the function reads besides its arguments is not traced
    anew.
    """
    return jax.jit(lambda *arguments: function(*arguments), inline=True)


def _replayed(function: Callable[..., PyTree], *primals: PyTree) -> tuple[ClosedJaxpr, Callable[..., PyTree]]:
    """Returns the jaxpr of a function, and the function as that jaxpr: its Python code has run for the last time."""
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*primals)
    structure, leaves = jax.tree.structure(shapes), jaxpr_as_fun(closed)
    return closed, lambda *primals: jax.tree.unflatten(structure, leaves(*jax.tree.leaves(primals)))


def meets_custom_vjp(jaxpr: ClosedJaxpr | Jaxpr) -> bool:
    """Returns whether a `jax.custom_vjp` is anywhere in a jaxpr, so that it has no forward derivative in JAX."""
    is_one = lambda equation: equation.primitive.name.startswith("custom_vjp")
    return any(is_one(equation) or any(map(meets_custom_vjp, held(equation))) for equation in jaxpr.eqns)


REMEDY = (
    "a loop of unknown length, such as lax.while_loop, has to become a lax.scan, or a fori_loop with a known number of "
    "steps, and a callback needs a jax.custom_jvp"
)
UNTRACED = (
    "while JAX traces, numbers have no values that if, float() or NumPy could take: use jnp.where and jax.numpy, or "
    "compute from what is no hyperparameter; make a schedule of optax's of fixed numbers, and multiply it by the "
    "learned rate"
)


def remedy(error: Exception) -> str:
    """Returns the remedy for what JAX raises when it traces or differentiates somebody's function, as a last clause."""
    if isinstance(error, jax.errors.ConcretizationTypeError | jax.errors.TracerArrayConversionError):
        return f"; {UNTRACED}"
    if any(word in str(error) for word in ("Reverse-mode", "allback", "custom_jvp", "custom_vjp")):
        return f" ({REMEDY})"
    return ""


def refuse_not_differentiable(name: str, function: Callable[..., Array], *arguments: PyTree) -> None:
    """Raises `ValueError` naming a real function that JAX cannot differentiate in reverse mode. Nothing is computed."""
    try:
        jax.eval_shape(jax.grad(function, argnums=tuple(range(len(arguments)))), *arguments)
    except Exception as error:
        raise ValueError(f"{name} cannot be differentiated: {error}{remedy(error)}") from error
