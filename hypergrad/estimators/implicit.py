"""Hypergradients from the implicit function theorem at the end of training."""

import dataclasses

import equinox as eqx
from jaxtyping import Array, PyTree

from ..ground.checks import boolean, checked, field, real
from ..inner import InnerState
from ..problem import PROBLEM, BilevelProblem
from ..training import Evaluated, Training
from .base import checked_step
from .common.proximal import hypergradient_at_solution
from .common.stationary import AbstractImplicitEstimator


class Implicit(AbstractImplicitEstimator):
    """The hypergradient of the exact minimiser, evaluated where training ended.

        dF/dλ = ∂_λ F - (∂²L/∂w∂λ)ᵀ v,    H v = ∇_w F,    H = ∂²L/∂w²

    **Arguments**

    - `inner`: the inner solver, run to a gradient norm of `atol` or for its `num_steps`.
    - `linear_solver`: `CG()`, `Neumann()` or your own. It stops at its budget whatever happens. Those that draw the
      training data anew for every product, such as `hg.linear.SGD`, do so independently of the mixed derivative.
    - `atol`: the gradient norm at which training ends, an absolute number.
    - `warm_start`: train on from where the last step ended.
    - `curvature`: what stands for H: `hessian`, or `gauss_newton` where H is indefinite.
    - `preconditioner`: a function of the hyperparameters that gives a positive diagonal close to H's, e.g.
      `lambda h: jax.tree.map(jnp.exp, h)` where exp(h) is the prior precision of each weight. A function with two
      required arguments is given the inner state at the end of training too, as `hg.curvature.AdamDiagonal` is.
      Tolerance and residual are then those of the preconditioned system.
    - `power_steps`: the number of power iterations for `diagnostics["error_bound"]`, a bound on ‖p - dF/dλ‖/‖p‖ where p
      is the hypergradient found and dF/dλ that of the solved inner problem; 0 for none. `MAID` has the formula, and
      says where the bound holds.
    - `strong_convexity`: for that bound, as for `MAID`.

    An inner solver with a proximal step or a projection ends at a fixed point w = T(w, λ) = prox(w - γ∇f(w, λ), λ, γ).
    There, with A = ∂T/∂w and B = ∂T/∂λ,

        dF/dλ = ∂_λ F + Bᵀ v,    (I - Aᵀ) v = ∇_w F,

    solved as a symmetric system on the support (`CG`, `MINRES`) or as it stands (`GMRES`, `Dense`, or `Neumann`, which
    is the fixed point's own iteration). At a kink, where an entry is about to leave a bound or zero, the derivative
    jumps: `diagnostics["kink_gap"]` is the distance, min (λ - |∇_j f|) over the zero weights of a lasso, and a distance
    within the error of training is flagged as INNER_UNCONVERGED.

    `stats.residual` is the recomputed relative residual of the linear solve. The status says LINEAR_UNCONVERGED where
    it is above 1e-2, NEGATIVE_CURVATURE where H is not positive definite, and INNER_UNCONVERGED where
    `diagnostics["outer_gap"]` = |∇Fᵀ H⁻¹ ∇L|, the change of F still to come if the inner problem were solved, is above
    2 % of the norm of the hypergradient, which is the change of F that it promises for a step of unit length. The gap
    is infinite where the linear solve is no better than v = 0. The status says so too where the gap jumps within
    3 ‖∇L‖/‖∇F‖ along v, as at a kink of a plain `jnp.abs`, which no Hessian sees.

    *Cost*: training, one Hessian-vector product per linear step and two derivatives along v; for the bound 5 + 6
    `power_steps` products and gradients, and `power_steps` linear solves to a residual of 0.1 if μ is estimated.
    *Memory*: that of training, and a few vectors.
    *Bias*: of the order of the inner error plus the residual; for a loss that keys make random, H is that of one key.
    *When not to use it*: when training stops early or L has no strict minimum. Learning rates, momentum, initial
    weights and batch order leave no trace in w*: `init` refuses such hyperparameters by name.

    **Source**: Larsen et al. (1996); Bengio (2000); Lorraine, Vicol, Duvenaud (2020), Theorem 1; Bertrand et al. (2022)
    for proximal steps.

    **Example**

        >>> value, slope = hg.value_and_hypergrad(problem, hg.Implicit(inner.with_num_steps(200)))(log_l2, w, key)
        >>> print(f"{value:.3f} {slope:.3f}")
        0.347 0.329
    """

    _: dataclasses.KW_ONLY
    atol: float = field(real("atol", least=0), 0.0)
    warm_start: bool = field(boolean("warm_start"), False)

    @checked(PROBLEM)
    def init(self, problem: BilevelProblem, params: PyTree, hparams: PyTree) -> InnerState:
        """Returns the inner state to start from. Raises `ValueError` for hyperparameters it cannot see."""
        return self.start(problem, params, hparams)

    @checked_step(InnerState)
    @eqx.filter_jit
    def step(self, problem: BilevelProblem, hparams: PyTree, state: InnerState, key: Array) -> Evaluated:
        """Trains, then solves the linear system."""
        training = Training(self.inner, problem, hparams, key)
        end, solved = training.solve(training.begin(state, self.warm_start), self.atol)
        found = hypergradient_at_solution(training, end, self.system)
        return self.estimate(training, end, found, found.stats(solved)), end if self.warm_start else state
