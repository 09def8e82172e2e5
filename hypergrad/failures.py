"""Steps of a run whose result is not finite: a warning at the first, with its likely cause, an error when all fail."""

import dataclasses
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .course import Course
from .ground.keys import step_key
from .ground.tree import all_finite, differentiable
from .history import History
from .inner import AbstractInnerSolver, InnerState
from .problem import BilevelProblem, inner_objective
from .search.base import AbstractSearch, SearchState
from .stats import Status
from .training import Training

DIVERGED = (
    "the outer loss is not finite there: training diverges, which a smaller learning rate avoids, or the outer loss is "
    "not defined, which a projection of the hyperparameters avoids"
)
NO_DERIVATIVE = (
    "the outer loss is finite, and its hypergradient or the update of the hyperparameters is not: something has no "
    "derivative there, such as a square root at 0, or the adjoint overflows, or a step size is not finite; "
    "hypergrad.diagnose tells more"
)


class NotFiniteError(FloatingPointError):
    """No step of a run had a finite result, or one had none and the run was to stop there.

    `state` and `history` are what the run would have returned.
    """

    def __init__(self, message: str, state: SearchState | None = None, history: History | None = None):
        super().__init__(message)  # alone, so that a copy from another process can be made
        self.state, self.history = state, history


@dataclasses.dataclass
class Failures:
    """The failed steps of a course, from here on."""

    course: Course
    steps: int = 0
    failed: int = 0
    cause: str = ""

    def look(self, status: np.ndarray, finite: np.ndarray) -> None:
        """Counts the failures among the steps that the course has just taken; warns of the first.

        `finite` says of which steps the value is.
        """
        self.steps += len(status)
        if not np.any(failed := (status & Status.NONFINITE) != 0):
            return
        first, (indices,) = not self.failed, np.nonzero(failed)
        self.failed += len(indices)
        if not first:
            return
        course, number = self.course, self.course.num_steps - len(status) + int(indices[0])
        key = jax.random.fold_in(course.plan.key, number)
        self.cause = likely_cause(course.plan.search, course.example, course.state, key, bool(finite[indices[0]]))
        warnings.warn(
            f"step {number} has no finite result ({self.failed} of {self.steps} steps so far): {self.cause}",
            RuntimeWarning,
            stacklevel=4,
        )

    def check(self, throw: bool = False) -> None:
        """Raises `NotFiniteError` if all steps failed, or any where `throw` is true."""
        if self.failed and (throw or self.failed == self.steps):
            text = f"{Status.NONFINITE}: {self.failed} of {self.steps} steps had no finite result: {self.cause}"
            raise NotFiniteError(text, self.course.state, self.course.history)


def likely_cause(search: AbstractSearch, problem: BilevelProblem, state: SearchState, key: Array, finite: bool) -> str:
    """Returns a sentence on why a step from about `state` failed, whose outer loss was `finite` or not.

    *Cost*: where the value is finite, one training step and its pullback are compiled.
    """
    if not finite:
        return DIVERGED
    inner = getattr(getattr(search, "estimator", None), "inner", None)
    start = getattr(state.inner_state, "inner", state.inner_state)
    if not isinstance(inner, AbstractInnerSolver) or not isinstance(start, InnerState):
        return NO_DERIVATIVE
    broken, zeros, total = _first_step(Training(inner, problem, state.hparams, key), start)
    if not (broken and zeros):
        return NO_DERIVATIVE
    return (
        f"the outer loss is finite and its hypergradient is not: {int(zeros)} of {total} entries of the inner gradient "
        "are 0 at the first training step, where an optimiser that divides by the square root of a mean of squares has "
        "no derivative; give it eps_root, as in optax.adam(0.01, eps_root=1e-8)"
    )


@eqx.filter_jit
def _first_step(training: Training, state: InnerState) -> tuple[Array, Array, int]:
    """Returns whether the first training step has a value and no derivative, and its gradient's zeros and entries."""
    start = training.begin(state, warm_start=False)
    new, pullback = training.step_vjp(start, 0)
    back = pullback(jax.tree.map(jnp.ones_like, differentiable(new)))
    loss = inner_objective(training.problem, start.partitioned, step_key(training.key, 0))
    leaves = jax.tree.leaves(jax.grad(loss)(start.partitioned.arrays, training.hparams))
    zeros = jnp.sum(jnp.stack([jnp.sum(leaf == 0) for leaf in leaves]))
    return all_finite(new.partitioned) & ~all_finite(back), zeros, sum(leaf.size for leaf in leaves)
