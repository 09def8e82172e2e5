"""The two ways from the outer gradient to the hypergradient: back through the steps, or through the stationary point.

Trajectory estimators differ only in the states at which `step_vjp` is taken and in the recursion of the cotangent;
implicit ones only in how they come to the end point and in the linear solver.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from ...ground.tree import PartitionedModel, differentiable, norm
from ...inner import InnerState, JaxoptSolver, SolveStats, inner_gradient_norm
from ...linear.base import AbstractLinearSolver, LinearSolution
from ...linear.curvature import Curvature, hessian
from ...problem import BilevelProblem, inner_objective, outer_objective
from ...stats import Counts, Stats, Status, flag

Preconditioner = Callable[[PyTree], PyTree]  # hparams -> positive diagonal, like params or a prefix of them


def step_map(inner: JaxoptSolver, problem: BilevelProblem, state: InnerState, key: Array) -> tuple[PyTree, Callable]:
    """The inexact arrays of the state, and Φ of these and λ; it returns the new ones and, beside them, the rest."""
    inexact, rest = eqx.partition(state, eqx.is_inexact_array)

    def phi(inexact, hparams):
        new = inner.step(problem, hparams, eqx.combine(inexact, rest), key)
        return eqx.partition(new, eqx.is_inexact_array)

    return inexact, phi


def step_and_vjp(
    inner: JaxoptSolver, problem: BilevelProblem, hparams: PyTree, state: InnerState, key: Array
) -> tuple[InnerState, Callable[[PyTree], tuple[PyTree, PyTree]]]:
    """`(Φ(state; hparams), c -> (Aᵀc, Bᵀc))` with A = ∂Φ/∂(w, s) and B = ∂Φ/∂λ.

    A cotangent has the structure of the state with `None` at the leaves that are not inexact arrays.
    """
    inexact, phi = step_map(inner, problem, state, key)
    new, pullback, rest = jax.vjp(phi, inexact, hparams, has_aux=True)
    return eqx.combine(new, rest), pullback


def step_vjp(
    inner: JaxoptSolver, problem: BilevelProblem, hparams: PyTree, state: InnerState, key: Array, cotangent: PyTree
) -> tuple[PyTree, PyTree]:
    """`(A_tᵀc, B_tᵀc)`: the pullback of one inner step at `state`, recomputed there."""
    _, pullback = step_and_vjp(inner, problem, hparams, state, key)
    return pullback(cotangent)


def outer_value_and_grads(
    problem: BilevelProblem, hparams: PyTree, partitioned: PartitionedModel, key: Array
) -> tuple[Array, PyTree, PyTree]:
    """`(F, ∇_w F, ∂_λ F)` of the outer loss at a trained model."""
    objective = outer_objective(problem, partitioned, key)
    value, (by_params, by_hparams) = jax.value_and_grad(objective, argnums=(0, 1))(partitioned.arrays, hparams)
    return value, by_params, by_hparams


class Adjoint(eqx.Module):
    """What travels backwards: c_t = ∂F/∂(w_t, s_t), the hypergradient so far, and the sizes of c on the weights."""

    cotangent: PyTree
    hypergradient: PyTree
    first: Array  # ‖∇_w F‖ at the end of training
    largest: Array  # largest ‖c_t‖ on the weights since

    @property
    def growth(self) -> Array:
        """max_t ‖c_t‖ / ‖c_T‖, on the weights: far above 1 where training is unstable or the path is wrong."""
        return jnp.where(self.first > 0, self.largest / jnp.where(self.first > 0, self.first, 1), 1)


def start_adjoint(problem: BilevelProblem, hparams: PyTree, end: InnerState, key: Array) -> tuple[Array, Adjoint]:
    """The outer loss at the end of training, and the adjoint there: c_T = ∇_w F on the weights, 0 on the rest."""
    value, by_params, by_hparams = outer_value_and_grads(problem, hparams, end.partitioned, key)
    size = norm(by_params)
    return value, Adjoint(cotangent_of(end, by_params), by_hparams, size, size)


def cotangent_of(state: InnerState, by_params: PyTree) -> PyTree:
    """A cotangent on the whole inner state that is `by_params` on the weights and 0 elsewhere."""
    zeros = differentiable(optax.tree.zeros_like(state))
    return eqx.tree_at(lambda s: s.partitioned, zeros, zeros.partitioned.with_arrays(by_params))


def step_back(
    inner: JaxoptSolver,
    problem: BilevelProblem,
    hparams: PyTree,
    state: InnerState,
    key: Array,
    adjoint: Adjoint,
) -> Adjoint:
    """One step of the recursion  g += B_tᵀ c,  c <- A_tᵀ c."""
    cotangent, by_hparams = step_vjp(inner, problem, hparams, state, key, adjoint.cotangent)
    size = norm(cotangent.partitioned.arrays)
    return Adjoint(
        cotangent,
        optax.tree.add(adjoint.hypergradient, by_hparams),
        adjoint.first,
        jnp.maximum(adjoint.largest, size),
    )


def back_to_start(
    inner: JaxoptSolver, problem: BilevelProblem, params: PyTree, hparams: PyTree, adjoint: Adjoint
) -> PyTree:
    """The hypergradient, with the part that comes through the solver's initial state (LBFGS starts with a gradient)."""
    _, pullback = jax.vjp(lambda hparams: differentiable(inner.restart(problem, params, hparams)), hparams)
    return optax.tree.add(adjoint.hypergradient, pullback(adjoint.cotangent)[0])


class StationaryPoint(eqx.Module):
    """The hypergradient through the stationary point, with all that was seen on the way."""

    value: Array
    hypergradient: PyTree
    solution: LinearSolution
    inner_gradient_norm: Array
    outer_gap: Array  # |∇Fᵀ H⁻¹ ∇L|: how much F would still change, to first order, if the inner problem were solved

    def stats(self, solved: SolveStats, **diagnostics: Array) -> Stats:
        """Counts of training and solving together, residual and status."""
        status = (
            flag(~(self.solution.residual <= 1e-2), Status.LINEAR_UNCONVERGED)
            | flag(self.solution.negative_curvature, Status.NEGATIVE_CURVATURE)
            | flag(~(self.outer_gap <= 1e-2 * jnp.abs(self.value)), Status.INNER_UNCONVERGED)
        )
        counts = Counts(
            iterations=solved.iterations,
            inner_gradients=solved.gradients + 1,
            hvps=self.solution.steps + 1,
            outer_gradients=1,
        )
        diagnostics |= {"inner_gradient_norm": self.inner_gradient_norm, "outer_gap": self.outer_gap}
        return Stats(counts, status, self.solution.residual, diagnostics)


def implicit_hypergradient(
    problem: BilevelProblem,
    hparams: PyTree,
    partitioned: PartitionedModel,
    outer_key: Array,
    inner_key: Array,
    linear_solver: AbstractLinearSolver,
    curvature: Curvature = hessian,
    preconditioner: Preconditioner | None = None,
    init: PyTree | None = None,
    tol: Array | float = 0.0,
) -> StationaryPoint:
    """dF/dλ = ∂_λ F - (∂²L/∂w∂λ)ᵀ v with H v = ∇_w F, at the given parameters.

    With a preconditioner D the system is D^-½ H D^-½ u = D^-½ ∇_w F, v = D^-½ u, and tolerance and residual are its.
    """
    value, by_params, by_hparams = outer_value_and_grads(problem, hparams, partitioned, outer_key)
    inner = inner_objective(problem, partitioned, inner_key)
    size = inner_gradient_norm(problem, partitioned, hparams, inner_key)
    product = curvature(problem, hparams, partitioned, inner_key)
    if preconditioner is None:
        solution = linear_solver.solve(product, by_params, init, tol)
    else:
        roots = jax.tree.map(jnp.sqrt, jax.tree.broadcast(preconditioner(hparams), partitioned.arrays))
        shrink = lambda v: jax.tree.map(lambda leaf, root: leaf / root, v, roots)
        start = None if init is None else optax.tree.mul(init, roots)
        solution = linear_solver.solve(lambda u: shrink(product(shrink(u))), shrink(by_params), start, tol)
        solution = eqx.tree_at(lambda s: s.value, solution, shrink(solution.value))
    _, mixed = jax.vjp(lambda hparams: jax.grad(inner)(partitioned.arrays, hparams), hparams)
    hypergradient = optax.tree.sub(by_hparams, mixed(solution.value)[0])
    # vᵀ∇L as a derivative along v: the gradient itself would lie in memory through the solve.
    _, gap = jax.jvp(lambda params: inner(params, hparams), (partitioned.arrays,), (solution.value,))
    return StationaryPoint(value, hypergradient, solution, size, jnp.abs(gap))
