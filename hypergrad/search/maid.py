"""MAID: gradient descent that adapts its accuracy and its step length."""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from ..data.sampler import as_sampler
from ..estimators.common.error_bound import (
    STRONG_CONVEXITY,
    ErrorBound,
    Measurement,
    Probes,
    StrongConvexity,
    error_bound,
)
from ..estimators.common.implicit import LinearSystem, implicit_hypergradient, inner_gradient_norm
from ..estimators.common.refusals import refuse_complex, refuse_proximal, refuse_unseen
from ..ground.checks import checked, field, integer, real
from ..ground.hparams import as_hparams
from ..ground.units import norm
from ..inner import INNER, AbstractInnerSolver, AbstractTrainedState, InnerState
from ..linear.base import LINEAR_SOLVER, AbstractLinearSolver
from ..linear.cg import CG
from ..problem import PROBLEM, BilevelProblem, outer_value
from ..stats import Counts, Estimate, Status, flag
from ..training import Training
from .base import PROJECTION, AbstractSearch, Record, SearchState, checked_step, conclude, first_state, projected
from .gradient import identity
from .selection import averaged


class Point(eqx.Module):
    """An evaluated point: hyperparameters, hypergradient, corrected value and the bound on its error."""

    hparams: PyTree
    hypergradient: PyTree
    value: Array  # infinity before the first
    value_error: Array


class Control(eqx.Module):
    """The numbers that MAID adapts."""

    step_size: Array
    inner_rtol: Array  # relative to `scale`
    linear_rtol: Array  # relative residual


class MAIDState(AbstractTrainedState):
    """Warm starts, the last accepted point, and the adapted numbers."""

    inner: InnerState
    adjoint: PyTree
    probes: Probes
    accepted: Point
    control: Control
    scale: Array  # ‖∇_w L‖ at the very start


class MAID(AbstractSearch):
    """Gradient descent on λ whose inner tolerance, linear tolerance and step length come from error bounds.

    A step evaluates one candidate λ: it trains on from the last weights to ‖∇_w L‖ <= ε ‖∇_w L‖_0, solves H v = ∇_w F
    from the last v to a relative residual of δ, and bounds the error ω of the hypergradient p and the error η of the
    value f = F - vᵀ∇_w L. From the last accepted point λ_0, with f_0, p_0, η_0, step length α and d = λ - λ_0:

    - f + η <= f_0 - η_0 - c ‖d‖²/α: accepted for certain; α grows.
    - f - η > f_0 + η_0 - c ‖d‖²/α, or not finite: refused for certain; α shrinks, and λ_0 - α p_0 is next.
    - neither: ε shrinks, and λ_0 is evaluated again, from where the weights are now.

    From an accepted point the next candidate is λ - α p if ω <= a ‖p‖; else λ is evaluated again. In both cases ε and δ
    shrink, or after a move grow, such that each has less than half of the allowed error: no schedule is given.

    **Bounds.** ω and η follow from the residuals, the strong convexity μ of L and two Lipschitz constants, by the
    formulas of `error_bound`. μ is given, or estimated by an inverse iteration that goes on from step to step, the
    constants by power iterations at w. Estimates come from the optimistic side. Once they have converged ω and η are
    bounds if H, ∂²L/∂w∂λ and ∂²F are constant in w, and to first order in ‖∇_w L‖/μ otherwise.

    **Arguments**

    - `inner`: the inner solver; its `num_steps` bounds one evaluation.
    - `linear_solver`: one without damping; its `rtol` bounds what can be reached.
    - `strong_convexity`: μ > 0, a function of the hyperparameters such as the smallest penalty, or `None` to estimate.
    - `rtol`: the first and largest ε and δ, both relative.
    - `step_size`: the first α; `None` for a first step of root mean square 1.
    - `shrink`, `grow`: factors of α; ε and δ change by `shrink`⁴ to `grow`. `accuracy`: a. `decrease`: c, below 1 - a.
    - `power_steps`: power iterations at every evaluation.
    - `projection`: applied to every candidate.

    Where tolerances reach their floor of 50 machine epsilons λ stays. A candidate that is not finite moves neither the
    accepted point nor a warm start. `value` is F itself; `diagnostics` holds the errors and what was used. Where the
    outer loss uses its key, F is its mean over 32 fixed keys, or no two candidates could be compared; `best` is
    reported for fresh ones.

    *Cost*: of an evaluation, as `HOAG`, with 5 + 6 `power_steps` products and gradients more, and a short linear solve
    if μ is estimated. *Memory*: as `HOAG`, and three vectors. *Bias*: at most a ‖p‖.
    *When not to use it*: with noisy inner gradients; where L is not strongly convex, because the bounds are infinite
    and λ stays (NEGATIVE_CURVATURE); on networks, where the bounds need accuracy that training does not give; where a
    good schedule is known, because `HOAG` saves the bounds.

    **Source**: after Salehi, Mukherjee, Roberts, Ehrhardt (2024, arXiv 2308.10098); there a step holds a whole line
    search, tolerances change by fixed factors, values are not corrected, and the bounds have other Lipschitz constants.
    A posteriori bounds of hypergradients: Ehrhardt and Roberts (2023).

    **Example**

        >>> search = hg.MAID(hg.OptaxSolver(optax.sgd(0.1), 50))
        >>> state = search.init(problem, w, log_l2)
        >>> state, history = hg.run(search, problem, state, key=key, budget=hg.Budget(gradients=2000))
        >>> print(f"{history.value[0]:.3f} -> {state.best.value:.3f}")
        0.444 -> 0.121
    """

    inner: AbstractInnerSolver = field(INNER)
    linear_solver: AbstractLinearSolver = field(LINEAR_SOLVER, CG())
    _: dataclasses.KW_ONLY
    strong_convexity: StrongConvexity = field(STRONG_CONVEXITY, None)
    rtol: float = field(real("rtol", above=0, below=1), 0.1)
    step_size: float | None = field(real("step_size", above=0, optional=True), None)
    shrink: float = field(real("shrink", above=0, below=1), 0.5)
    grow: float = field(real("grow", least=1), 1.25)
    accuracy: float = field(real("accuracy", above=0, below=1), 0.5)
    decrease: float = field(real("decrease", above=0, below=1), 0.1)
    power_steps: int = field(integer("power_steps", least=1), 1)
    projection: Callable[[PyTree], PyTree] = field(PROJECTION, identity)

    def __check_init__(self) -> None:
        bound = 1 - self.accuracy
        if not isinstance(bound - self.decrease, jax.core.Tracer) and not self.decrease < bound:
            raise ValueError(f"decrease must be below 1 - accuracy = {bound:g}, got {self.decrease:g}")

    @property
    def num_inner_steps(self) -> int:
        """The most training steps of one evaluation."""
        return self.inner.num_steps

    @checked(PROBLEM)
    def init(self, problem: BilevelProblem, params: PyTree, hparams: PyTree) -> SearchState:
        """Returns the state before the first evaluation. Raises `ValueError` for hyperparameters it cannot see."""
        hparams = as_hparams(hparams)
        inner = self.inner.init_to_learn(problem, params, hparams)
        refuse_proximal(self.inner, "MAID's error bounds need a Hessian; use GradientSearch with Implicit or HOAG")
        refuse_unseen(self.inner, problem, hparams, inner)
        if as_sampler(problem.train).changes:
            raise ValueError('train changes from step to step, which MAID cannot bound: use Batches(..., order="all")')
        refuse_complex(inner.partitioned.arrays, "MAID's error bounds are those of real ones")
        value = eqx.filter_eval_shape(outer_value, problem, inner.params, hparams, jax.random.key(0))
        number = lambda x, like: jnp.full((), x, like.dtype)
        scale = number(0, inner.solver.error)
        nowhere = Point(hparams, optax.tree.zeros_like(hparams), number(jnp.inf, value), number(0, value))
        control = Control(
            number(1 if self.step_size is None else self.step_size, norm(hparams)),
            number(self.rtol, scale),
            number(self.rtol, scale),
        )
        weights = inner.partitioned.arrays
        memo = MAIDState(inner, optax.tree.zeros_like(weights), Probes(weights), nowhere, control, scale)
        return first_state(problem, hparams, memo, None)

    @checked_step
    @eqx.filter_jit
    def step(self, problem: BilevelProblem, state: SearchState, key: Array) -> tuple[SearchState, Record]:
        """Evaluates the candidate, accepts or refuses it, adapts."""
        estimate, bound, warm = self._evaluate(problem, state, key)
        usable = (estimate.stats.status & Status.NONFINITE) == 0
        hparams, accepted, control, new = self._decide(state, estimate, bound, usable)
        memo = state.inner_state
        status = flag(bound.strong_convexity == 0, Status.NEGATIVE_CURVATURE)
        stats = estimate.stats.also(Counts(hyper_updates=new), status)
        stats = eqx.tree_at(lambda s: s.diagnostics, stats, stats.diagnostics | vars(memo.control))
        estimate = eqx.tree_at(lambda e: e.stats, estimate, stats)
        warm = optax.tree.where(usable, warm, (memo.inner, memo.adjoint, memo.probes, memo.scale))
        inner, adjoint, probes, scale = warm
        inner_state = MAIDState(inner, adjoint, probes, accepted, control, scale)
        moved = dataclasses.replace(state, hparams=hparams, inner_state=inner_state)
        return conclude(problem, moved, estimate, key, state.hparams)

    def _evaluate(
        self, problem: BilevelProblem, state: SearchState, key: Array
    ) -> tuple[Estimate, ErrorBound, tuple[PyTree, ...]]:
        """Trains and solves to the present tolerances; returns the estimate, its bounds, the next warm starts."""
        memo, hparams = state.inner_state, state.hparams
        training = Training(self.inner, averaged(problem, state.best), hparams, key)
        scale = jax.lax.cond(memo.scale == 0, lambda: inner_gradient_norm(training, memo.inner), lambda: memo.scale)
        start = training.begin(memo.inner, warm_start=True)
        end, solved = training.solve(start, memo.control.inner_rtol * scale)
        system = LinearSystem(self.linear_solver)
        found = implicit_hypergradient(training, end, system, memo.adjoint, memo.control.linear_rtol)
        v, measurement = found.solution.value, Measurement(self.linear_solver, self.strong_convexity, self.power_steps)
        bound = error_bound(training, end, v, memo.probes, measurement)
        stats = found.stats(
            solved,
            hypergradient_error=bound.hypergradient,
            value_error=bound.value_error,
            strong_convexity=bound.strong_convexity,
        )
        repeats = Counts(outer_gradients=2 * (state.best.num_evaluations - 1))  # for hypergradient and bound
        stats = stats.also(bound.counts + repeats)
        estimate = Estimate(found.hypergradient, found.value, end.judged, stats)
        return estimate, bound, (end, v, bound.probes, scale)

    def _decide(
        self, state: SearchState, estimate: Estimate, bound: ErrorBound, usable: Array
    ) -> tuple[PyTree, Point, Control, Array]:
        """Returns the next candidate, the accepted point, the adapted numbers, and whether the accepted point moved."""
        memo, control = state.inner_state, state.inner_state.control
        base, like = memo.accepted, bound.value  # hyperparameters may have another precision
        gradient_norm = norm(estimate.hypergradient).astype(like.dtype)
        first = jnp.isinf(base.value)
        distance = norm(optax.tree.sub(state.hparams, base.hparams)).astype(like.dtype)
        moved = (distance > 0) & ~first
        wanted = self.decrease * distance**2 / control.step_size.astype(like.dtype)
        change, slack = bound.value - base.value + wanted, bound.value_error + base.value_error
        accept = usable & (~moved | (change + slack <= 0))
        refuse = ~usable | (~accept & (change - slack > 0))
        precise = bound.hypergradient <= self.accuracy * gradient_norm
        new, undecided = accept & moved, ~accept & ~refuse
        unsure = (accept & ~precise) | undecided
        # Growing where λ stays could undo the shrinking that sent it back.
        most = jnp.where(new, self.grow, 1)
        inner_factor, linear_factor = (
            jnp.where(accept, self._factor(part, gradient_norm, most), 1)
            for part in (bound.inner_part, bound.linear_part)
        )
        control = Control(
            self._step_size(control.step_size, estimate.hypergradient, accept & first, new, refuse & moved),
            self._bounded(control.inner_rtol * jnp.where(undecided, self.shrink, inner_factor)),
            self._bounded(control.linear_rtol * linear_factor),
        )
        here = Point(state.hparams, estimate.hypergradient, bound.value, bound.value_error)
        accepted = optax.tree.where(accept, here, base)
        ahead = optax.tree.add_scale(accepted.hparams, -control.step_size, accepted.hypergradient)
        hparams = optax.tree.where(unsure, accepted.hparams, projected(self.projection, ahead))
        return hparams, accepted, control, new

    def _factor(self, part: Array, gradient_norm: Array, most: Array) -> Array:
        """Returns the factor of a tolerance, such that its part of the error falls below half of what is allowed."""
        ratio = self.accuracy * gradient_norm / (2 * jnp.where(part > 0, part, 1))
        return jnp.where(part > 0, jnp.clip(self.shrink * ratio, self.shrink**4, most), most)

    def _bounded(self, rtol: Array) -> Array:
        return jnp.clip(rtol, 50 * jnp.finfo(rtol.dtype).eps, self.rtol)

    def _step_size(self, step_size: Array, gradient: PyTree, first: Array, new: Array, refused: Array) -> Array:
        if self.step_size is None:
            rms = norm(gradient) / jnp.sqrt(jnp.asarray(optax.tree.size(gradient), step_size.dtype))
            step_size = jnp.where(first & (rms > 0), 1 / jnp.where(rms > 0, rms, 1), step_size)
        return step_size * jnp.where(new, self.grow, jnp.where(refused, self.shrink, 1))
