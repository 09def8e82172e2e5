"""Statistics of an ensemble's predictions.

Notation: T of shape (R, N) are the predictions of R replicas for N points, D the data, C = L Lᵀ their covariance, given
as its factor L from `cholesky`, and T̄ the mean over replicas. All statistics are per point. Common arguments:

- `mask` of shape (N,): the points that count. The factor must be that of `mask_covariance`.
- `keep` of shape (R,): the replicas that count, such as those that `is_finite` finds; numbers of the others may be NaN.

All are plain functions that can be jitted and differentiated in the predictions.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve
from jax.scipy.special import ndtri
from jaxtyping import Array, ArrayLike

from .checks import concrete, fraction, has_shape, num_replicas, positive
from .covariance import whiten
from .replicas import replica_keys


class BiasVariance(NamedTuple):
    """Bias and variance, `total` = `bias` + `variance`."""

    bias: Array
    variance: Array
    total: Array


def chi2(predictions: Array, data: ArrayLike, factor: Array, mask: ArrayLike | None = None) -> Array:
    """Returns (T - D)ᵀ C⁻¹ (T - D)/N of shape (...), for predictions of shape (..., N)."""
    _check_points(predictions, factor, mask, data)
    white, count = _white(predictions - jnp.asarray(data), factor, mask)
    return jnp.sum(white**2, axis=-1) / count


def mean_chi2(
    predictions: Array,
    data: ArrayLike,
    factor: Array,
    mask: ArrayLike | None = None,
    keep: ArrayLike | None = None,
    best_fraction: float = 1.0,
) -> Array:
    """Returns <chi2> over the replicas, or over the ⌈`best_fraction` R⌉ of lowest chi2.

    The latter is robust against a few failed fits.

    **Source**: NNPDF (2024), arXiv:2410.16248; `best_fraction=0.9` is its average over the best 90 %.
    """
    return mean_of_best(_chi2_of_kept(predictions, data, factor, mask, keep), best_fraction, keep)


def mean_of_best(values: Array, best_fraction: float = 1.0, keep: ArrayLike | None = None) -> Array:
    """Returns the mean of the ⌈`best_fraction` R⌉ lowest of R values."""
    keep, count = _kept(values, keep)
    # Rounded first: 0.55 * 100 is a little above 55.
    number = jnp.ceil(jnp.round(fraction(best_fraction, "best_fraction") * count, 6))
    order = jnp.argsort(jnp.where(keep, values, jnp.inf))
    lowest = jnp.arange(len(values)) < number
    return jnp.sum(jnp.where(lowest, jnp.where(keep, values, 0)[order], 0)) / number


def phi2(predictions: Array, factor: Array, mask: ArrayLike | None = None, keep: ArrayLike | None = None) -> Array:
    """Returns the spread of the replicas in units of the errors of the data; 0 for one replica:

        φ² = <chi2[T]> - chi2[T̄] = tr(C⁻¹ Cov[T])/N

    with the covariance over R (not R - 1). The trace is what is computed: it does not cancel and needs no data.

    **Source**: NNPDF (2015), "Parton distributions for the LHC run II", equation 4.6.
    """
    _check_points(predictions, factor, mask)
    _, deviations, replicas = _moments(predictions, keep)
    white, points = _white(deviations, factor, mask)
    return jnp.sum(white**2) / (replicas * points)


def ensemble_chi2(
    predictions: Array,
    data: ArrayLike,
    factor: Array,
    mask: ArrayLike | None = None,
    keep: ArrayLike | None = None,
) -> Array:
    """Returns chi2 of the mean with the spread of the replicas counted as an error:

        (T̄ - D)ᵀ (C + Cov[T])⁻¹ (T̄ - D)/N

    with the covariance over R - 1; that of one replica is 0. *Cost*: one solve with L and one of size R.

    **Source**: Cruz-Martinez, Giani, Rabemananjara (2026), arXiv:2605.31482.
    """
    return _with_spread(predictions, data, factor, mask, keep)[0]


def negative_log_probability(
    predictions: Array,
    data: ArrayLike,
    factor: Array,
    mask: ArrayLike | None = None,
    keep: ArrayLike | None = None,
    scale: ArrayLike | None = None,
) -> Array:
    """Returns -log p(D)/N for D ~ N(T̄, C + Cov[T]), which unlike chi2 does not reward a large spread:

        ½ [ln 2π + log det(C + Cov[T])/N + ensemble_chi2]

    `scale` of shape (N,), such as the data, measures every point in units of its own size: a constant.

    **Source**: as `ensemble_chi2`.
    """
    chi2_value, logdet, points = _with_spread(predictions, data, factor, mask, keep)
    if scale is not None:
        has_shape(scale, (factor.shape[0],), "scale")
        logs = jnp.log(jnp.abs(jnp.asarray(scale)))
        logdet = logdet - 2 * jnp.sum(logs if mask is None else jnp.where(jnp.asarray(mask), logs, 0))
    return (jnp.log(2 * jnp.pi) + logdet / points + chi2_value) / 2


def bias_variance(
    predictions: Array,
    data: ArrayLike,
    factor: Array | None = None,
    mask: ArrayLike | None = None,
    keep: ArrayLike | None = None,
) -> BiasVariance:
    """Returns the parts of <chi2[T]> = chi2[T̄] + φ², the error of the mean and the spread about it.

    Without `factor` C = I, which gives the mean squared error.

    The bias includes the noise of `data`, unless those are the truth.

    **Source**: Geman, Bienenstock, Doursat (1992).
    """
    factor = jnp.eye(predictions.shape[-1], dtype=predictions.dtype) if factor is None else factor
    mean, _, _ = _moments(predictions, keep)
    bias, variance = chi2(mean, data, factor, mask), phi2(predictions, factor, mask, keep)
    return BiasVariance(bias, variance, bias + variance)


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

    with the variance over R - 1. The coverage of a calibrated ensemble equals the levels. It is not differentiable.

    **Raises** `ValueError` for one replica, or a level outside (0, 1).
    """
    levels = jnp.asarray(levels)
    if concrete(levels) and not bool(jnp.all((levels > 0) & (levels < 1))):
        raise ValueError(f"levels must be between 0 and 1, got {levels}")
    if len(predictions) < 2:
        raise ValueError("predictions holds one replica, so no spread to test; give at least 2")
    _check_points(predictions, None, mask, data)
    mean, deviations, replicas = _moments(predictions, keep)
    variance = jnp.sum(deviations**2, axis=0) / (replicas - 1)
    variance = variance if errors is None else variance + jnp.asarray(errors) ** 2
    pulls = jnp.abs(jnp.asarray(data) - mean) / jnp.sqrt(variance)
    inside = pulls <= ndtri((1 + levels[..., None]) / 2)
    points = jnp.ones(inside.shape[-1], bool) if mask is None else jnp.asarray(mask, bool)
    return jnp.sum(inside & points, axis=-1) / jnp.sum(points)


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
    steps = positive(num_levels, "num_levels") + 1
    levels = jnp.arange(1, steps, dtype=predictions.dtype) / steps
    return jnp.mean(jnp.abs(coverage(predictions, data, levels, errors, mask, keep) - levels))


def bootstrap_error(
    key: Array, statistic: Callable[[Array], Array], predictions: Array, num: int = 1000, chunk: int = 64
) -> Array:
    """Returns the standard deviation of `statistic(predictions)` over `num` ensembles resampled from the replicas.

    It is the error of the statistic that comes from the finite number of replicas. `chunk` ensembles are evaluated at
    a time.

    **Raises** `ValueError` for one replica.

    **Source**: Efron (1979).
    """
    replicas = num_replicas(predictions, "predictions")
    if replicas < 2:
        raise ValueError("predictions holds one replica, which cannot be resampled; give at least 2")

    def resampled(key: Array) -> Array:
        chosen = jax.random.randint(key, (replicas,), 0, replicas)
        return statistic(jax.tree.map(lambda leaf: leaf[chosen], predictions))

    values = jax.lax.map(resampled, replica_keys(key, positive(num, "num", 2)), batch_size=positive(chunk, "chunk"))
    return jnp.std(values, axis=0, ddof=1)


def _check_points(
    predictions: ArrayLike, factor: Array | None, mask: ArrayLike | None, data: ArrayLike | None = None
) -> None:
    points = jnp.shape(predictions)[-1:]
    if not points or points == (0,):
        raise ValueError(f"predictions must have a last axis of points, got shape {jnp.shape(predictions)}")
    if factor is not None:
        has_shape(factor, (*points, *points), "factor")
    if mask is not None:
        has_shape(mask, points, "mask")
        if concrete(mask) and not bool(jnp.any(jnp.asarray(mask))):
            raise ValueError("mask leaves no point")
        if factor is not None and concrete(mask) and concrete(factor):
            left_out = ~jnp.asarray(mask, bool)
            if not bool(jnp.all((factor == jnp.eye(points[0])) | ~(left_out[:, None] | left_out[None, :]))):
                raise ValueError("factor is not that of mask_covariance(covariance, mask): it couples masked points")
    if data is not None:
        has_shape(data, points, "data")


def _white(residuals: Array, factor: Array, mask: ArrayLike | None) -> tuple[Array, Array]:
    """Returns L⁻¹ r, and the number of points."""
    if mask is None:
        return whiten(factor, residuals), jnp.asarray(residuals.shape[-1], residuals.dtype)
    mask = jnp.asarray(mask, bool)
    return whiten(factor, jnp.where(mask, residuals, 0)), jnp.sum(mask, dtype=residuals.dtype)


def _kept(values: Array, keep: ArrayLike | None) -> tuple[Array, Array]:
    """Returns the mask of the replicas that count, and their number."""
    if keep is None:
        return jnp.ones(len(values), bool), jnp.asarray(len(values), values.dtype)
    has_shape(keep, (len(values),), "keep")
    if concrete(keep) and not bool(jnp.any(jnp.asarray(keep))):
        raise ValueError("keep leaves no replica")
    return jnp.asarray(keep, bool), jnp.sum(jnp.asarray(keep, bool), dtype=values.dtype)


def _moments(predictions: Array, keep: ArrayLike | None) -> tuple[Array, Array, Array]:
    """Returns the mean, the deviations from it (0 for replicas that do not count), and the number of replicas."""
    has_shape(predictions, (None, None), "predictions")
    keep, count = _kept(predictions, keep)
    clean = jnp.where(keep[:, None], predictions, 0)
    mean = jnp.sum(clean, axis=0) / count
    return mean, jnp.where(keep[:, None], clean - mean, 0), count


def _chi2_of_kept(
    predictions: Array, data: ArrayLike, factor: Array, mask: ArrayLike | None, keep: ArrayLike | None
) -> Array:
    has_shape(predictions, (None, None), "predictions")
    keep, _ = _kept(predictions, keep)
    return chi2(jnp.where(keep[:, None], predictions, 0), data, factor, mask)


def _with_spread(
    predictions: Array, data: ArrayLike, factor: Array, mask: ArrayLike | None, keep: ArrayLike | None
) -> tuple[Array, Array, Array]:
    """Returns chi2 and log determinant with C + Cov[T], and the number of points.

    With v = L⁻¹(T̄ - D) and A = L⁻¹(T - T̄)ᵀ/√(R - 1), C + Cov = L (I + A Aᵀ) Lᵀ, so

        vᵀ (I + A Aᵀ)⁻¹ v = |v - A y|² + |y|²,    y = (I + Aᵀ A)⁻¹ Aᵀ v,    det(I + A Aᵀ) = det(I + Aᵀ A)
    """
    _check_points(predictions, factor, mask, data)
    mean, deviations, replicas = _moments(predictions, keep)
    v, points = _white(mean - jnp.asarray(data), factor, mask)
    white, _ = _white(deviations, factor, mask)
    A = white.T / jnp.sqrt(jnp.maximum(replicas - 1, 1))
    small = jnp.linalg.cholesky(jnp.eye(A.shape[1], dtype=A.dtype) + A.T @ A)
    y = cho_solve((small, True), A.T @ v)
    logdet = 2 * (jnp.sum(jnp.log(jnp.diag(factor))) + jnp.sum(jnp.log(jnp.diag(small))))
    return (jnp.sum((v - A @ y) ** 2) + jnp.sum(y**2)) / points, logdet, points
