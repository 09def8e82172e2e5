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
import numpy as np
from jaxtyping import Array, ArrayLike

from .checks import KEY, array, call, checked, concrete, factor, function, has_shape, integer, num_replicas
from .counting import BEST_FRACTION, DATA, FACTOR, KEEP, MASK, PREDICTIONS, check_points, kept, moments, whitened
from .covariance import beyond
from .ground.memory import refuse_too_large
from .replicas import replica_keys


class BiasVariance(NamedTuple):
    """Bias and variance, `total` = `bias` + `variance`."""

    bias: Array
    variance: Array
    total: Array


@checked(PREDICTIONS, DATA, FACTOR, MASK)
def chi2(predictions: Array, data: ArrayLike, factor: Array, mask: ArrayLike | None = None) -> Array:
    """Returns (T - D)ᵀ C⁻¹ (T - D)/N of shape (...), for predictions of shape (..., N).

    **Example**

        >>> [f"{one:.2f}" for one in ens.chi2(predictions, data, factor)]  # of each replica
        ['4.71', '1.71']
    """
    check_points(predictions, factor, mask, data)
    white, count = whitened(predictions - jnp.asarray(data), factor, mask)
    return jnp.sum(white**2, axis=-1) / count


@checked(PREDICTIONS, DATA, FACTOR, MASK, KEEP, BEST_FRACTION)
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

    **Example**

        >>> print(f"{ens.mean_chi2(predictions, data, factor):.3f}")
        3.208
    """
    return mean_of_best(_chi2_of_kept(predictions, data, factor, mask, keep), best_fraction, keep)


@checked(array("values", finite=False), BEST_FRACTION, KEEP)
def mean_of_best(values: Array, best_fraction: float = 1.0, keep: ArrayLike | None = None) -> Array:
    """Returns the mean of the ⌈`best_fraction` R⌉ lowest of R values; NaN counts as the highest.

    **Example**

        >>> ens.mean_of_best(jnp.array([1.0, 2.0, 9.0]), 2 / 3)
        Array(1.5, dtype=float32)
    """
    has_shape(values, (None,), "values")
    keep, count = kept(values, keep, "values")
    # Rounded first: 0.55 * 100 is a little above 55; and in 16 bits 0.7 * 10 is above 7.
    share = best_fraction * count.astype(jnp.promote_types(count.dtype, jnp.float32))
    number = jnp.ceil(jnp.round(share, 6)).astype(count.dtype)
    order = jnp.lexsort((values, ~keep))  # what does not count comes after NaN and infinity
    lowest = jnp.arange(len(values)) < number
    return jnp.sum(jnp.where(lowest, jnp.where(keep, values, 0)[order], 0)) / number


@checked(PREDICTIONS, FACTOR, MASK, KEEP)
def phi2(predictions: Array, factor: Array, mask: ArrayLike | None = None, keep: ArrayLike | None = None) -> Array:
    """Returns the spread of the replicas in units of the errors of the data; 0 for one replica:

        φ² = <chi2[T]> - chi2[T̄] = tr(C⁻¹ Cov[T])/N

    with the covariance over R (not R - 1). The trace is what is computed: it does not cancel and needs no data.

    **Source**: NNPDF (2015), "Parton distributions for the LHC run II", equation 4.6.

    **Example**

        >>> print(f"{ens.phi2(predictions, factor):.3f}")
        1.000
    """
    check_points(predictions, factor, mask)
    _, deviations, replicas = moments(predictions, keep)
    white, points = whitened(deviations, factor, mask)
    return jnp.sum(white**2) / (replicas * points)


@checked(PREDICTIONS, DATA, FACTOR, MASK, KEEP)
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

    **Example**

        >>> print(f"{ens.ensemble_chi2(predictions, data, factor):.3f}")
        1.708
    """
    return _with_spread(predictions, data, factor, mask, keep)[0]


@checked(PREDICTIONS, DATA, FACTOR, MASK, KEEP, array("scale", optional=True))
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

    **Raises** `ValueError` where `scale` is 0 at a point that counts.

    **Source**: as `ensemble_chi2`.
    """
    chi2_value, logdet, points = _with_spread(predictions, data, factor, mask, keep)
    if scale is not None:
        has_shape(scale, (factor.shape[0],), "scale", "factor")
        sizes = jnp.abs(jnp.asarray(scale) if mask is None else jnp.where(jnp.asarray(mask, bool), scale, 1))
        if concrete(sizes) and not bool(jnp.all(sizes > 0)):
            raise ValueError("scale is 0 at a point: no number is in units of it")
        logdet = logdet - 2 * jnp.sum(jnp.log(sizes))
    return (jnp.log(2 * jnp.pi) + logdet / points + chi2_value) / 2


@checked(PREDICTIONS, DATA, factor("factor", optional=True), MASK, KEEP)
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

    **Example**

        >>> found = ens.bias_variance(predictions, data)
        >>> print(f"{found.bias:.4f} + {found.variance:.4f} = {found.total:.4f}")
        0.0225 + 0.0100 = 0.0325
    """
    check_points(predictions, factor, mask, data)
    mean, deviations, replicas = moments(predictions, keep)
    misfit, points = whitened(mean - jnp.asarray(data), factor, mask)
    white, _ = whitened(deviations, factor, mask)
    bias, variance = jnp.sum(misfit**2) / points, jnp.sum(white**2) / (replicas * points)
    return BiasVariance(bias, variance, bias + variance)


@checked(KEY, function("statistic", "of predictions"), integer("num", least=2), integer("chunk", least=1))
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

    size = sum(leaf.nbytes for leaf in jax.tree.leaves(predictions) if isinstance(leaf, np.ndarray | jax.Array))
    refuse_too_large(size * min(chunk, num), "chunk")

    def resampled(key: Array) -> Array:
        chosen = jax.random.randint(key, (replicas,), 0, replicas)
        evaluate = lambda predictions: jnp.asarray(statistic(predictions))
        return call(
            "statistic", evaluate, "predictions", jax.tree.map(lambda leaf: jnp.asarray(leaf)[chosen], predictions)
        )

    values = jax.lax.map(resampled, replica_keys(key, num), batch_size=min(chunk, num))
    return jnp.std(values, axis=0, ddof=1)


def _chi2_of_kept(
    predictions: Array, data: ArrayLike, factor: Array, mask: ArrayLike | None, keep: ArrayLike | None
) -> Array:
    has_shape(predictions, (None, None), "predictions")
    keep, _ = kept(predictions, keep)
    return chi2(jnp.where(keep[:, None], predictions, 0), data, factor, mask)


def _with_spread(
    predictions: Array, data: ArrayLike, factor: Array, mask: ArrayLike | None, keep: ArrayLike | None
) -> tuple[Array, Array, Array]:
    """Returns chi2 and log determinant with C + Cov[T], and the number of points.

    With v = L⁻¹(T̄ - D) and A = L⁻¹(T - T̄)ᵀ/√(R - 1), C + Cov = L (I + A Aᵀ) Lᵀ, so

        vᵀ (I + A Aᵀ)⁻¹ v = min over y of |v - A y|² + |y|²,    det(I + A Aᵀ) = det(I + Aᵀ A)

    by least squares with A above I: Aᵀ A would lose the I in rounding where the spread is large.
    """
    check_points(predictions, factor, mask, data)
    mean, deviations, replicas = moments(predictions, keep)
    v, points = whitened(mean - jnp.asarray(data), factor, mask)
    white, _ = whitened(deviations, factor, mask)
    A = white.T / jnp.sqrt(jnp.maximum(replicas - 1, 1))
    rest, log_det = beyond(A, v)
    return jnp.sum(rest**2) / points, 2 * jnp.sum(jnp.log(jnp.diag(factor))) + log_det, points
