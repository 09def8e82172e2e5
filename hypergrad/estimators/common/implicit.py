"""The way of implicit estimators from the outer gradient to the hypergradient: through the stationary point.

The estimators differ only in how they come to the end of training and in how they solve the linear system there.
"""

import inspect
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from ...curvature import Curvature, hessian
from ...data.sampler import as_sampler
from ...ground.checks import function
from ...ground.derivatives import jvp, once
from ...ground.keys import product_key
from ...ground.tree import cast_like
from ...ground.units import norm
from ...inner import InnerState, SolveStats
from ...linear.base import AbstractLinearSolver, LinearSolution, MatVec, solve
from ...problem import inner_objective
from ...stats import Counts, Stats, Status, flag
from ...training import Training
from .adjoint import lost_in_float16

Preconditioner = Callable[..., PyTree]  # hparams, or (hparams, state) -> diagonal, like params or a prefix of them
PRECONDITIONER = function("preconditioner", "hparams -> diagonal, or (hparams, state) -> diagonal", optional=True)


class LinearSystem(eqx.Module):
    """A way to solve H v = b at the end of training.

    With a preconditioner D the system is D^-½ H D^-½ u = D^-½ b, v = D^-½ u, and tolerance and residual are those of u.
    """

    solver: AbstractLinearSolver
    curvature: Curvature = hessian
    preconditioner: Preconditioner | None = None

    def solve(
        self, training: Training, end: InnerState, b: PyTree, init: PyTree | None, rtol: Array | float
    ) -> LinearSolution:
        """Returns the `LinearSolution`, from `init` to a relative residual of `rtol`."""
        return self.solve_with(self.product(training, end), self.diagonal(training, end), b, init, rtol)

    def product(self, training: Training, end: InnerState) -> MatVec:
        """Returns v -> H v at the end of training, and (v, j) -> H_j v for solvers that draw the operator anew."""
        at = lambda key: self.curvature(training.problem, training.hparams, end.judged, key)
        key = training.keys.inner
        fixed = at(key)
        return lambda v, *draw: at(product_key(key, *draw))(v) if draw else fixed(v)

    def diagonal(self, training: Training, end: InnerState) -> PyTree | None:
        """Returns the diagonal of the preconditioner, `None` without one."""
        if self.preconditioner is None:
            return None
        parameters = inspect.signature(self.preconditioner).parameters.values()
        required = [
            p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        arguments = (training.hparams, end)
        return self.preconditioner(*arguments[: max(len(required), 1)])

    def solve_with(
        self, product: MatVec, diagonal: PyTree | None, b: PyTree, init: PyTree | None, rtol: Array | float
    ) -> LinearSolution:
        """Returns the solution for another operator v -> H v, preconditioned by a diagonal where there is one."""
        if diagonal is None:
            return solve(self.solver, product, b, init, rtol)
        return self._preconditioned(product, diagonal, b, init, rtol)

    def _preconditioned(
        self, product: MatVec, diagonal: PyTree, b: PyTree, init: PyTree | None, rtol: Array | float
    ) -> LinearSolution:
        roots = jax.tree.map(jnp.sqrt, jax.tree.broadcast(diagonal, b))
        shrink = lambda v: jax.tree.map(lambda leaf, root: leaf / root, v, roots)
        start = None if init is None else optax.tree.mul(init, roots)
        shrunk = lambda u, *draw: shrink(product(shrink(u), *draw))
        solution = solve(self.solver, shrunk, shrink(b), start, rtol)
        return eqx.tree_at(lambda s: s.value, solution, shrink(solution.value))


class Kink(eqx.Module):
    """The distance from the nearest kink of w*(λ), in units of the gradient.

    At a kink an entry is about to leave a bound, or zero, and the derivative jumps. `near` is true where training is
    too inexact to tell the side of the kink.
    """

    gap: Array
    near: Array


class StationaryPoint(eqx.Module):
    """The hypergradient through the stationary point, with the measurements made on the way."""

    value: Array
    hypergradient: PyTree
    solution: LinearSolution
    inner_gradient_norm: Array
    gap: Array  # |∇Fᵀ H⁻¹ ∇L|: how much F would still change, to first order, if the inner problem were solved
    rounding: Array  # of the gap
    lost: Array  # INACCURATE where the outer gradient has lost its digits
    kink: Kink | None = None  # where there is a proximal step
    batches: int = 1  # of training data in every product
    bend: Array | float = 0.0  # what of the change of that gap along v is no line: a kink is within reach

    @property
    def outer_gap(self) -> Array:
        """The gap, infinite where a solution of the linear system that is no better than v = 0 cannot tell it."""
        return jnp.where(self.solution.residual < 1, self.gap, jnp.inf)

    @property
    def unconverged(self) -> Array:
        """True if the gap is above 2 % of what the hypergradient promises for a step of unit length.

        The rule compares changes of F with each other: it is the same for a F + b, and for any multiple of L. Measured
        on ridge, quadratic and logistic problems, the gap so divided is 0.25 to 10 times the hypergradient's error.
        Nor may training be too inexact to tell the side of a kink: there the gap, a derivative along v, jumps within
        three times the distance that a gradient as large as that which is left needs to vanish.
        """
        small = 2e-2 * norm(self.hypergradient) + self.rounding
        far = ~(self.outer_gap <= small) | (self.bend > small)
        return far if self.kink is None else far | self.kink.near

    def stats(self, solved: SolveStats, **diagnostics: Array) -> Stats:
        """Returns counts of training and solving together, residual and status."""
        status = (
            flag(~(self.solution.residual <= 1e-2), Status.LINEAR_UNCONVERGED)
            | flag(self.solution.negative_curvature, Status.NEGATIVE_CURVATURE)
            | flag(self.unconverged, Status.INNER_UNCONVERGED)
            | self.lost
        )
        counts = Counts(
            iterations=solved.iterations,
            inner_gradients=solved.gradients + self.batches * (self.solution.draws + 1),
            hvps=self.batches * (self.solution.steps + 1),
            outer_gradients=1,
        )
        diagnostics |= {"inner_gradient_norm": self.inner_gradient_norm, "outer_gap": self.outer_gap}
        if self.kink is not None:
            diagnostics["kink_gap"] = self.kink.gap
        return Stats(counts, status, self.solution.residual, diagnostics)


def inner_gradient_norm(training: Training, state: InnerState) -> Array:
    """Returns ‖∇_w L‖ at the weights of `state`, for the draw of L that the linear system is made of."""
    inner = inner_objective(training.problem, state.judged, training.keys.inner)
    return norm(jax.grad(inner)(state.judged.arrays, training.hparams))


def implicit_hypergradient(
    training: Training, end: InnerState, system: LinearSystem, init: PyTree | None = None, rtol: Array | float = 0.0
) -> StationaryPoint:
    """Returns dF/dλ = ∂_λ F - (∂²L/∂w∂λ)ᵀ v with H v = ∇_w F, at the end of training.

    The linear solve starts at `init` (at zero if `None`) and stops at the relative residual `rtol` or at its budget.
    """
    value, by_model, by_hparams = training.outer_value_and_grads(end)
    by_weights = by_model.arrays
    inner, arrays = inner_objective(training.problem, end.judged, training.keys.inner), end.judged.arrays
    gradient = once(jax.grad(inner))
    size = norm(gradient(arrays, training.hparams))
    solution = system.solve(training, end, by_weights, init, rtol)
    _, mixed = jax.vjp(lambda hparams: gradient(arrays, hparams), training.hparams)
    hypergradient = optax.tree.sub(by_hparams, mixed(solution.value)[0])
    # vᵀ∇L as a derivative along v: the gradient itself would lie in memory through the solve.
    loss, v = lambda arrays: inner(arrays, training.hparams), solution.value
    along = lambda shift: jvp(loss, cast_like(optax.tree.add_scale(arrays, shift, v), arrays), v)
    outer = norm(by_weights)
    reach = 3 * size / jnp.where(outer > 0, outer, 1)
    gap, ahead, behind = jax.lax.map(along, jnp.stack([jnp.zeros_like(reach), reach, -reach]))
    bend = jnp.abs(ahead + behind - 2 * gap)
    rounding = 50 * jnp.finfo(value.dtype).eps * outer * norm(arrays)
    batches = as_sampler(training.problem.train).batches_per_mean
    lost = lost_in_float16(by_weights)
    gap = jnp.abs(gap)
    return StationaryPoint(value, hypergradient, solution, size, gap, rounding, lost, batches=batches, bend=bend)
