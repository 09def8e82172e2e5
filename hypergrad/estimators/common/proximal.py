"""The way from the outer gradient to the hypergradient where training ends at a fixed point of a proximal step."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from ...ground.derivatives import linearize
from ...ground.tree import pairing
from ...ground.units import norm
from ...inner import InnerState
from ...linear.base import LinearSolution, MatVec, inverse_of_largest
from ...problem import inner_objective
from ...training import Training
from .adjoint import lost_in_float16
from .implicit import Kink, LinearSystem, StationaryPoint, implicit_hypergradient, inner_gradient_norm

POWER_STEPS = 10
BISECTIONS = 40
OCTAVES = 60  # the bracket is 2^-60 ... 2^60 of the weights: from below rounding to far away


class ProximalPoint(eqx.Module):
    """The fixed point w = prox(w - γ∇f(w, λ), λ, γ) at the end of training, linearised.

    J is the derivative of the proximal step, symmetric because that step is the gradient of a convex function. The
    derivative of the whole map is A = J (I - γH).
    """

    training: Training
    end: InnerState
    hessian: MatVec
    step_size: Array  # γ
    products: int  # spent on the step size

    def __call__(self, arrays: PyTree, hparams: PyTree) -> PyTree:
        """Returns prox(w - γ∇f(w, λ), λ, γ)."""
        return self.training.inner.prox(self._moved(arrays, hparams), hparams, self.step_size)

    def _moved(self, arrays: PyTree, hparams: PyTree) -> PyTree:
        inner = inner_objective(self.training.problem, self.end.judged, self.training.keys.inner)
        return optax.tree.add_scale(arrays, -self.step_size, jax.grad(inner)(arrays, hparams))

    @property
    def before(self) -> PyTree:
        """The point to which the proximal step is applied, u = w - γ∇f."""
        return self._moved(self.end.judged.arrays, self.training.hparams)

    def prox(self, before: PyTree) -> PyTree:
        """Returns prox(u, λ, γ)."""
        return self.training.inner.prox(before, self.training.hparams, self.step_size)

    @property
    def gap(self) -> PyTree:
        """The gap prox(w - γ∇f) - w, zero at the fixed point."""
        return optax.tree.sub(self.prox(self.before), self.end.judged.arrays)

    def solve(
        self, system: LinearSystem, b: PyTree, init: PyTree | None, rtol: Array | float
    ) -> tuple[PyTree, LinearSolution]:
        """Returns v = (I - Aᵀ)⁻¹ b, and the solution of the linear system that it was computed from.

        A solver of symmetric systems solves (J(I - J) + γJHJ) z = Jb, whose operator is γJ(H + G)J with G the curvature
        of the penalty, and v = b + (I - γH)Jz. Where J only selects a support this is the Hessian on the support. Other
        solvers solve (I - Aᵀ) v = b. The residual is that of the latter system in both cases.
        """
        _, push = linearize(self.prox, self.before)
        _, pull = jax.vjp(self.prox, self.before)
        descend = lambda v, *draw: optax.tree.add_scale(v, -self.step_size, self.hessian(v, *draw))
        full = lambda v, *draw: optax.tree.sub(v, descend(pull(v)[0], *draw))
        diagonal = system.diagonal(self.training, self.end)
        if not system.solver.symmetric:
            solution = system.solve_with(full, diagonal, b, init, rtol)
            return solution.value, solution

        def symmetric(z: PyTree, *draw: Array) -> PyTree:
            y = push(z)
            return optax.tree.sub(y, push(descend(y, *draw)))

        solution = system.solve_with(symmetric, diagonal, push(b), init, rtol)
        v = optax.tree.add(b, descend(push(solution.value)))
        size = norm(b)
        residual = norm(optax.tree.sub(b, full(v))) / jnp.where(size > 0, size, 1)
        return v, eqx.tree_at(lambda s: (s.residual, s.steps), solution, (residual, solution.steps + 2))


def proximal_point(training: Training, end: InnerState, system: LinearSystem) -> ProximalPoint:
    """Returns the fixed point at `end`; γ is the solver's step size where that is a number, else 1/‖H‖."""
    hessian = system.product(training, end)
    given, arrays = training.inner.options.get("stepsize", 0.0), end.judged.arrays
    dtype = jnp.result_type(*jax.tree.leaves(arrays))
    if isinstance(given, int | float) and given > 0:
        return ProximalPoint(training, end, hessian, jnp.asarray(given, dtype), 0)
    start = optax.tree.random_like(jax.random.key(0), arrays, jax.random.normal)
    step_size = inverse_of_largest(lambda v, _: hessian(v), start, POWER_STEPS).astype(dtype)
    return ProximalPoint(training, end, hessian, step_size, POWER_STEPS)


def distance_to_solution(training: Training, state: InnerState, system: LinearSystem) -> Array:
    """Returns ‖∇_w L‖ at the weights of `state`, or where there is a proximal step ‖w - prox(w - γ∇f)‖/γ."""
    if training.inner.smooth:
        return inner_gradient_norm(training, state)
    point = proximal_point(training, state, system)
    return norm(point.gap) / point.step_size


def hypergradient_at_solution(
    training: Training, end: InnerState, system: LinearSystem, init: PyTree | None = None, rtol: Array | float = 0.0
) -> StationaryPoint:
    """Returns dF/dλ at the end of training, through the stationary point or the fixed point of a proximal step.

    With T(w, λ) = prox(w - γ∇f(w, λ), λ, γ), A = ∂T/∂w, B = ∂T/∂λ:

        dF/dλ = ∂_λ F + Bᵀ v,    (I - Aᵀ) v = ∇_w F.

    **Source**: Bertrand et al. (2022), Proposition 2.
    """
    if training.inner.smooth:
        return implicit_hypergradient(training, end, system, init, rtol)
    value, by_model, by_hparams = training.outer_value_and_grads(end)
    by_weights = by_model.arrays
    point = proximal_point(training, end, system)
    v, solution = point.solve(system, by_weights, init, rtol)
    solution = eqx.tree_at(lambda s: s.steps, solution, solution.steps + point.products)
    _, mixed = jax.vjp(lambda hparams: point(end.judged.arrays, hparams), training.hparams)
    gap, arrays = point.gap, end.judged.arrays
    change = jnp.abs(pairing(v, gap))
    rounding = 50 * jnp.finfo(value.dtype).eps * norm(by_weights) * norm(arrays)
    return StationaryPoint(
        value,
        optax.tree.add(by_hparams, mixed(v)[0]),
        solution,
        norm(gap) / point.step_size,
        change,
        rounding,
        lost_in_float16(by_weights),
        kink_of(point),
    )


def kink_of(point: ProximalPoint) -> Kink:
    """Returns the smallest change of ∇f that makes an inactive entry of w = prox(u), u = w - γ∇f, move.

    An entry is inactive where prox is constant in it. For soft thresholding by γλ the gap is min (λ - |∇_j f|), for a
    box min |∇_j f|. It is infinite where no entry is inactive, and NaN where prox is not separable. The solution is
    near a kink also where the error of u could make an active entry inactive.
    """
    flat, unravel = ravel_pytree(point.before)
    step = lambda u: ravel_pytree(point.prox(unravel(u)))[0]
    slope_at = lambda u: linearize(step, u)[1](jnp.ones_like(u))
    here, push = linearize(step, flat)
    slope, probe = push(jnp.ones_like(flat)), jax.random.normal(jax.random.key(1), flat.shape, flat.dtype)
    separable = jnp.linalg.norm(push(probe) - slope * probe) <= 1e-3 * jnp.linalg.norm(slope * probe)
    inactive, scale = slope == 0, 1 + jnp.max(jnp.abs(flat))
    moves = lambda size: (step(flat + size) != here) | (step(flat - size) != here)

    def halve(_: Array, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        moved = moves(2 ** ((low + high) / 2) * scale)
        return jnp.where(moved, low, (low + high) / 2), jnp.where(moved, (low + high) / 2, high)

    far = jnp.full_like(flat, OCTAVES)
    _, high = jax.lax.fori_loop(0, BISECTIONS, halve, (-far, far))
    gap = jnp.min(jnp.where(inactive & (high < far), 2**high * scale, jnp.inf))
    error = jnp.max(jnp.abs(ravel_pytree(point.gap)[0])) + 10 * jnp.finfo(flat.dtype).eps * scale
    leaves = ~inactive & ((slope_at(flat + error) == 0) | (slope_at(flat - error) == 0))
    return Kink(jnp.where(separable, gap, jnp.nan) / point.step_size, separable & ((gap <= error) | jnp.any(leaves)))
