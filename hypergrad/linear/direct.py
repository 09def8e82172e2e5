"""The whole matrix at once."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from ..ground.checks import field
from .base import DAMPING, AbstractRealSolver, LinearSolution, MatVec, damped, last_iterate


class Dense(AbstractRealSolver):
    """(H + damping I)⁻¹ b with the P x P matrix written out; the yardstick of the other linear solvers.

    *Cost*: P products and P³/3. *Memory*: P². *Bias*: none but rounding; a singular matrix gives an answer that is not
    finite, flagged.
    *When not to use it*: above some thousand parameters.

    **Example**

        >>> H = jnp.array([[2.0, 1.0], [1.0, 3.0]])
        >>> hg.Dense().solve(lambda v: H @ v, jnp.array([3.0, 4.0])).value.round(4)
        Array([1., 1.], dtype=float32)
    """

    symmetric: ClassVar[bool] = False

    _: dataclasses.KW_ONLY
    damping: float = field(DAMPING, 0.0)

    def _solve(self, matvec: MatVec, b: PyTree, init: PyTree | None, rtol: Array | float) -> LinearSolution:
        """See `AbstractLinearSolver.solve`; neither `init` nor `rtol` is needed."""
        right, unravel = ravel_pytree(b)
        product = damped(matvec, self.damping)
        column = lambda e: ravel_pytree(product(unravel(e)))[0]
        matrix = jax.vmap(column, out_axes=1)(jnp.eye(right.size, dtype=right.dtype))
        smallest = jnp.linalg.eigvalsh((matrix + matrix.T) / 2)[0]
        value = unravel(jnp.linalg.solve(matrix, right))
        return last_iterate(product, b, value, jnp.int32(right.size), ~(smallest > 0))
