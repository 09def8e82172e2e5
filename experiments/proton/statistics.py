"""Every statistic of a trial and of the final ensemble, in double precision."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

import ensembles as ens

from .data import Measurements


def fold_statistics(measured: Measurements, predictions: np.ndarray, best: float) -> dict[str, Any]:
    """Of replicas that did not see fold k, on fold k, from predictions of shape (K, R, N); replicas whose predictions
    are not finite do not count. `L1` is the mean over folds of `chi2_best`, the mean over the `best` share of the
    replicas; `replica_L1`, of shape (R,), is that of every replica over the folds, NaN where it failed in one.
    """
    with jax.enable_x64(True):
        T = jnp.asarray(predictions, jnp.float64)
        keep = jax.vmap(ens.healthy)(T)
        if not bool(jnp.all(jnp.any(keep, axis=1))):
            raise FloatingPointError("no replica of some fold has finite predictions")
        folds = ens.make_folds(measured.folds, measured.values, measured.covariance)
        found = _fold_statistics(T, folds, keep, best)
    rows = {name: np.asarray(values) for name, values in found.items()}
    replicas = rows.pop("replica_chi2")
    return {
        "L1": float(np.mean(rows["chi2_best"])),
        "L2": float(np.max(rows["chi2_best"])),
        "L3": float(1 / np.mean(rows["phi2"])),
        "phi2": float(np.mean(rows["phi2"])),
        "chi2_full_covariance": float(np.mean(rows["chi2_full_covariance"])),
        "negative_log_probability": float(np.mean(rows["negative_log_probability"])),
        "failed": int(np.sum(~np.asarray(keep))),
        "replica_L1": np.where(np.asarray(keep), replicas, np.nan).mean(0).tolist(),
        "folds": {name: values.tolist() for name, values in rows.items()},
    }


@eqx.filter_jit
def _fold_statistics(T: Array, folds: tuple[ens.Fold, ...], keep: Array, best: float) -> dict[str, Array]:
    each = [_of_points(T[k][:, fold.rows], fold, keep[k], best) for k, fold in enumerate(folds)]
    return {name: jnp.stack([values[name] for values in each]) for name in each[0]}


def _of_points(T: Array, fold: ens.Fold, keep: Array, best: float = 1.0) -> dict[str, Array]:
    scored = (T, fold.data, fold.factor, None, keep)
    count, clean = jnp.sum(keep), jnp.where(keep[:, None], T, 0)
    mean = jnp.sum(clean, axis=0) / count
    return {
        "chi2_mean_replica": ens.mean_chi2(*scored),
        "chi2_best": ens.mean_chi2(*scored, best=best),
        "chi2_of_mean": ens.chi2(mean, fold.data, fold.factor),
        "phi2": ens.phi2(T, fold.factor, None, keep),
        "chi2_full_covariance": ens.ensemble_chi2(*scored),
        "negative_log_probability": ens.negative_log_probability(*scored, fold.data),
        "replica_chi2": ens.chi2(clean, fold.data, fold.factor),
    }


def final_statistics(measured: Measurements, predictions: np.ndarray) -> dict[str, Any]:
    """Of the final ensemble, on all points and on every set, from predictions of shape (R, N).

    Replicas whose predictions are not finite, or whose chi2 is more than four standard deviations above the mean, are
    vetoed first.
    """
    parts = {"all": np.ones(len(measured.values), bool)}
    parts |= {name: measured.set_of_point == i for i, name in enumerate(measured.sets)}
    masks = np.stack(list(parts.values()))
    with jax.enable_x64(True):
        folds = ens.make_folds(masks, measured.values, measured.covariance)
        T = jnp.asarray(predictions, jnp.float64)
        healthy = np.asarray(ens.healthy(T))
        chi2 = np.asarray(ens.chi2(jnp.where(healthy[:, None], T, 0), folds[0].data, folds[0].factor))
        keep = ~ens.outliers(np.where(healthy, chi2, np.nan))
        found = [_compiled_of_points(T[:, fold.rows], fold, jnp.asarray(keep)) for fold in folds]
    rows = {}
    for name, mask, values in zip(parts, masks, found, strict=True):
        replica = np.asarray(values.pop("replica_chi2"))[keep]
        row = {statistic: float(value) for statistic, value in values.items() if statistic != "chi2_best"}
        spread = float(np.std(replica))
        rows[name] = {"points": int(mask.sum())} | row | {"phi": float(np.sqrt(row["phi2"])), "chi2_spread": spread}
    return {"kept": keep.tolist(), "num_kept": int(keep.sum()), **rows.pop("all"), "sets": rows}


_compiled_of_points = eqx.filter_jit(_of_points)
