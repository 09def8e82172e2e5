"""Stochastic gradient descent on the linear system."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from ..ground.tree import all_finite
from .base import AbstractSteppingSolver, LinearSolution, MatVec, damped, measured


class SGD(AbstractSteppingSolver):
    """Stochastic gradient descent on ½ vᵀHv - bᵀv, with another draw H_j of the operator at every step.

        v <- v - α (H_j v + damping v - b),    `max_steps` times

    Under `Implicit`, without a start, v begins at αb. Then K steps are the Neumann series with fresh batches,

        v = α Σ_{q<=K} Π_{j<q} (I - αH_{K-1-j}) b,    E v = α Σ_{q<=K} (I - αH)^q b,    H = E H_j,

    without a bias but that of the truncation: the batches of a product are independent. Under `HOAG` v goes on from
    the last solution, so that a few steps follow a problem that changes slowly: v - H⁻¹b contracts by I - αH per step.

    **Arguments**: `max_steps`; `damping`, added to the diagonal; `step_size`, α, or `None` for 1/λ̂ with λ̂ the largest
    eigenvalue after `power_steps` power iterations, each with a draw of its own. Tolerances do not stop it.

    *Cost*: one product and one gradient per step, because every draw is linearised anew, as many for every power
    iteration, and one product for the residual and the sign of vᵀHv, which are those of one fixed draw. *Memory*: two
    vectors. *Bias*:
    (I - αH)^(K+1) H⁻¹b from αb; for symmetric noise σ² of one eigenvalue h the variance of v stays bounded only if
    α < 2h/(h² + σ²), and is proportional to α.
    *When not to use it*: where k batches can be averaged: `CG` on their mean needs far fewer products.

    **Source**: Ji, Yang, Liang (2021), stocBiO, for the series with fresh batches, whose law that from αb is; Arbel and
    Mairal (2022), AmIGO, for the warm start.
    """

    stochastic: ClassVar[bool] = True

    def _solve(self, matvec: MatVec, b: PyTree, init: PyTree | None, rtol: Array | float) -> LinearSolution:
        """See `AbstractLinearSolver.solve`; `rtol` is not used. A start that is not finite is replaced by αb."""
        product = damped(matvec, self.damping)
        alpha, spent = self.step(product, b)
        first = optax.tree.scale(alpha, b)
        start = first if init is None else optax.tree.where(all_finite(init), init, first)

        def body(j: Array, v: PyTree) -> PyTree:
            return optax.tree.add_scale(v, alpha, optax.tree.sub(b, product(v, spent + j)))

        v = jax.lax.fori_loop(0, self.max_steps, body, start)
        steps = jnp.int32(self.max_steps + spent)
        return dataclasses.replace(measured(product, b, v, steps), draws=steps)
