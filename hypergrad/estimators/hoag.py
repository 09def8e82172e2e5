"""HOAG: implicit hypergradients, as accurate as the outer loop needs at the time."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from ..ground.checks import checked, field, function
from ..ground.units import norm
from ..inner import AbstractTrainedState, InnerState
from ..problem import PROBLEM, BilevelProblem
from ..stats import Estimate
from ..tolerances import Schedule, exponential
from ..training import Training
from .base import checked_step
from .common.proximal import distance_to_solution, hypergradient_at_solution
from .common.stationary import AbstractImplicitEstimator


class HOAGState(AbstractTrainedState):
    """Warm starts, and the number of hyper-steps done."""

    inner: InnerState
    adjoint: PyTree  # v, the last solution of H v = ∇_w F
    index: Array  # hyper-steps done, k
    scale: Array  # ‖∇_w L‖ at the very start: tolerances are relative to it


class HOAG(AbstractImplicitEstimator):
    """The implicit hypergradient with one relative tolerance ε_k for training and linear solve, both warm-started.

    At hyper-step k: train on from the last weights until ‖∇_w L‖ <= ε_k ‖∇_w L‖_0, the gradient norm at the very first
    weights; solve H v = ∇_w F from the last v to a relative residual of ε_k; return ∂_λ F - (∂²L/∂w∂λ)ᵀ v.
    With a proximal step or a projection ‖∇_w L‖ is ‖w - prox(w - γ∇f)‖/γ, and the system is that of `Implicit`.
    With Σ ε_k finite the iteration converges to a stationary point. Tolerances do not go below 50 machine epsilons.

    **Arguments**

    - `inner`: the inner solver; its `num_steps` bounds the training of one hyper-step.
    - `linear_solver`, `curvature`, `preconditioner`, `power_steps`, `strong_convexity`: as for `Implicit`.
    - `schedule`: ε_k, one of `hg.tolerances`, relative to ‖∇_w L‖ at the start.

    Move λ with `hypergrad.adaptive_step()` for the paper's step size. `diagnostics["rtol"]` is ε_k.

    *Cost*: falls from step to step as warm starts come near; far below T gradients on convex problems. *Memory*: as
    `Implicit`. *Bias*: of order ε_k. *When not to use it*: as `Implicit`; with noisy inner gradients the tolerance is
    never met and every step spends its budget.

    **Source**: Pedregosa (2016), Algorithm 1. There tolerances are absolute; here they do not depend on the loss's
    scale.

    **Example**

        >>> value, slope = hg.value_and_hypergrad(problem, hg.HOAG(hg.JaxoptSolver(jaxopt.LBFGS)))(log_l2, w, key)
        >>> print(f"{value:.3f} {slope:.3f}")
        0.347 0.329
    """

    _: dataclasses.KW_ONLY
    schedule: Schedule = field(function("schedule", "from the hyper-step to a relative tolerance"), exponential())

    @checked(PROBLEM)
    def init(self, problem: BilevelProblem, params: PyTree, hparams: PyTree) -> HOAGState:
        """Returns the inner state to start from. Raises `ValueError` for hyperparameters it cannot see."""
        state = self.start(problem, params, hparams)
        scale = 0 * norm(state.partitioned.arrays)
        return HOAGState(state, optax.tree.zeros_like(state.partitioned.arrays), jnp.zeros((), jnp.int32), scale)

    @checked_step(HOAGState)
    @eqx.filter_jit
    def step(
        self, problem: BilevelProblem, hparams: PyTree, state: HOAGState, key: Array
    ) -> tuple[Estimate, HOAGState]:
        """Trains to the tolerance of this step, then solves to it."""
        training = Training(self.inner, problem, hparams, key)
        far = lambda: distance_to_solution(training, state.inner, self.system)
        scale = jax.lax.cond(state.index == 0, far, lambda: state.scale)
        rtol = jnp.asarray(self.schedule(state.index), scale.dtype)
        rtol = jnp.maximum(rtol, 50 * jnp.finfo(scale.dtype).eps)
        end, solved = training.solve(training.begin(state.inner, warm_start=True), rtol * scale)
        found = hypergradient_at_solution(training, end, self.system, state.adjoint, rtol)
        estimate = self.estimate(training, end, found, found.stats(solved, rtol=rtol))
        return estimate, HOAGState(end, found.solution.value, state.index + 1, scale)
