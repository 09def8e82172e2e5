"""A posteriori bounds on the error of an implicit hypergradient."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from ...ground.checks import number_or_function, real
from ...ground.derivatives import jvp, linearize
from ...ground.tree import vdot
from ...ground.units import norm, unit
from ...inner import InnerState
from ...linear.base import AbstractLinearSolver, solve
from ...problem import inner_objective, outer_objective
from ...stats import Counts, Stats, Status, flag
from ...training import Training
from .implicit import StationaryPoint

StrongConvexity = float | Callable[[PyTree], Array] | None


STRONG_CONVEXITY = number_or_function(real("strong_convexity", above=0, optional=True), "hparams -> number")


class Measurement(eqx.Module):
    """The way in which the numbers of an error bound are measured.

    The strong convexity μ, where it is not given, is measured by `power_steps` linear solves, the norms by as many
    power iterations.
    """

    linear_solver: AbstractLinearSolver
    strong_convexity: StrongConvexity
    power_steps: int


class Probes(eqx.Module):
    """Unit vectors like the trained arrays, near the directions in which the norms are reached; better at every use."""

    lipschitz: PyTree
    mixed: PyTree
    weakest: PyTree

    def __init__(self, arrays: PyTree):
        # Random, because a symmetric model keeps a symmetric vector among the symmetric ones.
        draw = optax.tree.random_like(jax.random.key(0), arrays, jax.random.normal)
        self.lipschitz = self.mixed = self.weakest = unit(draw)[0]


class ErrorBound(eqx.Module):
    """The bounds, the numbers that they are made of, and the work done."""

    inner_part: Array  # the part of ω that training to the end would remove
    linear_part: Array  # the part that solving to the end would remove
    value: Array  # F - vᵀ∇L, closer to F(w*(λ)) than F
    value_error: Array
    strong_convexity: Array
    probes: Probes
    counts: Counts

    @property
    def hypergradient(self) -> Array:
        """ω >= ‖p - dF/dλ‖."""
        return self.inner_part + self.linear_part


def error_bound(training: Training, end: InnerState, v: PyTree, probes: Probes, measurement: Measurement) -> ErrorBound:
    """Returns a posteriori bounds on the error of the hypergradient p = ∂_λF - Bᵀv and of the value.

    With ψ(w, λ) = F - vᵀ∇_w L for the v at hand, p = ∂_λ ψ, r = ∂_w ψ is the residual of the linear system, and the
    hypergradient at w* is ∂_λψ - BᵀH⁻¹ ∂_wψ. Hence, with e = ‖∇_w L‖/μ >= ‖w - w*‖, K the Lipschitz constant of ∇ψ in w
    and κ = ‖B‖/μ, B = ∂²L/∂w∂λ,

        ‖p - dF/dλ‖ <= κ ‖r‖ + √(1 + κ²) K e,    |ψ(w) - F(w*)| <= ‖r‖ e + ½ K e² + rounding.

    μ is given, or the Rayleigh quotient of inverse iterations. K = ‖∂∇ψ/∂w‖ and ‖B‖
    are measured at w by power iterations. All three are approached from the side that makes the bound too small, and
    K and ‖B‖ may be larger between w and w*: then the bound is right only to first order in e.
    """
    value, residual, change, gradient, products = _linearised(training, end, v)
    power_steps = measurement.power_steps
    lipschitz, lipschitz_probe = _largest(change, probes.lipschitz, power_steps)
    mixed, mixed_probe = _largest(lambda u: products(u)[1], probes.mixed, power_steps)
    mu, weakest, hvps = _curvature(lambda u: products(u)[0], training.hparams, probes.weakest, measurement)
    convex, mu = mu > 0, jnp.where(mu > 0, mu, 1)
    error, kappa, size = norm(gradient) / mu, mixed / mu, norm(residual)
    rounding = 10 * jnp.finfo(value.dtype).eps * jnp.abs(value)
    unless = lambda bound: jnp.where(convex, bound, jnp.inf)
    # A product of the third derivative costs two of the second.
    counts = Counts(inner_gradients=2, outer_gradients=1, hvps=2 + 6 * power_steps + hvps)
    return ErrorBound(
        inner_part=unless(jnp.sqrt(1 + kappa**2) * lipschitz * error),
        linear_part=unless(kappa * size),
        value=value,
        value_error=unless(size * error + lipschitz * error**2 / 2 + rounding),
        strong_convexity=jnp.where(convex, mu, 0),
        probes=eqx.tree_at(
            lambda p: (p.lipschitz, p.mixed, p.weakest), probes, (lipschitz_probe, mixed_probe, weakest)
        ),
        counts=counts,
    )


def with_error_bound(
    stats: Stats, training: Training, end: InnerState, found: StationaryPoint, measurement: Measurement
) -> Stats:
    """Returns the statistics of a hypergradient p with `error_bound`, ω/‖p‖, which starts from random vectors.

    Nothing is computed where `measurement` has no power steps. The status is NEGATIVE_CURVATURE where there is no bound
    because H is not positive definite.
    """
    if not measurement.power_steps:
        return stats
    v = found.solution.value
    bound = error_bound(training, end, v, Probes(end.judged.arrays), measurement)
    size = norm(found.hypergradient)
    relative = jnp.where(size > 0, bound.hypergradient / jnp.where(size > 0, size, 1), jnp.inf)
    stats = stats.also(bound.counts, flag(bound.strong_convexity == 0, Status.NEGATIVE_CURVATURE))
    return eqx.tree_at(lambda s: s.diagnostics, stats, stats.diagnostics | {"error_bound": relative})


def _linearised(training: Training, end: InnerState, v: PyTree) -> Any:
    """Returns ψ, its gradient in w and the derivative in w of its whole gradient; the last two for L."""
    inner = inner_objective(training.problem, end.judged, training.keys.inner)
    outer = outer_objective(training.problem, end.judged, training.keys.outer)
    arrays, hparams = end.judged.arrays, training.hparams

    def psi(arrays: PyTree, hparams: PyTree) -> Array:
        return outer(arrays, hparams) - jvp(lambda arrays: inner(arrays, hparams), arrays, v)

    def gradients_and_psi(arrays: PyTree) -> tuple[PyTree, Array]:
        value, gradients = jax.value_and_grad(psi, argnums=(0, 1))(arrays, hparams)
        return gradients, value

    inner_gradients = lambda arrays: jax.grad(inner, argnums=(0, 1))(arrays, hparams)
    (residual, _), change, value = linearize(gradients_and_psi, arrays, has_aux=True)
    (gradient, _), products = linearize(inner_gradients, arrays)
    return value, residual, change, gradient, products


def _turned(probe: PyTree, vector: PyTree) -> PyTree:
    """Returns the direction of a vector, or the probe where it has none."""
    direction, size = unit(vector)
    return optax.tree.where(jnp.isfinite(size) & (size > 0), direction, probe)


def _largest(push: Callable[[PyTree], PyTree], probe: PyTree, steps: int) -> tuple[Array, PyTree]:
    """Returns the largest singular value of a linear map, from below, and the vector it is reached in."""
    pull = jax.linear_transpose(push, probe)

    nothing = 0 * norm(probe)

    def power(_: Array, carry: PyTree) -> PyTree:
        u, _ = carry
        image = push(u)  # like the hyperparameters it may have another precision
        return _turned(u, pull(image)[0]), norm(image).astype(nothing.dtype)

    probe, value = jax.lax.fori_loop(0, steps, power, (probe, nothing))
    return value, probe


def _curvature(
    hvp: Callable[[PyTree], PyTree], hparams: PyTree, probe: PyTree, measurement: Measurement
) -> tuple[Array, PyTree, Array | int]:
    """Returns μ, negative where a solve met negative curvature, the vector it was measured along, and the products."""
    if (given := measurement.strong_convexity) is not None:
        number = given(hparams) if callable(given) else given
        return jnp.asarray(number, norm(probe).dtype), probe, 0

    def invert(_: Array, carry: PyTree) -> PyTree:
        probe, quotient, negative, spent = carry
        start = optax.tree.scale(1 / jnp.where(quotient == 0, 1, quotient), probe)
        solution = solve(measurement.linear_solver, lambda v, *draw: hvp(v), probe, start, 0.1)
        probe = _turned(probe, solution.value)
        negative |= solution.negative_curvature
        return probe, vdot(probe, hvp(probe)), negative, spent + solution.steps + 1

    first = probe, vdot(probe, hvp(probe)), jnp.bool_(False), jnp.ones((), jnp.int32)
    probe, quotient, negative, spent = jax.lax.fori_loop(0, measurement.power_steps, invert, first)
    return jnp.where(negative, -jnp.abs(quotient), quotient), probe, spent
