"""The hypergradient of the smoothed L1: every member of the ensemble trains with hyperparameters of its own."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

import ensembles as ens
import hypergrad as hg

from .hyperparameters import Params, Ranges, stacked
from .statistics import Judge
from .training import Fit

MOST = 0.3  # change of a member's chi2 that counts at most: L1 too leaves out the worst


@dataclass(frozen=True)
class Population:
    """The ensemble as the population of an evolution strategy, over every hyperparameter that is a number.

    Each number has a perturbation of standard deviation `sigma` half-ranges, kept in its range; widths and patience are
    rounded after it. One training of all members gives the gradient of

        E_ε <F_m(λ + ε)>,    F_m the chi2 of member m on its held-out fold

    by `ens.population_gradient`. What every member has at λ itself is taken off first, because members differ more than
    perturbations move them; and no member counts for more than a change of `MOST`, because a few diverge.
    """

    fit: Fit
    judge: Judge
    ranges: Ranges
    sigma: float

    def hypergradient(self, params: Params, predictions: np.ndarray, key: jax.Array) -> tuple[dict[str, float], int]:
        """Returns the gradient in every number, and its cost, from the predictions at `params`, of shape (K, R, N)."""
        halves, size = self.ranges.halves(), predictions.shape[0] * predictions.shape[1]
        at = {name: (params[name] - middle) / half for name, (middle, half) in halves.items()}
        with jax.enable_x64(True):
            moved = ens.perturbed_hparams(key, jax.tree.map(jnp.asarray, at), self.sigma, size)
        values = {name: middle + half * np.clip(moved[name], -1, 1) for name, (middle, half) in halves.items()}
        members = [params | {name: column[m].item() for name, column in values.items()} for m in range(size)]
        unit, choices = stacked(self.ranges, members)
        problem, inner = self.fit.prepare(choices)
        estimate = hg.evaluate(inner, problem, self.fit.start, unit, jax.random.key(0))
        found = self.judge.chi2(self.fit.predictions(estimate.params, unit, problem)).ravel()
        change = np.nan_to_num(found - self.judge.chi2(predictions).ravel(), nan=MOST)
        with jax.enable_x64(True):
            slope = ens.population_gradient(np.clip(change, -MOST, MOST), moved, self.sigma).gradient
        return (
            {name: float(slope[name]) / half for name, (_, half) in halves.items()},
            int(estimate.stats.counts.gradients),
        )
