"""One search under its budget, every trial kept as soon as it is done."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import hypergrad as hg

from ..common.report import as_json
from .search import Asked, FinishedTrial, Search
from .space import Choices, Unit, named
from .statistics import Judge, fold_statistics
from .training import Fit

Estimator = Callable[[hg.AbstractInnerSolver], hg.AbstractEstimator]


class Trials:
    """Makes trials of one `Fit`, and stores them in one file of a folder, a line each.

    `estimator` makes hypergradients; hyperparameters named in `unseen` it cannot see, and they stay.
    """

    def __init__(self, fit: Fit, estimator: Estimator, unseen: tuple[str, ...], folder: Path):
        self.fit, self.estimator, self.unseen, self.folder = fit, estimator, unseen, folder
        self.judge = Judge(fit.measured, fit.held_out)
        folder.mkdir(parents=True, exist_ok=True)

    def follow(
        self, name: str, seed: int, search: Search, budget: int, advance: Callable[[int], Any]
    ) -> list[dict[str, Any]]:
        """All trials of a search that fit into `budget` gradients (of every replica). Those on file are not made again
        but told again.

        **Raises** `ValueError` where the file holds other trials than the search asks for.
        """
        path = self.folder / f"{name}-{seed}.jsonl"
        stored = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        trials: list[dict[str, Any]] = []
        spent = cost = 0
        while spent + cost <= budget:
            asked = search.ask()
            if len(trials) < len(stored):
                trial = stored[len(trials)]
                if trial["point"] != as_json(_point(asked)):
                    raise ValueError(f"{path} holds other trials than this search asks for")
            else:
                trial = {"method": name, "seed": seed, "number": len(trials), "point": _point(asked)}
                trial = as_json(trial | self.make(asked, path.with_suffix(".npz"), trials))
                with open(path, "a") as file:
                    file.write(json.dumps(trial) + "\n")
            cost = trial["gradients"]
            if spent + cost > budget and trials:
                break
            advance(min(cost, budget - spent))
            spent += cost
            trials.append(trial | {"gradients_so_far": spent})
            gradient = trial["hypergradient"]
            search.tell(FinishedTrial(trial["L1"], None if gradient is None else _unit(gradient)))
        advance(budget - min(spent, budget))
        return trials

    def make(self, asked: Asked, path: Path, before: list[dict[str, Any]]) -> dict[str, Any]:
        """One trial: trained, judged in double precision; its predictions are kept at `path` if it is the best."""
        started = time.monotonic()
        fit, gradient = self.fit, None
        unit = jax.tree.map(lambda a: jnp.asarray(a, jnp.result_type(float)), asked.unit)
        fixed = {key: unit.pop(key) for key in self.unseen} if asked.gradient else {}
        problem, inner = fit.prepare(asked.choices, fixed)
        if asked.gradient:
            estimator = self.estimator(inner)
            state = estimator.init(problem, fit.start, unit)
            estimate, _ = estimator.step(problem, unit, state, jax.random.key(0))
            zeros = {key: np.zeros(np.shape(value)) for key, value in fixed.items()}
            gradient = {key: np.asarray(value, float) for key, value in (estimate.hypergradient | zeros).items()}
        else:
            estimate = hg.evaluate(inner, problem, fit.start, unit, jax.random.key(0))
        status = hg.Status(int(estimate.stats.status))
        row = {"gradients": int(estimate.stats.counts.gradients), "status": status.name or "OK", "hypergradient": None}
        predictions = fit.predictions(estimate.params, unit, problem)
        try:
            found = fold_statistics(self.judge, predictions, fit.sizes.best)
        except FloatingPointError:
            found = dict.fromkeys(NOTHING)
        lowest = min((trial["L1"] for trial in before if trial["L1"] is not None), default=np.inf)
        if found["L1"] is not None and found["L1"] < lowest:
            np.savez_compressed(path, predictions=predictions.astype(np.float32))
        if gradient is not None and all(np.all(np.isfinite(g)) for g in gradient.values()):
            row["hypergradient"] = gradient
        return row | found | {"seconds": round(time.monotonic() - started, 3)}


NOTHING = (
    "L1",
    "L2",
    "L3",
    "phi2",
    "chi2_full_covariance",
    "negative_log_probability",
    "failed",
    "replica_L1",
    "folds",
)


def _point(asked: Asked) -> dict[str, Any]:
    return {"unit": asked.unit, "choices": asked.choices._asdict(), "gradient": asked.gradient}


def _unit(found: dict[str, Any]) -> Unit:
    return {name: np.asarray(value, float) for name, value in found.items()}


def point(trial: dict[str, Any]) -> tuple[Unit, Choices]:
    """The hyperparameters of a stored trial."""
    choices = trial["point"]["choices"]
    return _unit(trial["point"]["unit"]), Choices(np.asarray(choices["widths"]), *list(choices.values())[1:])


def as_rows(trials: list[dict[str, Any]], fit: Fit) -> list[dict[str, Any]]:
    """Flat, for a table: what was measured, then every hyperparameter in its own units."""
    leave_out = {"point", "hypergradient", "folds", "replica_L1"}
    flat = [{key: value for key, value in trial.items() if key not in leave_out} for trial in trials]
    return [row | named(*point(trial), fit.space) for row, trial in zip(flat, trials, strict=True)]
