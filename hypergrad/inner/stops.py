"""Warnings about derivatives of the inner loss or of a training step that are cut."""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import optax
from jaxtyping import PyTree

from ..ground.shapes import remembered
from ..ground.stops import cut_by_stops, holds_stops
from ..ground.tree import PartitionedModel, join, split, with_values
from ..problem import BilevelProblem, as_hparams, inner_objective
from .state import InnerState

Slice = tuple[Callable[[PyTree], PyTree], PyTree]  # a function, and the point at which it is differentiated


def warn_of_stopped_loss(problem: BilevelProblem, partitioned: PartitionedModel, hparams: PyTree) -> bool:
    """Warns where a `stop_gradient` cuts the derivative of the inner gradient; returns whether it does.

    *Cost*: none where no stop is found, else that derivative along one direction, with the stop and without.
    """
    return _warn("inner_loss", _gradient, problem, partitioned, hparams)


def warn_of_stopped_step(
    inner: Any, problem: BilevelProblem, hparams: PyTree, state: InnerState, *, optimiser: bool = True
) -> None:
    """Warns where a `stop_gradient` cuts the derivative of a training step, in the inner loss or the `optimiser`."""
    hparams = as_hparams(hparams)
    step = inner, problem, hparams, state  # traced already, as the gradient alone is not
    if not remembered(_holds_stops, _step, *step):
        return
    if not warn_of_stopped_loss(problem, state.partitioned, hparams) and optimiser:
        has_state = state.partitioned.layer_state is not None
        _warn(f"the state of layers, or {inner.name}," if has_state else inner.name, _two_steps, *step)


def _warn(name: str, make: Callable[..., Slice], *arguments: PyTree) -> bool:
    if not remembered(_holds_stops, make, *arguments):
        return False
    with jax.ensure_compile_time_eval():
        function, point = make(*with_values(arguments))
        if not cut_by_stops(function, point, optax.tree.random_like(jax.random.key(0), point)):
            return False
    warnings.warn(
        f"{name} holds a stop_gradient that cuts the derivative of a training step: hypergradients take what is "
        "stopped as constant and are not the derivative of the value; leave it out, give what is stopped as data, or "
        "use ES, which needs no derivative",
        UserWarning,
        stacklevel=4,
    )
    return True


def _holds_stops(make: Callable[..., Slice], *arguments: PyTree) -> bool:
    function, point = make(*arguments)
    return holds_stops(jax.make_jaxpr(function)(point))


def _gradient(problem: BilevelProblem, partitioned: PartitionedModel, hparams: PyTree) -> Slice:
    loss = inner_objective(problem, partitioned, jax.random.key(0))
    return lambda arrays: jax.grad(loss)(arrays, hparams), partitioned.arrays


def _step(inner: Any, problem: BilevelProblem, hparams: PyTree, state: InnerState) -> Slice:
    inexact, rest = split(state)
    return lambda inexact: split(inner.stepped(problem, hparams, join(inexact, rest)))[0], inexact


def _two_steps(inner: Any, problem: BilevelProblem, hparams: PyTree, state: InnerState) -> Slice:
    """Returns two steps up to what is judged of them: a number that the optimiser only compares may be stopped."""
    inexact, rest = split(state)
    step = lambda state: inner.stepped(problem, hparams, state)
    return lambda inexact: split(step(step(join(inexact, rest))).judged)[0], inexact
