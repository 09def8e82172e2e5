"""A low-rank approximation of the Hessian, inverted in closed form."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from ..ground.checks import field, integer, real
from .base import AbstractRealSolver, LinearSolution, MatVec, damped, last_iterate


class Nystrom(AbstractRealSolver):
    """v = (damping I + C W⁺ Cᵀ)⁻¹ b with `rank` columns C = H[:, S] and W = H[S, S].

    By the Woodbury identity v = (b - C (damping W + CᵀC)⁺ Cᵀ b) / damping, where ⁺ leaves out what is singular. With
    all columns C W⁺ Cᵀ = H, and v = (H + damping I)⁻¹ b. The columns are a random choice fixed by `seed`.

    *Cost*: `rank` products, all at once, and one for the residual; no iteration, so nothing diverges. *Memory*: `rank`
    vectors. *Bias*: what the columns do not span is treated as zero curvature: there v = b / damping.
    *When not to use it*: where the spectrum of H falls slowly and `damping` is far below it.
    **Source**: Hataya and Yamada (2023), equation 6.

    **Example**

        >>> hg.Nystrom(2, damping=1e-3).solve(lambda v: 2 * v, jnp.array([1.0, 2.0])).value.round(2)
        Array([0.5, 1. ], dtype=float32)
    """

    rank: int = field(integer("rank", least=1), 20)
    _: dataclasses.KW_ONLY
    damping: float = field(real("damping", above=0), 0.01)  # H is approximated by a singular matrix
    seed: int = field(integer("seed", least=0), 0)

    def _solve(self, matvec: MatVec, b: PyTree, init: PyTree | None, rtol: Array | float) -> LinearSolution:
        """See `AbstractLinearSolver.solve`; neither `init` nor `rtol` is needed."""
        right, unravel = ravel_pytree(b)
        rank = min(self.rank, right.size)
        chosen = jax.random.permutation(jax.random.key(self.seed), right.size)[:rank]
        unit = lambda i: jnp.zeros_like(right).at[i].set(1)
        columns = jax.vmap(lambda i: ravel_pytree(matvec(unravel(unit(i))))[0])(chosen)  # Cᵀ: (rank, P)
        square = columns[:, chosen]
        inner = self.damping * square + columns @ columns.T
        pseudo_inverse = jnp.linalg.pinv((inner + inner.T) / 2, hermitian=True)
        value = unravel((right - columns.T @ (pseudo_inverse @ (columns @ right))) / self.damping)
        negative = ~(jnp.linalg.eigvalsh((square + square.T) / 2)[0] > 0)
        return last_iterate(damped(matvec, self.damping), b, value, jnp.int32(rank), negative)
