"""Every statistic of a trial and of the final ensemble, in double precision."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

import ensembles as ens

from .data import Measurements


class Judge:
    """Selections of the points, of shape (S, N), with the factors of their covariances.

    All selections have one shape, see `ens.mask_covariance`, and so share one compiled program.
    """

    def __init__(self, measured: Measurements, masks: np.ndarray):
        self.masks, self.data, C = np.asarray(masks, bool), measured.values, measured.covariance
        keep = self.masks[:, :, None] & self.masks[:, None, :]
        self.factors = [np.linalg.cholesky(np.where(k, C, np.eye(len(C)))) for k in keep]

    def chi2(self, predictions: np.ndarray) -> np.ndarray:
        """Returns the chi2 of every replica on every selection, from predictions of shape (S, R, N)."""
        with jax.enable_x64(True):
            parts = zip(predictions, self.factors, self.masks, strict=True)
            D = jnp.asarray(self.data)
            found = [_chi2(jnp.asarray(T, float), D, jnp.asarray(factor), jnp.asarray(m)) for T, factor, m in parts]
            return np.asarray(found)

    def score(self, index: int, predictions: np.ndarray, keep: np.ndarray, best: float = 1.0) -> dict[str, np.ndarray]:
        """Returns the statistics of replicas `keep`, from predictions of shape (R, N), on one selection."""
        clean = np.where(keep[:, None], predictions, 0).astype(np.float64)
        with jax.enable_x64(True):
            T, D, factor = (jnp.asarray(array) for array in (clean, self.data, self.factors[index]))
            found = _score(T, D, factor, jnp.asarray(self.masks[index]), jnp.asarray(keep), best)
            return {name: np.asarray(value) for name, value in found.items()}


_chi2 = eqx.filter_jit(ens.chi2)


@eqx.filter_jit
def _score(T: Array, D: Array, factor: Array, mask: Array, keep: Array, best: float) -> dict[str, Array]:
    scored = (T, D, factor, mask, keep)
    mean = jnp.sum(jnp.where(keep[:, None], T, 0), axis=0) / jnp.sum(keep)
    replicas = ens.chi2(T, D, factor, mask)
    rank = jnp.argsort(jnp.argsort(jnp.where(keep, replicas, jnp.inf)))
    of_best = rank < jnp.ceil(jnp.round(best * jnp.sum(keep), 6))
    return {
        "chi2_mean_replica": ens.mean_of_best(replicas, 1.0, keep),
        "chi2_best": ens.mean_of_best(replicas, best, keep),
        "chi2_of_mean": ens.chi2(mean, D, factor, mask),
        "phi2": ens.phi2(T, factor, mask, keep),
        "phi2_best": ens.phi2(T, factor, mask, of_best),
        "chi2_full_covariance": ens.ensemble_chi2(*scored),
        "negative_log_probability": ens.negative_log_probability(*scored, D),
        "replica_chi2": replicas,
    }


def fold_statistics(judge: Judge, predictions: np.ndarray, best: float) -> dict[str, Any]:
    """Returns the statistics on fold k of replicas that did not see it, from predictions of shape (K, R, N).

    Replicas whose predictions are not finite do not count.

    `L1` is the mean over folds of `chi2_best`, the mean over the `best` share of the replicas; `phi2` and `L3` are of
    the same replicas, because a failed one would count as spread. `replica_L1`, of shape (R,), is the mean over
    folds of every replica, NaN where it failed in one.

    **Raises** `FloatingPointError` where a fold has no replica left.
    """
    keep = np.all(np.isfinite(predictions), axis=-1)
    if not keep.any(1).all():
        raise FloatingPointError("no replica of some fold has finite predictions")
    scores = [judge.score(k, T, kept, best) for k, (T, kept) in enumerate(zip(predictions, keep, strict=True))]
    rows = {name: np.stack([score[name] for score in scores]) for name in scores[0]}
    replicas = rows.pop("replica_chi2")
    return {
        "L1": float(np.mean(rows["chi2_best"])),
        "L2": float(np.max(rows["chi2_best"])),
        "L3": float(1 / np.mean(rows["phi2_best"])),
        "phi2": float(np.mean(rows["phi2_best"])),
        "chi2_full_covariance": float(np.mean(rows["chi2_full_covariance"])),
        "negative_log_probability": float(np.mean(rows["negative_log_probability"])),
        "failed": int(np.sum(~keep)),
        "replica_L1": np.where(keep, replicas, np.nan).mean(0).tolist(),
        "folds": {name: values.tolist() for name, values in rows.items()},
    }


def final_statistics(measured: Measurements, predictions: np.ndarray) -> dict[str, Any]:
    """Returns the statistics of the final ensemble, on all points and on every set, from predictions of shape (R, N).

    Replicas whose predictions are not finite, or whose chi2 is more than four standard deviations above the mean, are
    vetoed first.
    """
    everything = np.ones(len(measured.values), bool)
    parts = {"all": everything} | {name: measured.set_of_point == i for i, name in enumerate(measured.sets)}
    is_finite = np.all(np.isfinite(predictions), axis=1)
    if not is_finite.any():
        raise FloatingPointError("no replica of the final ensemble has finite predictions")
    keep, rows = is_finite, {}
    for name, mask in parts.items():
        judge = Judge(measured, mask[None])
        if name == "all":
            chi2 = judge.score(0, predictions, is_finite)["replica_chi2"]
            keep = ~ens.outliers(np.where(is_finite, chi2, np.nan))
        score = judge.score(0, predictions, keep)
        spread = float(np.std(score.pop("replica_chi2")[keep]))
        row = {statistic: float(value) for statistic, value in score.items() if "best" not in statistic}
        more = {"phi": float(np.sqrt(row["phi2"])), "chi2_spread": spread}
        rows[name] = {"points": int(mask.sum()), **row, **more}
    return {"kept": keep.tolist(), "num_kept": int(keep.sum()), **rows.pop("all"), "sets": rows}
