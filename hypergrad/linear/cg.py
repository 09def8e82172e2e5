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
        product, bb = damped(matvec, self.damping), vdot(b, b)
        target = jnp.maximum(rtol, self.rtol) ** 2 * bb
        v, r, spent = first_iterate(product, b, init)

        def aim(v: PyTree, r: PyTree, p: PyTree, rr: Array, least: PyTree, going: Array) -> tuple[PyTree, PyTree]:
            # The last product is that of the solution: one program for all of them, which is compiled once.
            return optax.tree.where(going, (r, p), (b, optax.tree.where(rr <= bb, v, least)))

        def going_on(rr: Array, steps: Array, negative: Array) -> Array:
            return (rr > target) & (steps < self.max_steps) & ~negative

        def body(carry: PyTree) -> PyTree:
            v, (r, p), rr, (least, smallest), steps, negative, going, _ = carry
            product_p = product(p)
            curvature = vdot(p, product_p)
            negative |= going & ~(curvature > 0)  # NaN counts as not positive
            alpha = jnp.where(negative, 0, rr / jnp.where(negative, 1, curvature))
            v = optax.tree.where(going, optax.tree.add_scale(v, alpha, p), p)
            r = optax.tree.add_scale(r, -jnp.where(going, alpha, 1), product_p)
            rr_new = vdot(r, r)
            p = optax.tree.add_scale(r, rr_new / rr, p)
            least, smallest = optax.tree.where(rr_new < smallest, (v, rr_new), (least, smallest))
            steps += going.astype(steps.dtype)
            more = going & going_on(rr_new, steps, negative)
            return v, aim(v, r, p, rr_new, least, more), rr_new, (least, smallest), steps, negative, more, ~going

        rr, steps, no = vdot(r, r), jnp.int32(0), jnp.bool_(False)
        going = going_on(rr, steps, no)
        start = (v, aim(v, r, r, rr, v, going), rr, (v, rr), steps, no, going, no)
        v, _, rr, _, steps, negative, *_ = jax.lax.while_loop(lambda carry: ~carry[-1], body, start)
        residual = jnp.sqrt(rr) / jnp.where(bb > 0, jnp.sqrt(bb), 1)
        return LinearSolution(v, residual, steps + (spent + 1), negative)


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
