"""Conjugate gradients with a damping that the data choose."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from ..ground.checks import field, integer, real
from ..ground.tree import vdot
from ..ground.units import norm
from .base import AbstractRealSolver, LinearSolution, MatVec, damped
from .cg import CG

FIRST, FACTOR = 1e-2, 4.0  # the first damping above 0, in units of ‖Hb‖/‖b‖, and that of later ones over the one before
TRUSTED = 0.25  # ratio of measured to predicted from which a solution is taken


class LevenbergMarquardt(AbstractRealSolver):
    """Conjugate gradients on (H + δI) v = b, with the smallest damping δ at which the solution can be trusted.

    v maximises bᵀv - ½ vᵀ(H + δI)v, the predicted gain. It is measured with a draw H_j that v does not know, and

        ρ = (bᵀv - ½ vᵀ H_j v) / (bᵀv - ½ vᵀ(H + δI)v)

    is the ratio of both. The solution is taken if ρ >= ¼ and no direction of negative curvature was met. Else δ grows:
    0, then ‖Hb‖/‖b‖ · 0.01 · 4^k. So a positive definite H that is the same for all batches is solved as `CG` does, and
    the one of a few batches is damped where it promises what others do not keep.

    **Arguments**: `max_steps` of conjugate gradients for each δ; `max_tries`, the number of δ; `rtol`, the relative
    residual to stop at.

    *Cost*: for every δ that is tried, up to `max_steps` + 4 products, of which one with a draw of its own and fewer
    where a direction of negative curvature ends the attempt; and one more. *Memory*: six vectors. *Bias*: that of the
    damping, δ v.
    *When not to use it*: on all rows with a Hessian that is positive definite.

    **Source**: Martens (2010), section 4.1, for the ratio and ¼. There δ moves by a factor at every step of an
    optimiser, here within one solve, and the measured gain is that of another batch.
    """

    stochastic: ClassVar[bool] = True

    max_steps: int = field(integer("max_steps", least=1), 20)
    _: dataclasses.KW_ONLY
    max_tries: int = field(integer("max_tries", least=1), 8)
    rtol: float = field(real("rtol", least=0), 1e-6)

    def _solve(self, matvec: MatVec, b: PyTree, init: PyTree | None, rtol: Array | float) -> LinearSolution:
        """See `AbstractLinearSolver.solve`; the residual is that of the damped system."""
        size = norm(b)
        scale = norm(matvec(b)) / jnp.where(size > 0, size, 1)
        cg = CG(self.max_steps, rtol=self.rtol)

        def attempt(carry: PyTree) -> PyTree:
            tries, before, _ = carry
            damping = jnp.where(tries == 0, 0, FIRST * FACTOR ** (tries - 1).astype(scale.dtype) * scale)
            system = damped(matvec, damping)
            found = cg._solve(system, b, init, rtol)
            gain = lambda operator: vdot(b, found.value) - vdot(found.value, operator(found.value)) / 2
            predicted, measured = gain(system), gain(lambda v: matvec(v, tries))
            trusted = ~found.negative_curvature & (predicted >= 0) & (measured >= TRUSTED * predicted)
            spent = dataclasses.replace(found, steps=before.steps + found.steps + 2, draws=before.draws + 1)
            return tries + 1, spent, trusted

        def unfinished(carry: PyTree) -> Array:
            tries, _, trusted = carry
            return (tries < self.max_tries) & ~trusted

        none = LinearSolution(
            optax.tree.zeros_like(b), jnp.ones_like(size), jnp.int32(1), jnp.bool_(False), jnp.int32(0)
        )
        return jax.lax.while_loop(unfinished, attempt, (jnp.int32(0), none, jnp.bool_(False)))[1]
