"""Krylov methods of least residual: for indefinite and for slightly asymmetric operators."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import optax
from jax.scipy.sparse.linalg import gmres
from jaxtyping import Array, PyTree

from ..ground.tree import vdot
from ..ground.units import norm, unit
from .base import AbstractIterativeSolver, LinearSolution, MatVec, damped, first_iterate, last_iterate


class MINRES(AbstractIterativeSolver):
    """The vector of least residual in the Krylov space of a symmetric matrix H + damping I, indefinite or not.

    Right where `CG` stops: the residual never grows, and a direction of negative curvature is no obstacle (it is still
    flagged: there the inner problem is at a saddle, not at a minimum).

    *Cost*: one product per step and one or two more. *Memory*: seven vectors. *Bias*: early stopping acts like damping.
    *When not to use it*: on operators that are not symmetric; see `GMRES`.
    **Source**: Paige and Saunders (1975), section 6.

    **Example**

        >>> H = jnp.array([[2.0, 1.0], [1.0, -3.0]])  # indefinite
        >>> hg.MINRES(2).solve(lambda v: H @ v, jnp.array([3.0, -2.0])).value.round(4)
        Array([1., 1.], dtype=float32)
    """

    def _solve(self, matvec: MatVec, b: PyTree, init: PyTree | None, rtol: Array | float) -> LinearSolution:
        """See `AbstractLinearSolver.solve`."""
        product = damped(matvec, self.damping)
        v, residual, spent = first_iterate(product, b, init)
        (first, size), zero = unit(residual), optax.tree.zeros_like(b)
        target = jnp.maximum(rtol, self.rtol) * norm(b)
        one, nought = jnp.ones_like(size), jnp.zeros_like(size)

        def unfinished(carry: PyTree) -> Array:
            _, _, (eta, beta, *_), steps, _ = carry
            return (jnp.abs(eta) > target) & (beta > 0) & (steps < self.max_steps)

        def body(carry: PyTree) -> PyTree:
            v, (q_old, q, d_old, d), (eta, beta, c_old, c, s_old, s), steps, negative = carry
            # Lanczos: one more column of the tridiagonal matrix
            image = product(q)
            alpha = vdot(q, image)
            image = optax.tree.add_scale(optax.tree.add_scale(image, -alpha, q), -beta, q_old)
            q_next, beta_next = unit(image)
            # the two rotations before, then a new one
            epsilon, delta = s_old * beta, c * c_old * beta + s * alpha
            gamma = c * alpha - s * c_old * beta
            rho = jnp.sqrt(gamma**2 + beta_next**2)
            safe = jnp.where(rho > 0, rho, 1)
            c_next, s_next = gamma / safe, beta_next / safe
            direction = optax.tree.add_scale(optax.tree.add_scale(q, -delta, d), -epsilon, d_old)
            direction = optax.tree.scale(1 / safe, direction)
            v = optax.tree.add_scale(v, c_next * eta, direction)
            scalars = (-s_next * eta, jnp.where(rho > 0, beta_next, 0), c, c_next, s, s_next)
            return v, (q, q_next, d, direction), scalars, steps + 1, negative | ~(gamma * c > 0)

        vectors = (zero, first, zero, zero)
        start = (v, vectors, (size, one, one, one, nought, nought), jnp.int32(0), jnp.bool_(False))
        v, _, _, steps, negative = jax.lax.while_loop(unfinished, body, start)
        return last_iterate(product, b, v, steps + spent, negative)


class GMRES(AbstractIterativeSolver):
    """The vector of least residual in a Krylov space of `max_steps` dimensions, for any nonsingular operator.

    It is made for operators that are not symmetric, such as the derivative of a fixed-point map that is no gradient
    step. For symmetric ones `MINRES` finds the same vector with less memory.

    *Cost*: `max_steps` products and two or three more, whatever the tolerance. *Memory*: `max_steps` + 3 vectors.
    *Bias*: early stopping acts like damping. Negative curvature is not detected.
    *When not to use it*: on symmetric operators.
    **Source**: Saad and Schultz (1986), through `jax.scipy.sparse.linalg.gmres`.

    **Example**

        >>> A = jnp.array([[2.0, 1.0], [0.0, 3.0]])  # not symmetric
        >>> hg.GMRES(2).solve(lambda v: A @ v, jnp.array([3.0, 3.0])).value.round(4)
        Array([1., 1.], dtype=float32)
    """

    symmetric: ClassVar[bool] = False

    def _solve(self, matvec: MatVec, b: PyTree, init: PyTree | None, rtol: Array | float) -> LinearSolution:
        """See `AbstractLinearSolver.solve`."""
        product = damped(matvec, self.damping)
        v, _, spent = first_iterate(product, b, init)
        target = jnp.maximum(rtol, self.rtol)
        v, _ = gmres(product, b, v, tol=target, restart=self.max_steps, maxiter=1, solve_method="batched")
        return last_iterate(product, b, v, jnp.int32(self.max_steps + 1 + spent), jnp.bool_(False))
