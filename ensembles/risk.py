"""Stein's unbiased risk estimate: a criterion on the training data alone, for Gaussian noise of known variance."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .checks import KEY, array, checked, concrete, has_shape, real

NOISE_VARIANCE = real("noise_variance", above=0)


@checked(KEY, array("targets"), real("step", above=0))
def probed_targets(key: Array, targets: Array, step: float) -> Array:
    """Returns the targets, and the targets moved by `step` in random directions ±1, of shape (2, rows).

    Train one model on each, for example with `replicate_loss`. The derivative of the predictions is taken from their
    difference: `step` must be small compared with the noise, and large compared with the error of training.
    """
    has_shape(targets, (None,), "targets")
    moved = targets + step * jax.random.rademacher(key, targets.shape, targets.dtype)
    if concrete(moved) and bool(jnp.any(moved == targets)):
        raise ValueError(f"step {step:g} is lost in the rounding of targets, which are {targets.dtype}")
    return jnp.stack([targets, moved])


@checked(array("predictions", finite=False), array("targets"), NOISE_VARIANCE)
def sure(predictions: Array, targets: Array, noise_variance: Array | float) -> Array:
    """Returns an unbiased estimate of the mean squared error E ‖f(y) - E y‖²/n of predictions on the training rows.

        ‖f(y) - y‖²/n - σ² + 2σ²/n δᵀ(f(y + ε δ) - f(y))/ε

    **Arguments**: `predictions` of the models that were trained on `targets`, both of shape (2, rows), the latter from
    `probed_targets`; `noise_variance`, σ². It is differentiable: as outer loss it needs no validation rows. *Cost*: a
    second model. The noise of the random direction falls with the number of rows.

    **Source**: Stein (1981); Ramani, Blu, Unser (2008), equation 12, for the finite difference.

    **Example**

        >>> targets = ens.probed_targets(key, data, step=1e-2)
        >>> print(f"{ens.sure(0.9 * targets, targets, noise_variance=0.01):.3f}")
        0.084
    """
    has_shape(targets, (2, None), "targets")
    has_shape(predictions, jnp.shape(targets), "predictions", "targets")
    moved = targets[1] - targets[0]
    degrees_of_freedom = jnp.vdot(moved, predictions[1] - predictions[0]) / jnp.mean(moved**2)
    misfit = jnp.mean((predictions[0] - targets[0]) ** 2)
    return misfit - noise_variance + 2 * noise_variance * degrees_of_freedom / targets.shape[1]
