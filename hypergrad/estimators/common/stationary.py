"""The common part of estimators through the stationary point at the end of training."""

import dataclasses

from jaxtyping import PyTree

from ...curvature import CURVATURE, Curvature, hessian
from ...ground.checks import field, integer
from ...inner import INNER, AbstractInnerSolver, InnerState
from ...linear.base import LINEAR_SOLVER, AbstractLinearSolver
from ...linear.cg import CG
from ...problem import BilevelProblem
from ...stats import Estimate, Stats
from ...training import Training
from ..base import AbstractEstimator
from .error_bound import STRONG_CONVEXITY, Measurement, StrongConvexity, with_error_bound
from .implicit import PRECONDITIONER, LinearSystem, Preconditioner, StationaryPoint
from .refusals import refuse_unbounded, refuse_unseen


class AbstractImplicitEstimator(AbstractEstimator):
    """An estimator that solves a linear system at the end of training, see `Implicit` for its fields."""

    inner: AbstractInnerSolver = field(INNER)
    linear_solver: AbstractLinearSolver = field(LINEAR_SOLVER, CG())
    _: dataclasses.KW_ONLY
    curvature: Curvature = field(CURVATURE, hessian)
    preconditioner: Preconditioner | None = field(PRECONDITIONER, None)
    power_steps: int = field(integer("power_steps", least=0), 0)
    strong_convexity: StrongConvexity = field(STRONG_CONVEXITY, None)

    def start(self, problem: BilevelProblem, params: PyTree, hparams: PyTree) -> InnerState:
        """Returns the inner state to start from. Raises `ValueError` for hyperparameters it cannot see."""
        state = self.inner.init_to_learn(problem, params, hparams)
        refuse_unseen(self.inner, problem, hparams, state)
        if self.power_steps:
            refuse_unbounded(self.inner, state)
        return state

    @property
    def system(self) -> LinearSystem:
        """The linear system."""
        return LinearSystem(self.linear_solver, self.curvature, self.preconditioner)

    def estimate(self, training: Training, end: InnerState, found: StationaryPoint, stats: Stats) -> Estimate:
        """Returns the estimate with its error bound, where one is asked for."""
        measurement = Measurement(self.linear_solver, self.strong_convexity, self.power_steps)
        stats = with_error_bound(stats, training, end, found, measurement)
        return Estimate(found.hypergradient, found.value, end.judged, stats)
