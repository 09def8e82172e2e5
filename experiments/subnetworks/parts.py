"""Searches of the four parts, each remembered when it is done."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import hypergrad as hg

from .branches import Task, Training, branch_space, objective
from .functions import WEIGHTS, block_function, block_space
from .strategies import BaseName, StrategyName, searcher


class Done:
    """Finished searches, one line each: a run that was stopped does them no second time."""

    def __init__(self, path: Path):
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self._found = {json.dumps(cell): line for cell, line in map(json.loads, lines)}

    def get(self, cell: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The line of this cell, made if it is not there."""
        name = json.dumps(cell)
        if name not in self._found:
            self._found[name] = json.loads(json.dumps(cell | make()))
            with open(self._path, "a") as file:
                file.write(json.dumps([cell, self._found[name]]) + "\n")
        return self._found[name]


def curve(state: hg.trials.SearcherState) -> list[float]:
    """The lowest value after each trial."""
    values = [np.inf if told.result.failed else told.result.value for told in state.history]
    return [float(value) for value in np.minimum.accumulate(values)]


def synthetic(
    weights: str, base: BaseName, strategy: StrategyName, seed: int, trials: int, warmup: int
) -> dict[str, Any]:
    """One search of a block function."""
    state = hg.trials.search_trials(
        searcher(base, strategy, warmup, hg.trials.PedAnova()),
        block_space(),
        hg.trials.PerTrial(block_function(seed, WEIGHTS[weights])),
        key=jax.random.key(seed),
        num_trials=trials,
    )
    return {"curve": curve(state)}


def networks(
    task: Task, training: Training, method: hg.trials.AbstractSearcher, seed: int, trials: int, size: int, journal: Path
) -> hg.trials.SearcherState:
    """One search of a branched network."""
    return hg.trials.search_trials(
        method,
        branch_space(task.spec),
        objective(training, task, size),
        key=jax.random.key(seed),
        num_trials=trials,
        batch=size,
        journal=journal,
    )


def told(state: hg.trials.SearcherState) -> dict[str, Any]:
    """What the report needs of a search of networks."""
    best = state.best
    assert best is not None
    counts: dict[str, int] = {}
    for one in state.history:
        block = one.trial.meta.get("block", "-")
        counts[block] = counts.get(block, 0) + 1
    return {
        "curve": curve(state),
        "test": best.result.metrics["test"],
        "size": best.result.size,
        "params": best.trial.params,
        "seconds": sum(one.result.seconds for one in state.history),
        "compile_seconds": sum(one.result.compile_seconds for one in state.history),
        "gradients": np.cumsum([float(one.result.gradients) for one in state.history]).tolist(),
        "failed": len(state.failures),
        "moved": counts,
        "ped_anova": hg.trials.PedAnova()(state),
        "ridge": hg.trials.RidgeImportance()(state),
        "hypergradient": hg.trials.HypergradientImportance()(state),
    }


def efficiency(base: list[list[float]], method: list[list[float]]) -> float | None:
    """How many times fewer trials than the base searcher a method needs for the base's own final median.

    The lower median over seeds of the trials each needs, the base's divided by the method's; `None` where half of the
    method's searches do not get there.
    """
    target = np.median([one[-1] for one in base])

    def needed(curves: list[list[float]]) -> float:
        first = [np.flatnonzero(np.asarray(one) <= target) for one in curves]
        return float(np.quantile([np.inf if len(where) == 0 else where[0] + 1 for where in first], 0.5, method="lower"))

    ours = needed(method)
    return needed(base) / ours if np.isfinite(ours) else None
