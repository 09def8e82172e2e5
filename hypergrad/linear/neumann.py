"""The truncated Neumann series."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from ..ground.checks import field, real
from ..ground.tree import vdot
from .base import AbstractSteppingSolver, LinearSolution, MatVec, damped, first_iterate, last_iterate


class Neumann(AbstractSteppingSolver):
    """The truncated Neumann series  v = α Σ_{k<K} (I - α(H + damping I))^k b,  K = `max_steps`.

    With α the learning rate of gradient descent this is reverse mode truncated to the last K steps, frozen at the end
    point. A warm start is corrected by the same series on its residual. `step_size=None` takes α = 1/λ̂ with λ̂ the
    largest eigenvalue after `power_steps` power iterations from b.

    *Cost*: K products, one for the residual, one for a warm start (and `power_steps`). *Memory*: three vectors.
    *Bias*: ‖error‖ <= ρ^K ‖b‖/μ with ρ = max|1 - αλ|, so 0 < α < 2/λ_max is needed.
    *When not to use it*: on an indefinite or ill-conditioned Hessian.
    **Source**: Lorraine, Vicol, Duvenaud (2020), Algorithm 3.

    **Example**

        >>> half = lambda v: v / 2
        >>> [float(hg.Neumann(k, step_size=1.0).solve(half, jnp.ones(1)).value[0]) for k in (1, 2, 3)]
        [1.0, 1.5, 1.75]
    """

    _: dataclasses.KW_ONLY
    rtol: float = field(real("rtol", least=0), 0.0)

    def _solve(self, matvec: MatVec, b: PyTree, init: PyTree | None, rtol: Array | float) -> LinearSolution:
        """See `AbstractLinearSolver.solve`."""
        product = damped(matvec, self.damping)
        alpha, power_steps = self.step(lambda v, _: product(v), b)
        target = jnp.maximum(rtol, self.rtol) ** 2 * vdot(b, b)
        v, residual, spent = first_iterate(product, b, init)

        def unfinished(carry: PyTree) -> Array:
            _, r, steps, _ = carry
            return (vdot(r, r) > target) & (steps < self.max_steps)

        def body(carry: PyTree) -> PyTree:
            v, r, steps, negative = carry
            product_r = product(r)
            negative |= ~(vdot(r, product_r) > 0)
            return (
                optax.tree.add_scale(v, alpha, r),
                optax.tree.add_scale(r, -alpha, product_r),
                steps + 1,
                negative,
            )

        start = (v, residual, jnp.int32(0), jnp.bool_(False))
        v, _, steps, negative = jax.lax.while_loop(unfinished, body, start)
        return last_iterate(product, b, v, steps + spent + power_steps, negative)
