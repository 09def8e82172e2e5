"""Calibration: the spread of an ensemble's predictions against their errors; arguments as in `statistics`."""

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri
from jaxtyping import Array, ArrayLike

from .checks import array, checked, concrete, has_shape, integer
from .counting import DATA, KEEP, MASK, PREDICTIONS, check_points, moments


@checked(PREDICTIONS, DATA, array("levels"), array("errors", optional=True), MASK, KEEP)
def coverage(
    predictions: Array,
    data: ArrayLike,
    levels: ArrayLike,
    errors: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    keep: ArrayLike | None = None,
) -> Array:
    """Returns the fraction of points within the central Gaussian interval of each of `levels`, of the same shape:

        |D - T̄| <= Φ⁻¹((1 + level)/2) √(Var[T] + errors²)

    with the variance over R - 1. The coverage of a calibrated ensemble equals the levels. It is not differentiable, and
    NaN where a prediction that counts is not finite.

    **Raises** `ValueError` for one replica, or a level outside (0, 1).
    """
    levels = jnp.asarray(levels)
    if concrete(levels) and not np.all((np.asarray(levels) > 0) & (np.asarray(levels) < 1)):
        raise ValueError(f"levels must be between 0 and 1, got {levels}")
    has_shape(predictions, (None, None), "predictions")
    if len(predictions) < 2:
        raise ValueError("predictions holds one replica, so no spread to test; give at least 2")
    check_points(predictions, None, mask, data)
    if errors is not None and np.ndim(errors):
        has_shape(errors, predictions.shape[1:], "errors", "predictions")
    mean, deviations, replicas = moments(predictions, keep)
    if concrete(replicas) and replicas < 2:
        raise ValueError("keep leaves one replica, so no spread to test; at least 2 must count")
    variance = jnp.sum(deviations**2, axis=0) / (replicas - 1)
    variance = variance if errors is None else variance + jnp.asarray(errors) ** 2
    distance = jnp.abs(jnp.asarray(data) - mean)
    inside = distance <= ndtri((1 + levels[..., None]) / 2) * jnp.sqrt(variance)
    points = jnp.ones(inside.shape[-1], bool) if mask is None else jnp.asarray(mask, bool)
    known = jnp.all(jnp.where(points, jnp.isfinite(mean), True)) & (replicas > 1)
    return jnp.where(known, jnp.sum(inside & points, axis=-1) / jnp.sum(points), jnp.nan)


@checked(PREDICTIONS, DATA, array("errors", optional=True), MASK, KEEP, integer("num_levels", least=1, most=10**4))
def calibration_error(
    predictions: Array,
    data: ArrayLike,
    errors: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    keep: ArrayLike | None = None,
    num_levels: int = 19,
) -> Array:
    """Returns the mean of |coverage - level| over equally spaced levels, 0.05 to 0.95 by default.

    **Source**: Kuleshov, Fenner, Ermon (2018).
    """
    steps = num_levels + 1
    levels = jnp.arange(1, steps, dtype=predictions.dtype) / steps
    return jnp.mean(jnp.abs(coverage(predictions, data, levels, errors, mask, keep) - levels))
