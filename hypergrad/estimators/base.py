"""The protocol of estimators."""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
from jaxtyping import Array, PyTree

from ..ground.checks import boolean, checked, explained, field, instance, random_key
from ..ground.hparams import as_floating
from ..ground.identity import refuse_different
from ..ground.outside import ReadsOutside
from ..inner import INNER, AbstractInnerSolver
from ..inner.stops import warn_of_stopped_step
from ..problem import PROBLEM, BilevelProblem, check_model, explain_derivatives
from ..stats import Estimate
from .common.accuracy import ErrorCheck, TrajectoryState, first_state
from .common.refusals import refuse_tol, refuse_warm

Step = TypeVar("Step", bound=Callable[..., Any])
CHECK = instance("check", ErrorCheck, "an ErrorCheck", optional=True)


class AbstractEstimator(ReadsOutside):
    """A rule that turns hyperparameters into a value and a hypergradient.

    `init` checks the arguments and returns the state; `step` trains and estimates. The state is a pytree of arrays with
    the same structure, shapes and types after every step, and has a property `params`, the model as it is trained now.
    The problem is passed in, never stored.
    """

    @abc.abstractmethod
    def init(self, problem: BilevelProblem, params: PyTree, hparams: PyTree) -> Any:
        """Returns the state before the first step. Raises where the arguments do not fit."""

    @abc.abstractmethod
    def step(self, problem: BilevelProblem, hparams: PyTree, state: Any, key: Array) -> tuple[Estimate, Any]:
        """Trains at `hparams` and estimates the hypergradient there; returns it with the next state."""


ESTIMATOR = instance("estimator", AbstractEstimator, "an estimator such as Reverse(inner)")


def checked_step(state: type) -> Callable[[Step], Step]:
    """Checks the arguments of an estimator's `step`, whose states are of the class `state`."""
    rules = checked(PROBLEM, instance("state", state, "the state that init or an earlier step returned"), random_key())

    def decorate(step: Step) -> Step:
        traced = explained(_explain)(step)

        @rules
        @functools.wraps(step)
        def call(self: Any, problem: BilevelProblem, hparams: PyTree, state: Any, key: Array) -> Any:
            return traced(self, problem, as_floating(hparams), state, key)

        return call  # type: ignore[return-value]

    return decorate


def _explain(estimator: AbstractEstimator, problem: BilevelProblem, hparams: PyTree, state: Any, key: Array) -> None:
    expected = eqx.filter_eval_shape(estimator.init, problem, state.params, hparams)
    refuse_different("state", expected, state, f"one of this {type(estimator).__name__} on problem at these hparams")
    explain_derivatives(problem, check_model(problem, state.params, hparams), hparams)


class AbstractTrajectoryEstimator(AbstractEstimator):
    """An estimator that carries the state of training, and how accurate it was found to be.

    With `warm_start` a step trains on from where the last one ended, else afresh from the first model. `check` says how
    often the error of the hypergradient is measured, `None` for never; where `is_exact` there is nothing to measure.
    """

    inner: AbstractInnerSolver = field(INNER)
    _: dataclasses.KW_ONLY
    warm_start: bool = field(boolean("warm_start"), False)
    check: ErrorCheck | None = field(CHECK, ErrorCheck())

    def __check_init__(self) -> None:
        refuse_tol(self.inner)

    @property
    @abc.abstractmethod
    def is_exact(self) -> bool:
        """True if the hypergradient is the derivative of the value, to rounding, whatever the problem."""

    @checked(PROBLEM)
    def init(self, problem: BilevelProblem, params: PyTree, hparams: PyTree) -> TrajectoryState:
        """Returns the state to start from. Raises where the arguments do not fit."""
        return self.start(problem, params, hparams)

    def start(
        self, problem: BilevelProblem, params: PyTree, hparams: PyTree, *, differentiable: bool = True
    ) -> TrajectoryState:
        """Returns the state to start from, also where not all losses are `differentiable`.

        Warns where a `stop_gradient` cuts the derivative of a training step.
        """
        state = self.inner.init_to_learn(problem, params, hparams, differentiable=differentiable)
        if self.warm_start:
            refuse_warm(self.inner, problem, hparams, state)
        if differentiable:
            warn_of_stopped_step(self.inner, problem, hparams, state, backward=True)
        return first_state(state, hparams)
