"""Accelerated proximal gradient descent whose momentum starts again where it points uphill."""

from typing import Any

import jax.numpy as jnp
import jaxopt


def _update(self: Any, params: Any, state: Any, hyperparams_prox: Any, *args: Any, **kwargs: Any) -> Any:
    """Returns weights w' and state after a step from y; `error` is ‖y - w'‖/γ, the proximal gradient at y.

    No prox-gradient step lengthens distances, so that the proximal gradient at w' is no larger.
    """
    before = state.velocity
    after, new = jaxopt.ProximalGradient.update(self, params, state, hyperparams_prox, *args, **kwargs)
    moved = before - after
    uphill = jnp.vdot(moved, after - params) > 0
    return after, new._replace(
        velocity=jnp.where(uphill, after, new.velocity),
        t=jnp.where(uphill, 1.0, new.t),
        error=jnp.linalg.norm(moved) / new.stepsize,
    )


# The weights are one array. Momentum that is never dropped oscillates once it is larger than the curvature asks for
# (O'Donoghue and Candès 2015, gradient scheme).
Restarted: Any = type("Restarted", (jaxopt.ProximalGradient,), {"update": _update})
