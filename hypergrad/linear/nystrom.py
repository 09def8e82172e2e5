"""A low-rank approximation of the Hessian, inverted in closed form."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from ..ground.checks import field, integer, real
from ..ground.units import exponent, shifted
from .base import AbstractRealSolver, LinearSolution, MatVec, damped, last_iterate


class Nystrom(AbstractRealSolver):
    """v = (δI + C W⁺ Cᵀ)⁻¹ b with `rank` columns C = H[:, S] and W = H[S, S].

    By the Woodbury identity v = (b - C (δW + CᵀC)⁺ Cᵀ b) / δ, where ⁺ leaves out what is singular. With all columns
    C W⁺ Cᵀ = H, and v = (H + δI)⁻¹ b. The columns are a random choice fixed by `seed`.

    **Arguments**: `rank`; the damping δ > 0, which is either `damping` itself, in the units of H, or without it

        δ = relative_damping ‖C‖₂,    ‖C‖₂ the largest singular value of C, at most that of H

    and then a multiple c H has the solution v/c.

    *Cost*: `rank` products, all at once, and one for the residual; no iteration, so nothing diverges. *Memory*: `rank`
    vectors. *Bias*: what the columns do not span is treated as zero curvature: there v = b/δ.
    *When not to use it*: where the spectrum of H falls slowly and δ is far below it.
    **Source**: Hataya and Yamada (2023), equation 6, with δ in the units of H; Frangella, Tropp and Udell (2023),
    Algorithm 2.1, for a shift in units of the norm of the sketch.

    **Example**

        >>> hg.Nystrom(2, damping=1e-3).solve(lambda v: 2 * v, jnp.array([1.0, 2.0])).value.round(2)
        Array([0.5, 1. ], dtype=float32)
    """

    rank: int = field(integer("rank", least=1), 20)
    _: dataclasses.KW_ONLY
    damping: float | None = field(real("damping", above=0, optional=True), None)
    relative_damping: float = field(real("relative_damping", above=0), 0.01)
    seed: int = field(integer("seed", least=0), 0)

    def _solve(self, matvec: MatVec, b: PyTree, init: PyTree | None, rtol: Array | float) -> LinearSolution:
        """See `AbstractLinearSolver.solve`; neither `init` nor `rtol` is needed."""
        right, unravel = ravel_pytree(b)
        rank = min(self.rank, right.size)
        chosen = jax.random.permutation(jax.random.key(self.seed), right.size)[:rank]
        one = lambda i: jnp.zeros_like(right).at[i].set(1)
        columns = jax.vmap(lambda i: ravel_pytree(matvec(unravel(one(i))))[0])(chosen)  # Cᵀ: (rank, P)
        power = exponent(columns)
        columns = shifted(columns, -power)  # H in a unit in which no square leaves the range of numbers
        square, products = columns[:, chosen], columns @ columns.T
        damping = self._damping(products, power)
        inner = damping * square + products
        pseudo_inverse = jnp.linalg.pinv((inner + inner.T) / 2, hermitian=True)
        value = (right - columns.T @ (pseudo_inverse @ (columns @ right))) / damping
        negative = ~(jnp.linalg.eigvalsh((square + square.T) / 2)[0] > 0)
        system = damped(matvec, shifted(damping, power))
        return last_iterate(system, b, unravel(shifted(value, -power)), jnp.int32(rank), negative)

    def _damping(self, products: Array, power: Array) -> Array:
        """Returns δ in units of 2^power, in which CᵀC is given."""
        if self.damping is not None:
            return shifted(jnp.asarray(self.damping, products.dtype), -power)
        largest = jnp.sqrt(jnp.linalg.eigvalsh(products)[-1])
        return self.relative_damping * jnp.where(largest > 0, largest, 1)
