"""Hyperparameters that can change nothing, or by no derivative, refused by name."""

import functools
import operator
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, jaxpr_as_fun
from jaxtyping import Array, PyTree

from .dependence import used
from .derivatives import meets_custom_vjp
from .jaxprs import is_floating, walked
from .tree import named_leaves

UNUSED = "enters neither training nor the outer loss"
# Primitives whose results move with every inexact argument, without an exception.
NAMES = """
    add add_any broadcast_in_dim concatenate conv_general_dilated convert_element_type copy cos cumsum div dot_general
    dynamic_slice erf exp expm1 gather integer_pow log log1p logistic max min mul neg pad pow reduce_max reduce_sum
    reshape rsqrt select_n sin slice sqrt square squeeze sub tanh transpose
"""
SMOOTH = frozenset(NAMES.split())


def refuse_unused(
    function: Callable[[PyTree], PyTree], hparams: PyTree, differentiable: bool = True, reason: str = UNUSED
) -> None:
    """Raises `ValueError` naming the hyperparameters on which no output of `function` depends; nothing is computed.

    Where they are to be learned by derivatives (`differentiable`) their changes have to reach an output.
    """
    closed = jax.make_jaxpr(function)(hparams)
    paths = [path for path, _ in named_leaves(hparams, "hparams")]
    if unused := [path for path, enters in zip(paths, used(closed.jaxpr), strict=True) if not enters]:
        raise ValueError(f"{', '.join(unused)} {reason}: its hypergradient would be 0 for ever; use it or leave it out")
    if not differentiable or (moved := moves(closed)) is None:
        return
    if flat := [path for path, moving in zip(paths, moved, strict=True) if not moving]:
        raise ValueError(
            f"{', '.join(flat)} acts through comparisons, rounding, integers or stop_gradient alone: its hypergradient "
            "would be 0 for ever; make its effect smooth, or use ES, which needs no derivative"
        )


def refuse_flat_loss(name: str, closed: ClosedJaxpr) -> None:
    """Raises `ValueError` naming a loss, traced as a function of weights, whose derivative depends on none of them."""
    reads, moved = any(used(closed.jaxpr)), moves(closed, some=True)
    if reads and moved is not None and not any(moved):
        raise ValueError(
            f"{name} depends on the weights through comparisons, rounding, integers or stop_gradient alone, as a count "
            "of errors does: its hypergradient would be 0 for ever; use a smooth loss, or ES, which needs no derivative"
        )


def moves(closed: ClosedJaxpr, some: bool = False) -> list[bool] | None:
    """Returns for every input whether its change changes any output. Nothing is computed.

    An input that enters through comparisons, rounding, integers or `stop_gradient` alone does not. Where paths of
    smooth primitives lead from all inputs to outputs, or from one if `some` is true, that is the answer; else what JAX
    differentiates tells. Returns `None` where it then cannot in forward mode, because of a `custom_vjp`.
    """
    inputs = range(len(closed.jaxpr.invars))
    reached = functools.reduce(operator.or_, _flow(closed.jaxpr, [1 << number for number in inputs]), 0)
    moved = [bool(reached >> number & 1) for number in inputs]
    if any(moved) if some else all(moved):
        return moved
    if meets_custom_vjp(closed):
        return None
    arguments = [var.aval for var in closed.jaxpr.invars]
    push = jax.make_jaxpr(lambda primals, tangents: jax.linearize(_inexact(closed), *primals)[1](*tangents))
    return used(push(arguments, arguments).jaxpr)[len(inputs) :]


def _inexact(closed: ClosedJaxpr) -> Callable[..., list[Array]]:
    """Returns the function of a jaxpr without its outputs that are not floating."""
    keep = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.inexact)
    return lambda *arguments: list(filter(keep, jaxpr_as_fun(closed)(*arguments)))


def _flow(jaxpr: Jaxpr, inputs: Sequence[int]) -> list[int]:
    """Returns for every output the bits of the inputs from which a path of smooth primitives leads there."""
    found = zip(jaxpr.outvars, walked(jaxpr, inputs, 0, _through), strict=True)
    return [bits if is_floating(atom) else 0 for atom, bits in found]


def _through(equation: JaxprEqn, given: Sequence[int]) -> Sequence[int]:
    """Returns the bits of the results of one equation."""
    name, params = equation.primitive.name, equation.params
    if name in ("jit", "pjit"):
        return _flow(params["jaxpr"].jaxpr, given)
    if name == "scan":
        carried = _carried(equation)
        while True:
            found = _flow(params["jaxpr"].jaxpr, given)
            more = [a | b for a, b in zip(given[carried], found, strict=False)]
            if more == list(given[carried]):
                return found
            given = [*given[: carried.start], *more, *given[carried.stop :]]
    reached = functools.reduce(operator.or_, given) if name in SMOOTH else 0
    return [reached if is_floating(var) else 0 for var in equation.outvars]


def _carried(scan: JaxprEqn) -> slice:
    """Returns which operands of a scan it carries on, from shapes, because JAX 0.11 names its parameters otherwise.

    Operands are constants, what is carried and sequences; results are what is carried and sequences. A sequence has
    one axis more outside of the body than inside.
    """
    body = scan.params["jaxpr"].jaxpr
    same = lambda outside, inside: sum(a.aval.ndim == b.aval.ndim for a, b in zip(outside, inside, strict=True))
    stop = same(scan.invars, body.invars)
    return slice(stop - same(scan.outvars, body.outvars), stop)
