"""Conjugate gradients."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from ..ground.tree import vdot
from .base import AbstractIterativeSolver, LinearSolution, MatVec, damped, first_iterate, last_iterate


class CG(AbstractIterativeSolver):
    """Conjugate gradients on (H + damping I) v = b.

    Exact after as many steps as there are parameters if H + damping I is positive definite. At a direction of
    non-positive curvature it stops and returns the iterate it has, flagged. On a singular matrix whose range does not
    hold b the iterates grow without bound: where the last one is worse than v = 0, that of least residual is returned.

    *Cost*: one product per step and one or two more, for a warm start and the residual. *Memory*: five vectors.
    *Bias*: early stopping acts like damping.
    *When not to use it*: on an indefinite Hessian, where no answer of it can be trusted.
    **Source**: Hestenes and Stiefel (1952); truncated at negative curvature as in Steihaug (1983).

    **Example**

        >>> H = jnp.array([[2.0, 1.0], [1.0, 3.0]])
        >>> found = hg.CG(2).solve(lambda v: H @ v, jnp.array([3.0, 4.0]))
        >>> found.value.round(4), int(found.steps)
        (Array([1., 1.], dtype=float32), 3)
    """

    def _solve(self, matvec: MatVec, b: PyTree, init: PyTree | None, rtol: Array | float) -> LinearSolution:
        """See `AbstractLinearSolver.solve`."""
        product = damped(matvec, self.damping)
        target = jnp.maximum(rtol, self.rtol) ** 2 * vdot(b, b)
        v, residual, spent = first_iterate(product, b, init)
        rr = vdot(residual, residual)
        start = (v, residual, residual, rr, (v, rr), jnp.int32(0), jnp.bool_(False))

        def unfinished(carry: PyTree) -> Array:
            _, _, _, rr, _, steps, negative = carry
            return (rr > target) & (steps < self.max_steps) & ~negative

        def body(carry: PyTree) -> PyTree:
            v, r, p, rr, least, steps, _ = carry
            product_p = product(p)
            curvature = vdot(p, product_p)
            negative = ~(curvature > 0)  # NaN counts as not positive
            alpha = jnp.where(negative, 0, rr / jnp.where(negative, 1, curvature))
            v = optax.tree.add_scale(v, alpha, p)
            r = optax.tree.add_scale(r, -alpha, product_p)
            rr_new = vdot(r, r)
            p = optax.tree.add_scale(r, rr_new / rr, p)
            least = optax.tree.where(rr_new < least[1], (v, rr_new), least)
            return v, r, p, rr_new, least, steps + 1, negative

        v, _, _, rr, (nearest, _), steps, negative = jax.lax.while_loop(unfinished, body, start)
        v = optax.tree.where(rr <= vdot(b, b), v, nearest)
        return last_iterate(product, b, v, steps + spent, negative)


class NormalCG(AbstractIterativeSolver):
    """Conjugate gradients on the normal equations A² v = A b with A = H + damping I, to ‖A (b - A v)‖ <= rtol ‖A b‖.

    Right for any nonsingular symmetric matrix, indefinite ones too. `MINRES` needs one product per step and converges
    with the condition number where this converges with its square. It is the default of other libraries, and here for
    comparison.

    *Cost*: two products per step, and one to three more. *Memory*: five vectors. *Bias*: that of early stopping, with
    the squared condition number.
    *When not to use it*: on anything ill-conditioned.
    **Source**: Hestenes and Stiefel (1952), section 10.

    **Example**

        >>> H = jnp.array([[2.0, 1.0], [1.0, -3.0]])  # indefinite
        >>> hg.NormalCG(2).solve(lambda v: H @ v, jnp.array([3.0, -2.0])).value.round(4)
        Array([1., 1.], dtype=float32)
    """

    def _solve(self, matvec: MatVec, b: PyTree, init: PyTree | None, rtol: Array | float) -> LinearSolution:
        """See `AbstractLinearSolver.solve`."""
        product = damped(matvec, self.damping)
        found = CG(self.max_steps, rtol=self.rtol).solve(lambda v: product(product(v)), product(b), init, rtol)
        return last_iterate(product, b, found.value, 2 * found.steps + 1, jnp.bool_(False))
