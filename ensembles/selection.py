"""The choice of hyperparameters among many trials, and their distribution over the replicas of an ensemble."""

import dataclasses
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree

from .checks import INTEGERS, KEY, array, checked, choice, concrete, has_shape, integer, num_replicas, real
from .ground.memory import refuse_too_large


class Selection(NamedTuple):
    """A choice among trials.

    - `chosen`: indices of the trials, the best first.
    - `in_band`: mask of all trials that could have been chosen: those from `lowest` to `lowest` + `sigma`.
    """

    chosen: np.ndarray
    in_band: np.ndarray
    lowest: float
    sigma: float


@checked(
    array("losses", finite=False, host=True),
    array("ranking", finite=False, host=True),
    integer("num", least=1),
    choice("sigma", "trials", "replicas"),
    array("replica_losses", finite=False, host=True, optional=True),
    real("threshold", most=math.inf),
)
def one_sigma(
    losses: ArrayLike,
    ranking: ArrayLike,
    num: int = 10,
    *,
    sigma: Literal["trials", "replicas"] = "trials",
    replica_losses: ArrayLike | None = None,
    threshold: float = np.inf,
) -> Selection:
    """Chooses the `num` trials of lowest `ranking` among those within one σ of the lowest loss:

        { L_min <= L <= L_min + σ },  ordered by ranking

    **Arguments**

    - `losses`: L1 of every trial, of shape (trials,). A trial whose loss is not finite or above `threshold` failed.
    - `ranking`: of shape (trials,), lower is better: L3 = 1/φ² prefers the most conservative extrapolation.
    - `sigma`: the two readings of the published rule. `"trials"`: the standard deviation of L1 over the trials that did
      not fail. `"replicas"`: that of the loss over the replicas of the best trial, from `replica_losses` of shape
      (trials, replicas); those that are not finite do not count.

    Fewer than `num` are chosen where the band holds fewer.

    **Raises** `ValueError` where all trials failed or the arguments do not fit each other.

    **Source**: NNPDF (2024), arXiv:2410.16248, selection after the search.

    **Example**

        >>> found = ens.one_sigma([1.0, 1.1, 1.2, 2.0], ranking=[3.0, 1.0, 2.0, 0.0], num=2)
        >>> found.chosen, round(found.sigma, 2)
        (array([1, 2]), 0.4)
    """
    losses, ranking = np.asarray(losses, float), np.asarray(ranking, float)
    has_shape(losses, (None,), "losses")
    has_shape(ranking, losses.shape, "ranking", "losses")
    passed = np.isfinite(losses) & np.isfinite(ranking) & (losses <= threshold)
    if not passed.any():
        raise ValueError(
            f"losses: none of {len(losses)} trials is finite, as its ranking, and at most threshold = {threshold}"
        )
    best = int(np.argmin(np.where(passed, losses, np.inf)))
    if sigma == "trials":
        width = float(np.std(losses[passed]))
    else:
        if replica_losses is None:
            raise ValueError('sigma="replicas" needs replica_losses')
        has_shape(replica_losses, (len(losses), None), "replica_losses", "losses")
        of_best = np.asarray(replica_losses, float)[best]
        if not np.isfinite(of_best).any():
            raise ValueError(f"replica_losses of the best trial, {best}, are not finite")
        width = float(np.std(of_best[np.isfinite(of_best)]))
    in_band = passed & (losses <= losses[best] + width)
    order = np.flatnonzero(in_band)[np.argsort(ranking[in_band], kind="stable")]
    return Selection(order[:num], in_band, float(losses[best]), width)


@checked(integer("num_replicas", least=1), integer("num_sets", least=1), dataclasses.replace(KEY, optional=True))
def spread_replicas(num_replicas: int, num_sets: int, key: Array | None = None) -> Array:
    """Returns the index of the set of every replica: r mod `num_sets`, or with `key` drawn uniformly.

    **Example**

        >>> ens.spread_replicas(5, num_sets=2)
        Array([0, 1, 0, 1, 0], dtype=int32)
    """
    refuse_too_large(3 * 8 * num_replicas, "num_replicas")
    replicas, sets = num_replicas, num_sets
    return jnp.arange(replicas) % sets if key is None else jax.random.randint(key, (replicas,), 0, sets)


@checked(array("sets", kinds=INTEGERS))
def take_sets(hparams: PyTree, sets: ArrayLike) -> PyTree:
    """Returns the hyperparameters of every replica, from those of the sets stacked.

    They are for `hparams_axes=0` of `replicate_loss` and `settings` of `replicate_optimiser`. Inside `jit` a set that
    is not there has NaN as hyperparameters.

    **Example**

        >>> ens.take_sets({"rate": jnp.array([0.1, 0.2])}, jnp.array([0, 1, 0]))["rate"]
        Array([0.1, 0.2, 0.1], dtype=float32)
    """
    known = num_replicas(hparams, "hparams")
    if np.size(sets) == 0 or (concrete(sets) and (np.min(sets) < 0 or np.max(sets) >= known)):
        raise ValueError(f"sets must be indices from 0 to {known - 1}")
    return jax.tree.map(lambda leaf: jnp.take(leaf, jnp.asarray(sets), axis=0), hparams)


@checked(array("values", finite=False, host=True), real("num_std", above=0, most=math.inf))
def outliers(values: ArrayLike, num_std: float = 4.0) -> np.ndarray:
    """Returns a mask of the replicas to remove: those that are not finite or above mean + `num_std` · std.

    Mean and std are taken again over the rest until none is above.

    **Source**: NNPDF (2022), the veto after a fit.

    **Example**

        >>> ens.outliers([1.0, 1.1, 0.9, 1.0, 9.0], num_std=1.5)
        array([False, False, False, False,  True])
    """
    values = np.asarray(values, float)
    has_shape(values, (None,), "values")
    out = ~np.isfinite(values)
    largest = np.max(np.abs(values[~out]), initial=0)
    values = values / (largest if largest > 0 else 1)  # so that no square overflows
    for _ in range(values.size):
        kept = values[~out]
        if kept.size == 0 or not (beyond := ~out & (values > kept.mean() + num_std * kept.std())).any():
            break
        out |= beyond
    return out
