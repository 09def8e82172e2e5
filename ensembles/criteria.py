"""Criteria of hyperparameters: the predictions of an ensemble for folds that it has not seen.

A criterion is a function `(predictions, folds, keep=None) -> scalar`, to be minimised. The predictions have the shape
(K, R, N): those of the R replicas that did not see fold k, for all N points. `outer_loss` makes a criterion an outer
loss of the stacked replicas.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree

from .checks import array, boolean, checked, concrete, function, has_shape, integer, mask, several
from .counting import BEST_FRACTION, KEEP, PREDICTIONS
from .covariance import cholesky
from .folds import by_fold
from .replicas import is_finite, map_replicas
from .sharding import unpad
from .statistics import ensemble_chi2, mean_chi2, negative_log_probability, phi2

ABSURD = 1e6  # times the data and the median replica


class Fold(eqx.Module):
    """Points that are held out: their indices, their data, and the factor of their covariance."""

    rows: Array
    data: Array
    factor: Array


FOLDS = several("folds", Fold, "a tuple of Fold, as make_folds returns it", least=1)


@checked(mask("masks", host=True), array("data", host=True), array("covariance", host=True))
def make_folds(masks: ArrayLike, data: ArrayLike, covariance: ArrayLike) -> tuple[Fold, ...]:
    """Returns one `Fold` for every row of `masks`, of shape (K, N), from data (N,) and their covariance (N, N).

    Correlations between a fold and the rest are left out.

    **Raises** `ValueError` where a fold is empty or its covariance is not positive definite.

    **Example**

        >>> [fold.rows.tolist() for fold in ens.make_folds(masks, data, covariance)]
        [[0, 1], [2, 3]]
    """
    masks, data, C = np.asarray(masks), np.asarray(data), np.asarray(covariance)
    has_shape(data, (None,), "data")
    has_shape(masks, (None, len(data)), "masks", "data")
    has_shape(C, (len(data), len(data)), "covariance", "data")
    if not masks.any(1).all():
        raise ValueError(f"masks: fold {np.flatnonzero(~masks.any(1)).tolist()} is empty")
    rows = [np.flatnonzero(mask) for mask in masks]
    return tuple(Fold(jnp.asarray(i), jnp.asarray(data[i]), cholesky(C[np.ix_(i, i)])) for i in rows)


@checked(PREDICTIONS, FOLDS, KEEP, BEST_FRACTION)
def fold_chi2(
    predictions: Array, folds: tuple[Fold, ...], keep: ArrayLike | None = None, best_fraction: float = 1.0
) -> Array:
    """Returns <chi2> of every fold over its replicas, or over the best of them, of shape (K,).

    **Example**

        >>> [f"{one:.2f}" for one in ens.fold_chi2(by_fold, folds)]
        ['1.38', '5.50']
    """
    return _by_fold(lambda T, fold, keep: mean_chi2(T, fold.data, fold.factor, None, keep, best_fraction))(
        predictions, folds, keep
    )


@checked(PREDICTIONS, FOLDS, KEEP)
def fold_phi2(predictions: Array, folds: tuple[Fold, ...], keep: ArrayLike | None = None) -> Array:
    """Returns φ² of every fold, of shape (K,).

    **Example**

        >>> [f"{one:.2f}" for one in ens.fold_phi2(by_fold, folds)]
        ['1.00', '1.00']
    """
    return _by_fold(lambda T, fold, keep: phi2(T, fold.factor, None, keep))(predictions, folds, keep)


@checked(PREDICTIONS, FOLDS, KEEP)
def fold_ensemble_chi2(predictions: Array, folds: tuple[Fold, ...], keep: ArrayLike | None = None) -> Array:
    """Returns chi2 of the mean with the full covariance of every fold, of shape (K,)."""
    return _by_fold(lambda T, fold, keep: ensemble_chi2(T, fold.data, fold.factor, None, keep))(
        predictions, folds, keep
    )


@checked(PREDICTIONS, FOLDS, KEEP, BEST_FRACTION)
def mean_loss(
    predictions: Array, folds: tuple[Fold, ...], keep: ArrayLike | None = None, best_fraction: float = 1.0
) -> Array:
    """Returns L1 = 1/K Σ_k <chi2_k>.

    **Source**: NNPDF (2024), arXiv:2410.16248: the loss that its search minimises, there with `best_fraction=0.9`.

    **Example**

        >>> print(f"{ens.mean_loss(by_fold, folds):.2f}")
        3.44
    """
    return jnp.mean(fold_chi2(predictions, folds, keep, best_fraction))


@checked(PREDICTIONS, FOLDS, KEEP, BEST_FRACTION)
def worst_loss(
    predictions: Array, folds: tuple[Fold, ...], keep: ArrayLike | None = None, best_fraction: float = 1.0
) -> Array:
    """Returns L2 = max_k <chi2_k>; its gradient is that of the worst fold.

    **Source**: as `mean_loss`.

    **Example**

        >>> print(f"{ens.worst_loss(by_fold, folds):.2f}")
        5.50
    """
    return jnp.max(fold_chi2(predictions, folds, keep, best_fraction))


@checked(PREDICTIONS, FOLDS, KEEP)
def spread_loss(predictions: Array, folds: tuple[Fold, ...], keep: ArrayLike | None = None) -> Array:
    """Returns L3 = (1/K Σ_k φ²_k)⁻¹, which favours the largest spread where there are no data.

    Alone it rewards useless predictions without bound: it ranks hyperparameters of equal L1.

    **Raises** `ValueError` for one replica, whose spread is 0.

    **Source**: as `mean_loss`.

    **Example**

        >>> print(f"{ens.spread_loss(by_fold, folds):.2f}")
        1.00
    """
    if predictions.ndim == 3 and predictions.shape[1] < 2:
        raise ValueError("predictions holds one replica per fold, whose spread is 0; give at least 2")
    return 1 / jnp.mean(fold_phi2(predictions, folds, keep))


@checked(PREDICTIONS, FOLDS, KEEP)
def full_covariance_loss(predictions: Array, folds: tuple[Fold, ...], keep: ArrayLike | None = None) -> Array:
    """Returns 1/K Σ_k of chi2 of the mean with the spread of the replicas added to the covariance.

    **Source**: Cruz-Martinez, Giani, Rabemananjara (2026), arXiv:2605.31482.
    """
    return jnp.mean(fold_ensemble_chi2(predictions, folds, keep))


@checked(PREDICTIONS, FOLDS, KEEP)
def log_probability_loss(predictions: Array, folds: tuple[Fold, ...], keep: ArrayLike | None = None) -> Array:
    """Returns 1/K Σ_k -log p_k/N_k, which weighs error against spread; every point is in units of its datum.

    **Source**: as `full_covariance_loss`.
    """
    return jnp.mean(
        _by_fold(lambda T, fold, keep: negative_log_probability(T, fold.data, fold.factor, None, keep, fold.data))(
            predictions, folds, keep
        )
    )


@checked(
    function("criterion", "(predictions, folds, keep=None) -> scalar"),
    function("predict", "(model, hparams, inputs) -> predictions"),
    integer("num", least=1, optional=True),
    boolean("drop_failed"),
)
def outer_loss(
    criterion: Callable[..., Array],
    predict: Callable[[PyTree, PyTree, PyTree], Array],
    num: int | None = None,
    drop_failed: bool = False,
) -> Callable[[PyTree, PyTree, PyTree, Array], Array]:
    """Returns a criterion as a loss `(replicas, hparams, data, key) -> scalar`; its data are `(inputs, folds)`.

    **Arguments**

    - `predict`: a function `(model, hparams, inputs) -> predictions` of one replica for all N points.
    - `num`: the number of replicas that count; those after them are padding. They are in the order of `cross`.
    - `drop_failed`: leaves out replicas whose predictions are not finite, or a million times larger than the data and
      the median replica; a fold without any replica left gives NaN. Where training can end in weights that are not
      finite, `replicate_loss` needs `drop_failed` too. `outliers` of the chi2 of each names them.

    **Example**

        >>> loss = ens.outer_loss(ens.mean_loss, lambda line, hparams, x: line[0] + line[1] * x)
        >>> lines = jnp.tile(jnp.array([0.0, 1.0]), (4, 1))  # two replicas of two folds
        >>> print(f"{loss(lines, None, (jnp.arange(1.0, 5.0), folds), key):.2f}")
        1.19
    """

    def loss(replicas: PyTree, hparams: PyTree, data: PyTree, key: Array) -> Array:
        inputs, folds = data
        predictions = map_replicas(predict, replicas, hparams, inputs)
        predictions = predictions if num is None else unpad(predictions, num)
        keep = by_fold(_is_sound(predictions, folds), len(folds)) if drop_failed else None
        return criterion(by_fold(predictions, len(folds)), folds, keep=keep)

    return loss


def _is_sound(predictions: Array, folds: tuple[Fold, ...]) -> Array:
    """Returns for every replica whether its predictions are finite and not absurdly large."""
    finite = is_finite(predictions)
    sizes = jnp.max(jnp.abs(jax.lax.stop_gradient(predictions)), axis=range(1, predictions.ndim))
    median = jnp.nanmedian(jnp.where(finite, sizes, jnp.nan))
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(fold.data)) for fold in folds]))
    return finite & (sizes <= ABSURD * jnp.maximum(median, largest))


def _by_fold(statistic: Callable[..., Array]) -> Callable[..., Array]:
    """Returns a function that stacks `statistic(predictions for the points of a fold, fold, keep)` over the folds."""

    def values(predictions: Array, folds: tuple[Fold, ...], keep: ArrayLike | None) -> Array:
        has_shape(predictions, (len(folds), None, None), "predictions", "folds")
        if keep is not None:
            has_shape(keep, predictions.shape[:2], "keep", "predictions")
        kept_of_each = [None] * len(folds) if keep is None else jnp.asarray(keep)
        parts = zip(predictions, folds, kept_of_each, strict=True)
        return jnp.stack([statistic(_of_fold(T, fold), fold, kept) for T, fold, kept in parts])

    return values


def _of_fold(predictions: Array, fold: Fold) -> Array:
    """Returns the predictions of shape (R, N) for the points of a fold; inside `jit` NaN for those beyond N.

    **Raises** `ValueError` naming `predictions` where there are such points.
    """
    if concrete(fold.rows) and (last := np.max(np.asarray(fold.rows))) >= predictions.shape[1]:
        raise ValueError(f"predictions have {predictions.shape[1]} points, and point {last} of folds is not among them")
    return jnp.take(predictions, fold.rows, axis=1)  # which fills, where an index would be moved inside
