"""One search under its budget."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import optuna

import hypergrad as hg

from ..common.cells import Advance
from .hyperparameters import Choices, Params, Ranges, as_arrays, flat
from .population import Population
from .statistics import Judge, fold_statistics
from .training import Fit

Row = dict[str, Any]
NOISE = 0.1  # share of L1 by which a step along a smoothed hypergradient may end higher: a single value is noise
FOLD_STATISTICS = (
    *("L1", "L2", "L3", "phi2", "chi2_full_covariance"),
    *("negative_log_probability", "failed", "replica_L1", "folds"),
)


def searchers(
    ranges: Ranges, first: Choices, *, starts: int, rate: float, seed: int
) -> dict[str, hg.trials.AbstractSearcher]:
    """Returns all searches by name. Each tries the centre of the box first; Optuna draws from its own stream.

    A plain trial takes the whole budget, so that it is the only one.
    """
    listed = [ranges.params(ranges.box.centre(), first)]
    after = lambda sampler: hg.trials.FixedList(listed, then=hg.trials.Optuna(sampler))
    random = after(lambda _: optuna.samplers.RandomSampler(seed=seed))
    tpe = after(lambda _: optuna.samplers.TPESampler(seed=seed))
    along = lambda base, **options: hg.trials.Descent(base, optax.adam(rate), starts=starts, **options)
    smoothed = along(tpe, rtol=NOISE)
    return {"gradient": along(random), "population": smoothed, "random": random, "tpe": tpe, "plain": random}


@dataclass(frozen=True)
class Trainer:
    """A maker of the trials of one fit.

    `estimator` makes hypergradients; hyperparameters named in `unseen` it cannot see, and they stay. With `smoothing`
    hypergradients are those of a `Population` of that width instead.
    """

    fit: Fit
    judge: Judge
    ranges: Ranges
    estimator: Callable[[hg.AbstractInnerSolver], hg.AbstractEstimator]
    unseen: tuple[str, ...]
    smoothing: float | None = None

    def search(self, searcher: hg.trials.AbstractSearcher, budget: int, journal: Path, advance: Advance) -> list[Row]:
        """Returns all trials that fit into `budget` gradients (of every replica), as rows."""

        def after(state: hg.trials.SearcherState) -> bool:
            advance(state.spent.gradients / budget)
            return state.spent.gradients + state.history[-1].result.gradients > budget

        state = hg.trials.search_trials(
            searcher,
            self.ranges.space(),
            self.trained,
            key=jax.random.key(0),
            budget=hg.Budget(gradients=budget),
            journal=journal,
            on_failure="raise",
            callback=after,
        )
        is_over = state.spent.gradients > budget and len(state.history) > 1
        done = state.history[: len(state.history) - is_over]
        so_far = np.cumsum([one.result.gradients for one in done]).tolist()
        return [self._row(one) | {"gradients_so_far": total} for one, total in zip(done, so_far, strict=True)]

    def trained(self, trial: hg.trials.Trial, key: jax.Array) -> hg.trials.Result:
        """Trains, with a hypergradient where one is needed, and judges in double precision."""
        needed, slope = trial.needs_hypergradient, dict[str, float]()
        estimate, predictions = self.estimate(trial.params, needed and self.smoothing is None)
        gradients = int(estimate.stats.counts.gradients)
        if needed and self.smoothing is not None:
            population = Population(self.fit, self.judge, self.ranges, self.smoothing)
            slope, spent = population.hypergradient(trial.params, predictions, key)
            gradients += spent
        elif needed:
            slope = flat(estimate.hypergradient)
        try:
            found = fold_statistics(self.judge, predictions, self.fit.sizes.best)
        except FloatingPointError:
            found = dict.fromkeys(FOLD_STATISTICS)
        status = hg.Status(int(estimate.stats.status)).name or "OK"
        return hg.trials.Result(
            np.nan if found["L1"] is None else found["L1"],
            gradients=gradients,
            hypergradient=slope,
            metrics={"status": status} | found,
        )

    def estimate(self, params: Params, with_hypergradient: bool) -> tuple[hg.Estimate, np.ndarray]:
        """Returns the estimate of training and the predictions, of shape (K, R, N)."""
        fit = self.fit
        unit = as_arrays(self.ranges.unit(params))
        fixed = {name: unit.pop(name) for name in self.unseen} if with_hypergradient else {}
        problem, inner = fit.prepare(self.ranges.choices(params), fixed)
        if with_hypergradient:
            estimator = self.estimator(inner)
            state = estimator.init(problem, fit.start, unit)
            estimate, _ = estimator.step(problem, unit, state, jax.random.key(0))
        else:
            estimate = hg.evaluate(inner, problem, fit.start, unit, jax.random.key(0))
        return estimate, fit.predictions(estimate.params, unit, problem)

    def _row(self, one: hg.trials.FinishedTrial) -> Row:
        params, result = one.trial.params, one.result
        point = {
            "unit": self.ranges.unit(params),
            "choices": self.ranges.choices(params)._asdict(),
            "gradient": one.trial.needs_hypergradient and self.smoothing is None,  # another program rounds otherwise
        }
        work = {"gradients": result.gradients, **result.metrics, "seconds": round(result.seconds, 3)}
        return {"number": one.trial.number, "params": params, "point": point} | work


def as_rows(trials: list[Row], ranges: Ranges) -> list[Row]:
    """Returns flat rows for a table: the measures, then every hyperparameter in its own units."""
    leave_out = {"point", "params", "folds", "replica_L1"}
    measures = [{key: value for key, value in trial.items() if key not in leave_out} for trial in trials]
    return [row | ranges.named(trial["params"]) for row, trial in zip(measures, trials, strict=True)]
