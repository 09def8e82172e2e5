"""The protocol of estimators."""

import abc
import dataclasses
from typing import Any

import equinox as eqx
from jaxtyping import Array, PyTree

from ..inner import AbstractInnerSolver, as_inner_solver
from ..problem import BilevelProblem
from ..stats import Estimate
from .common.accuracy import ErrorCheck, TrajectoryState, first_state
from .common.refusals import refuse_tol


class AbstractEstimator(eqx.Module):
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


class AbstractTrajectoryEstimator(AbstractEstimator):
    """An estimator that carries the state of training, and how accurate it was found to be.

    With `warm_start` a step trains on from where the last one ended, else afresh from the first model. `check` says how
    often the error of the hypergradient is measured, `None` for never; where `is_exact` there is nothing to measure.
    """

    inner: AbstractInnerSolver = eqx.field(converter=as_inner_solver)
    _: dataclasses.KW_ONLY
    warm_start: bool = False
    check: ErrorCheck | None = ErrorCheck()

    def __check_init__(self) -> None:
        refuse_tol(self.inner)

    @property
    @abc.abstractmethod
    def is_exact(self) -> bool:
        """True if the hypergradient is the derivative of the value, to rounding, whatever the problem."""

    def init(self, problem: BilevelProblem, params: PyTree, hparams: PyTree) -> TrajectoryState:
        """Returns the state to start from. Raises where the arguments do not fit."""
        state = self.inner.init_to_learn(problem, params, hparams)
        if self.warm_start:
            self.inner.refuse_adrift(hparams, state)
        return first_state(state, hparams)
