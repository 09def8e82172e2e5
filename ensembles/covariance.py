"""Covariances of measurements, and residuals in units of their errors."""

import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, ArrayLike

from .checks import array, checked, concrete, factor, has_shape, mask


@checked(array("uncorrelated"), array("additive"), array("relative"), array("central"))
def covariance(uncorrelated: ArrayLike, additive: ArrayLike, relative: ArrayLike, central: ArrayLike) -> Array:
    """Returns the covariance of N points from their errors:

        C = diag(u²) + A Aᵀ + M Mᵀ,    M_is = relative_is · central_i

    **Arguments**

    - `uncorrelated`: u of shape (N,), statistical and uncorrelated systematic errors in quadrature, absolute.
    - `additive`: A of shape (N, sources), one-sigma shifts by a common source, absolute.
    - `relative`: of shape (N, sources), one-sigma shifts by a common source, as a fraction of the value.
    - `central`: the values of shape (N,) that `relative` multiplies: the data give the experimental covariance, the
      predictions of an earlier fit the t0 covariance, which does not prefer low predictions.

    **Source**: d'Agostini (1994); Ball et al. (2010), "Fitting parton distribution data with multiplicative
    normalization uncertainties".

    **Example**

        >>> u, common = jnp.array([0.1, 0.2]), jnp.array([[0.1], [0.1]])
        >>> ens.covariance(u, common, relative=jnp.zeros((2, 0)), central=jnp.ones(2)).round(3)
        Array([[0.02, 0.01],
               [0.01, 0.05]], dtype=float32)
    """
    u, A, fractions, central = map(jnp.asarray, (uncorrelated, additive, relative, central))
    has_shape(u, (None,), "uncorrelated")
    has_shape(A, (len(u), None), "additive", "uncorrelated")
    has_shape(fractions, (len(u), None), "relative", "uncorrelated")
    has_shape(central, u.shape, "central", "uncorrelated")
    M = fractions * central[:, None]
    return jnp.diag(u**2) + A @ A.T + M @ M.T


@checked(array("covariance", host=None))
def cholesky(covariance: ArrayLike) -> Array:
    """Returns the lower factor L of C = L Lᵀ, which the statistics take in place of C.

    An array of NumPy is factored in float64, because a nearly singular one loses its digits in float32. A
    `RuntimeWarning` says where errors of rounding exceed one percent.

    **Raises** `ValueError` where `covariance` is empty, not square, not symmetric, not finite or not positive definite,
    `TypeError` where its numbers have 16 bits.

    **Example**

        >>> ens.cholesky(jnp.array([[4.0, 2.0], [2.0, 5.0]]))
        Array([[2., 0.],
               [1., 2.]], dtype=float32)
    """
    C: Any = covariance
    has_shape(C, (None, None), "covariance")
    has_shape(C, (len(C), len(C)), "covariance")
    if C.size == 0:
        raise ValueError("covariance has no points")
    if C.dtype.itemsize < 4:
        raise TypeError(f"covariance must be float32 or float64, which can be factored, got {C.dtype}")
    if not concrete(C):
        return jnp.linalg.cholesky(C)
    values, dtype = np.asarray(C), jax.dtypes.canonicalize_dtype(C.dtype)
    error, size = np.max(np.abs(values - values.T)), np.max(np.abs(values))
    if error > 100 * np.finfo(dtype).eps * size:
        raise ValueError(f"covariance is not symmetric: entries differ by {error:.3g} across the diagonal")
    lower = jnp.linalg.cholesky(C) if isinstance(C, jax.Array) else jnp.asarray(_factor(values), dtype)
    if not (jnp.all(jnp.isfinite(lower)) and jnp.all(jnp.diagonal(lower) > 0)):
        smallest = np.linalg.eigvalsh(values)[0]
        raise ValueError(f"covariance is not positive definite: its smallest eigenvalue is {smallest:.3g}")
    _warn_of_rounding(values, np.asarray(lower))
    return lower


def _factor(C: np.ndarray) -> np.ndarray:
    """Returns the factor in float64, NaN where there is none."""
    try:
        return np.linalg.cholesky(C.astype(np.float64))
    except np.linalg.LinAlgError:
        return np.full(C.shape, np.nan)


def _warn_of_rounding(C: np.ndarray, lower: np.ndarray) -> None:
    """Warns where a point follows from those before it but for what rounding, of C or of L, adds to its variance."""
    share = np.min((np.diagonal(lower) / np.sqrt(np.diagonal(C))) ** 2)
    error = max(np.finfo(C.dtype).eps / share, np.finfo(lower.dtype).eps / math.sqrt(share))
    if error > 0.01:
        text = f"covariance is nearly singular: in {C.dtype} what is divided by it errs by about {error:.1g} of itself"
        warnings.warn(f"{text}; give it as float64 of NumPy", RuntimeWarning, stacklevel=4)


@checked(array("covariance"), mask("mask"))
def mask_covariance(covariance: ArrayLike, mask: ArrayLike) -> Array:
    """Returns C among the points of `mask` and the identity elsewhere.

    With its factor and the same `mask` the statistics are those of a part of the points, at a fixed shape.

    **Arguments**: `covariance` of shape (N, N); `mask` of shape (N,), true for the points that count.

    **Example**

        >>> ens.mask_covariance(jnp.array([[4.0, 2.0], [2.0, 5.0]]), jnp.array([True, False]))
        Array([[4., 0.],
               [0., 1.]], dtype=float32)
    """
    C, mask = jnp.asarray(covariance), jnp.asarray(mask)
    has_shape(mask, (None,), "mask")
    has_shape(C, (len(mask), len(mask)), "covariance", "mask")
    return jnp.where(mask[:, None] & mask[None, :], C, jnp.eye(len(mask), dtype=C.dtype))


@checked(factor(), array("residuals", finite=False))
def whiten(factor: Array, residuals: Array) -> Array:
    """Returns L⁻¹ r for residuals of shape (..., N): independent numbers of unit variance if C is right.

    **Example**

        >>> ens.whiten(jnp.array([[2.0, 0.0], [1.0, 2.0]]), jnp.array([1.0, 1.5]))
        Array([0.5, 0.5], dtype=float32)
    """
    has_shape(factor, (None, None), "factor")
    has_shape(factor, (len(factor), len(factor)), "factor")
    if residuals.shape[-1:] != factor.shape[:1] or residuals.size == 0:
        raise ValueError(f"residuals must have shape (..., {len(factor)}) to fit factor, got {residuals.shape}")
    rows = residuals.reshape(-1, residuals.shape[-1])
    return solve_triangular(factor, rows.T, lower=True).T.reshape(residuals.shape)


def beyond(A: Array, b: Array) -> tuple[Array, Array]:
    """Returns what least squares leave of (b, 0) with A above I, and log det (I + AᵀA).

    The squares of the first sum to bᵀ (I + A Aᵀ)⁻¹ b, for every column of b.
    """
    basis, log_det = orthonormal(A)
    whole = jnp.concatenate([b, jnp.zeros((A.shape[1], *b.shape[1:]), b.dtype)])
    return whole - basis @ (basis.T @ whole), log_det


def orthonormal(A: Array) -> tuple[Array, Array]:
    """Returns Q of A above I = Q R with orthonormal columns, R upper triangular, and log det (I + AᵀA).

    The last rows of Q are R⁻¹.
    """
    basis, lowers = triangles(A, 1.0)
    return basis, 2 * jnp.sum(jnp.log(jnp.diagonal(lowers, axis1=1, axis2=2)))


def triangles(A: Array, floor: float) -> tuple[Array, Array]:
    """Returns Q of A above `floor` I = Q (L_1 L_2 L_3)ᵀ with orthonormal columns, and the lower triangular L_1 to L_3.

    They are three Cholesky factors, the first of them shifted: one alone would lose the I in rounding where A is
    large, and a QR decomposition takes a hundred times as long.

    **Source**: Fukaya et al. (2020), "Shifted Cholesky QR".
    """
    one, lowers = jnp.eye(A.shape[1], dtype=A.dtype), []
    basis = jnp.concatenate([A, floor * one])
    for shift in (len(one) * jnp.finfo(A.dtype).eps * jnp.sum(basis**2), 0.0, 0.0):
        lowers.append(jnp.linalg.cholesky(basis.T @ basis + shift * one))
        basis = solve_triangular(lowers[-1], basis.T, lower=True).T
    return basis, jnp.stack(lowers)
