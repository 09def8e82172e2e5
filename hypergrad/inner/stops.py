"""Derivatives of the inner loss or of a training step that are cut, or that are not there."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import optax
from jaxtyping import PyTree

from ..ground.hparams import as_hparams
from ..ground.shapes import remembered
from ..ground.stops import cut_by_stops, holds_stops
from ..ground.tree import PartitionedModel, join, split, with_values
from ..problem import BilevelProblem, inner_objective, traced_outer_value
from .state import InnerState

TRAINING = "the derivative of a training step"
Slice = tuple[Callable[[PyTree], PyTree], PyTree]  # a function, and the point at which it is differentiated


def warn_of_stopped_loss(problem: BilevelProblem, partitioned: PartitionedModel, hparams: PyTree) -> bool:
    """Warns where a `stop_gradient` cuts the derivative of the inner gradient; returns whether it does.

    *Cost*: none where no stop is found, else that derivative along one direction, with the stop and without.
    """
    return _warn("inner_loss", TRAINING, _gradient, problem, partitioned, hparams)


def warn_of_stopped_outer(problem: BilevelProblem, partitioned: PartitionedModel, hparams: PyTree) -> None:
    """Warns where a `stop_gradient` cuts the derivative of the outer loss. *Cost*: as `warn_of_stopped_loss`."""
    _warn("outer_loss", "its derivative", _outer, problem, partitioned, hparams)


def warn_of_stopped_step(
    inner: Any,
    problem: BilevelProblem,
    hparams: PyTree,
    state: InnerState,
    *,
    optimiser: bool = True,
    backward: bool = False,
) -> None:
    """Warns where a `stop_gradient` cuts the derivative of a training step, in the inner loss or the `optimiser`.

    Warns of such a stop in the outer loss too. **Raises** `ValueError` for a step with a stop that is to be taken
    `backward` and cannot be, before anything is compiled.
    """
    hparams = as_hparams(hparams)
    warn_of_stopped_outer(problem, state.judged, hparams)
    step = inner, problem, hparams, state  # traced already, as the gradient alone is not
    if not remembered(_holds_stops, _step, *step):
        return
    if backward:
        with naming_solver(inner):
            remembered(_take_back, *step)
    if not warn_of_stopped_loss(problem, state.partitioned, hparams) and optimiser:
        has_state = state.partitioned.layer_state is not None
        _warn(f"the state of layers, or {inner.name}," if has_state else inner.name, TRAINING, _two_steps, *step)


@contextlib.contextmanager
def naming_solver(inner: Any) -> Iterator[None]:
    """Names the inner solver where JAX says that it cannot be differentiated."""
    try:
        yield
    except ValueError as error:
        if "Reverse-mode differentiation does not work" not in str(error):
            raise
        raise ValueError(
            f"{inner.name} holds a loop of unknown length, such as a line search, which JAX cannot differentiate in "
            "reverse mode: use an optimiser without one, JaxoptSolver(jaxopt.LBFGS, linesearch='backtracking'), or an "
            "estimator that does not need it, such as Implicit or Forward"
        ) from error


def _warn(name: str, what: str, make: Callable[..., Slice], *arguments: PyTree) -> bool:
    if not remembered(_holds_stops, make, *arguments):
        return False
    with jax.ensure_compile_time_eval():
        function, point = make(*with_values(arguments))
        if not cut_by_stops(function, point, optax.tree.random_like(jax.random.key(0), point)):
            return False
    warnings.warn(
        f"{name} holds a stop_gradient that cuts {what}: hypergradients take what is stopped as constant, and where it "
        "is not are not the derivative of the value; leave it out, freeze weights by BilevelProblem(trainable=...), "
        "give what is stopped as data, or use ES, which needs no derivative",
        UserWarning,
        stacklevel=4,
    )
    return True


def _holds_stops(make: Callable[..., Slice], *arguments: PyTree) -> bool:
    function, point = make(*arguments)
    return holds_stops(jax.make_jaxpr(function)(point))


def _gradient(problem: BilevelProblem, partitioned: PartitionedModel, hparams: PyTree) -> Slice:
    gradient = jax.grad(inner_objective(problem, partitioned, jax.random.key(0)))
    return lambda point: gradient(*point), (partitioned.arrays, hparams)


def _outer(problem: BilevelProblem, partitioned: PartitionedModel, hparams: PyTree) -> Slice:
    model = lambda arrays: partitioned.with_arrays(arrays).model
    value = lambda point: traced_outer_value(problem, model(point[0]), point[1], jax.random.key(0))
    return value, (partitioned.arrays, hparams)


def _step(inner: Any, problem: BilevelProblem, hparams: PyTree, state: InnerState) -> Slice:
    inexact, rest = split(state)
    step = lambda inexact, hparams: split(inner.stepped(problem, hparams, join(inexact, rest)))[0]
    return lambda point: step(*point), (inexact, hparams)


def _take_back(*step: Any) -> None:
    """Traces the way back through a step."""
    function, point = _step(*step)

    def back(point: PyTree) -> PyTree:
        end, pullback = jax.vjp(function, point)
        return pullback(end)

    jax.eval_shape(back, point)


def _two_steps(inner: Any, problem: BilevelProblem, hparams: PyTree, state: InnerState) -> Slice:
    """Returns two steps up to what is judged of them: a number that the optimiser only compares may be stopped."""
    inexact, rest = split(state)
    step = lambda state, hparams: inner.stepped(problem, hparams, state)
    twice = lambda inexact, hparams: split(step(step(join(inexact, rest), hparams), hparams).judged)[0]
    return lambda point: twice(*point), (inexact, hparams)
