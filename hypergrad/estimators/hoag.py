"""HOAG: implicit hypergradients, as accurate as the outer loop needs at the time."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from ..inner import InnerState, JaxoptSolver, as_inner_solver, inner_gradient_norm, refuse_unseen
from ..linear.base import AbstractLinearSolver
from ..linear.cg import CG
from ..linear.curvature import Curvature, hessian
from ..problem import BilevelProblem
from ..stats import Estimate
from .base import AbstractEstimator
from .common.adjoint import Preconditioner, implicit_hypergradient

Schedule = Callable[[Array], Array]  # hyper-step k = 0, 1, ... -> tolerance


def exponential_tolerance(initial: float = 1e-3, rate: float = 0.9) -> Schedule:
    """ε_k = initial · rate^k."""
    return optax.exponential_decay(initial, 1, rate)


def quadratic_tolerance(initial: float = 0.1) -> Schedule:
    """ε_k = initial / (k + 1)²."""
    return lambda k: initial / (k + 1.0) ** 2


def cubic_tolerance(initial: float = 0.1) -> Schedule:
    """ε_k = initial / (k + 1)³."""
    return lambda k: initial / (k + 1.0) ** 3


class HOAGState(eqx.Module):
    """Warm starts, and how far the schedule has come."""

    inner: InnerState
    adjoint: PyTree  # v, the last solution of H v = ∇_w F
    index: Array  # hyper-steps done, k
    scale: Array  # ‖∇_w L‖ at the very start: tolerances are relative to it

    @property
    def params(self) -> PyTree:
        """The model, whole."""
        return self.inner.params


class HOAG(AbstractEstimator):
    """The implicit hypergradient with inner and linear tolerance ε_k, both warm-started.

    At hyper-step k: train on from the last weights until ‖∇_w L‖ <= ε_k ‖∇_w L‖_0, the gradient norm at the very first
    weights; solve H v = ∇_w F from the last v to a relative residual of ε_k; return ∂_λ F - (∂²L/∂w∂λ)ᵀ v.
    With Σ ε_k finite the iteration converges to a stationary point. Tolerances do not go below 50 machine epsilons.

    **Arguments**

    - `inner`: the inner solver; its `num_steps` bounds the training of one hyper-step.
    - `linear_solver`, `curvature`, `preconditioner`: as for `Implicit`.
    - `schedule`: ε_k, e.g. `exponential_tolerance()`, `quadratic_tolerance()`, `cubic_tolerance()`.

    Move λ with `hypergrad.adaptive_step()` for the paper's step size. `diagnostics["tolerance"]` is ε_k.

    *Cost*: falls from step to step as warm starts come near; far below T gradients on convex problems. *Memory*: as
    `Implicit`. *Bias*: of order ε_k. *When not to use it*: as `Implicit`; with noisy inner gradients the tolerance is
    never met and every step spends its budget.

    **Source**: Pedregosa (2016), Algorithm 1. There tolerances are absolute; here they do not depend on the loss's
    scale.
    """

    inner: JaxoptSolver = eqx.field(converter=as_inner_solver)
    linear_solver: AbstractLinearSolver = CG()
    schedule: Schedule = exponential_tolerance()
    curvature: Curvature = hessian
    preconditioner: Preconditioner | None = None

    def init(self, problem: BilevelProblem, params: PyTree, hparams: PyTree) -> HOAGState:
        """The inner state to start from. Raises `ValueError` for hyperparameters it cannot see."""
        state = self.inner.init(problem, params, hparams)
        refuse_unseen(problem, self.inner, state, hparams)
        scale = jnp.zeros((), state.solver.error.dtype)
        return HOAGState(state, optax.tree.zeros_like(state.partitioned.arrays), jnp.zeros((), jnp.int32), scale)

    @eqx.filter_jit
    def step(
        self, problem: BilevelProblem, hparams: PyTree, state: HOAGState, key: Array
    ) -> tuple[Estimate, HOAGState]:
        """Train to the tolerance of this step, then solve to it."""
        outer_key = jax.random.fold_in(key, self.inner.num_steps)
        inner_key = jax.random.fold_in(key, self.inner.num_steps + 1)
        scale = jax.lax.cond(
            state.index == 0,
            lambda: inner_gradient_norm(problem, state.inner.partitioned, hparams, inner_key),
            lambda: state.scale,
        )
        floor = 50 * jnp.finfo(scale.dtype).eps
        tolerance = jnp.maximum(jnp.asarray(self.schedule(state.index), scale.dtype), floor)
        system = (self.linear_solver, self.curvature, self.preconditioner)
        start = self.inner.resume(problem, hparams, state.inner)
        end, solved = self.inner.solve(problem, hparams, start, key, tolerance * scale)
        found = implicit_hypergradient(
            problem, hparams, end.partitioned, outer_key, inner_key, *system, state.adjoint, tolerance
        )
        stats = found.stats(solved, tolerance=tolerance)
        estimate = Estimate(found.hypergradient, found.value, end.params, stats)
        return estimate, HOAGState(end, found.solution.value, state.index + 1, scale)
