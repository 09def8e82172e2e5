"""The points and the replicas that count in a statistic, and the rules of its arguments."""

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from .checks import array, concrete, factor, has_shape, mask, real
from .covariance import whiten

PREDICTIONS, DATA, FACTOR = array("predictions", finite=False), array("data"), factor()
MASK, KEEP = mask("mask", optional=True), mask("keep", optional=True)
BEST_FRACTION = real("best_fraction", above=0, most=1)


def check_points(
    predictions: ArrayLike, factor: Array | None, mask: ArrayLike | None, data: ArrayLike | None = None
) -> None:
    """Raises `ValueError` naming what has no last axis of points, another number of them, or leaves none."""
    points = jnp.shape(predictions)[-1:]
    if not points or points == (0,):
        raise ValueError(f"predictions must have a last axis of points, got shape {jnp.shape(predictions)}")
    for name, value, shape in (("factor", factor, (*points, *points)), ("mask", mask, points), ("data", data, points)):
        if value is not None:
            has_shape(value, shape, name, "predictions")
    if mask is not None:
        if concrete(mask) and not bool(jnp.any(jnp.asarray(mask))):
            raise ValueError("mask leaves no point")
        if factor is not None and concrete(mask) and concrete(factor):
            left_out = ~jnp.asarray(mask, bool)
            if not bool(jnp.all((factor == jnp.eye(points[0])) | ~(left_out[:, None] | left_out[None, :]))):
                raise ValueError("factor is not that of mask_covariance(covariance, mask): it couples masked points")


def whitened(residuals: Array, factor: Array | None, mask: ArrayLike | None) -> tuple[Array, Array]:
    """Returns L⁻¹ r, r itself without a factor, and the number of points."""
    white = (lambda residuals: residuals) if factor is None else (lambda residuals: whiten(factor, residuals))
    if mask is None:
        return white(residuals), jnp.asarray(residuals.shape[-1], residuals.dtype)
    mask = jnp.asarray(mask, bool)
    return white(jnp.where(mask, residuals, 0)), jnp.sum(mask, dtype=residuals.dtype)


def kept(values: Array, keep: ArrayLike | None, name: str = "predictions") -> tuple[Array, Array]:
    """Returns the mask of the replicas that count, and their number."""
    if keep is None:
        return jnp.ones(len(values), bool), jnp.asarray(len(values), values.dtype)
    has_shape(keep, (len(values),), "keep", name)
    if concrete(keep) and not bool(jnp.any(jnp.asarray(keep))):
        raise ValueError("keep leaves no replica")
    return jnp.asarray(keep, bool), jnp.sum(jnp.asarray(keep, bool), dtype=values.dtype)


def moments(predictions: Array, keep: ArrayLike | None) -> tuple[Array, Array, Array]:
    """Returns the mean, the deviations from it (0 for replicas that do not count), and the number of replicas."""
    has_shape(predictions, (None, None), "predictions")
    keep, count = kept(predictions, keep)
    clean = jnp.where(keep[:, None], predictions, 0)
    mean = jnp.sum(clean, axis=0) / count
    return mean, jnp.where(keep[:, None], clean - mean, 0), count
