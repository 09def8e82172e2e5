"""No solve at all."""

import dataclasses

import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from ..ground.checks import field, real
from .base import AbstractRealSolver, LinearSolution, MatVec, measured


class Identity(AbstractRealSolver):
    """v = `scale` · b, as if H were the identity; with a preconditioner D, v = `scale` · D⁻¹ b.

        hg.Implicit(inner, hg.linear.Identity(), preconditioner=hg.curvature.AdamDiagonal(learning_rate=1e-3))

    is the hypergradient through Adam's own diagonal.

    *Cost*: one product, for the residual. *Memory*: one vector. *Bias*: exact up to its length where D is proportional
    to H; else of order one.
    *When not to use it*: where the length of the hypergradient matters: `CG(1)` with the same preconditioner takes the
    best multiple of the same direction for one product more.

    **Source**: Luketina, Berglund, Greff, Raiko (2016) for the identity; Choe et al. (2023), SAMA, for the diagonal.
    There it is ∂u/∂g, the derivative of Adam's update u by the gradient g, for which see `OneStep` with Adam.

    **Example**

        >>> hg.linear.Identity(scale=0.5).solve(lambda v: v, jnp.array([3.0, 4.0])).value
        Array([1.5, 2. ], dtype=float32)
    """

    _: dataclasses.KW_ONLY
    scale: float = field(real("scale", above=0), 1.0)

    def _solve(self, matvec: MatVec, b: PyTree, init: PyTree | None, rtol: Array | float) -> LinearSolution:
        """See `AbstractLinearSolver.solve`; neither `init` nor `rtol` is used."""
        return measured(matvec, b, optax.tree.scale(self.scale, b), jnp.int32(0))
