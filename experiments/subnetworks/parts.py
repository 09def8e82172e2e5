"""Searches of the four parts, each a cell."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import numpy as np

import hypergrad as hg

from ..common.cells import Advance, Labels, ignore
from .branches import Training, branch_space, gradients_inside, make_training, objective
from .functions import WEIGHTS, block_function, block_space
from .tasks import Dataset, aerosol, digit_sets, halves

BaseName = Literal["random", "tpe"]
StrategyName = Literal["base", "divide", "adaptive", "both"]
STRATEGIES: tuple[StrategyName, ...] = get_args(StrategyName)
DIGITS = {"dense": "digits", "cnn": "digits, cnn"}  # names of the task


def tree_parzen(seed: int) -> Any:
    """Returns Optuna's TPE."""
    import optuna

    return optuna.samplers.TPESampler(seed=seed)


def searcher(
    base: BaseName, strategy: StrategyName, warmup: int, importance: hg.trials.AbstractImportance
) -> hg.trials.AbstractSearcher:
    """Returns a base searcher alone, with divide and conquer, subnetwork-adaptive, or the second around the first."""
    alone = hg.trials.Random() if base == "random" else hg.trials.Optuna(tree_parzen, reseed=True)
    divided = hg.trials.DivideAndConquer(alone, warmup=warmup)
    return {
        "base": alone,
        "divide": divided,
        "adaptive": hg.trials.SubnetworkAdaptive(alone, importance, warmup=warmup),
        "both": hg.trials.SubnetworkAdaptive(divided, importance, warmup=warmup),
    }[strategy]


@dataclass(frozen=True)
class Search:
    """A search of branched networks."""

    data: Dataset
    training: Training
    searcher: hg.trials.AbstractSearcher
    trials: int
    batch: int
    seed: int

    def run(self, journal: Path, advance: Advance = ignore) -> dict[str, Any]:
        """Returns what the report needs of the search."""
        state = hg.trials.search_trials(
            self.searcher,
            branch_space(self.data.spec),
            objective(self.training, self.data, self.batch),
            key=jax.random.key(self.seed),
            num_trials=self.trials,
            batch=self.batch,
            journal=journal,
            callback=lambda state: advance(len(state.history) / self.trials),
        )
        sizes = {"trials": self.trials, "steps": self.training.steps, "inputs": list(self.data.spec.inputs)}
        return sizes | summary(state)


def curve(state: hg.trials.SearcherState) -> list[float]:
    """Returns the lowest value after each trial."""
    values = [np.inf if one.result.failed else one.result.value for one in state.history]
    return [float(value) for value in np.minimum.accumulate(values)]


def summary(state: hg.trials.SearcherState) -> dict[str, Any]:
    """Returns what the report needs of a state."""
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
        "seconds": state.spent.seconds,
        "compile_seconds": sum(one.result.compile_seconds for one in state.history),
        "gradients": np.cumsum([one.result.gradients for one in state.history]).tolist(),
        "failed": state.num_failed,
        "moved": counts,
        "ped_anova": hg.trials.PedAnova()(state),
        "ridge": hg.trials.RidgeImportance()(state),
        "hypergradient": hg.trials.HypergradientImportance()(state),
    }


def cells(config: Any) -> list[Labels]:
    """Returns the labels of all searches, part by part."""
    label = lambda *values: dict(zip(("part", "task", "base", "strategy", "seed"), values, strict=True))
    network_seeds, parcel_seeds = config.seed_range(config.network_seeds), config.seed_range(config.parcel_seeds)
    parts = {
        "synthetic": [
            label("synthetic", weights, base, strategy, seed)
            for weights in WEIGHTS
            for base in config.bases
            for strategy in config.strategies
            for seed in config.seed_range()
        ],
        "digits": [
            label("digits", DIGITS[kind], "random", strategy, seed)
            for kind in config.branches
            for seed in network_seeds
            for strategy in config.strategies
        ],
        "parcel": [
            label("parcel", "parcel", "tpe", strategy, seed) for seed in parcel_seeds for strategy in config.strategies
        ],
        "inside": [
            label("inside", "digits", "random", where, seed)
            for seed in network_seeds
            for where in ("outside", "inside")
        ],
    }
    return [labels for part in config.parts for labels in parts[part]]


def run_cell(config: Any, advance: Advance, labels: Labels) -> dict[str, Any]:
    """Runs one search."""
    run = {"synthetic": synthetic, "inside": inside}.get(labels["part"], found_and_trained)
    return {"runs": [run(config, advance, labels)]}


def synthetic(config: Any, advance: Advance, labels: Labels) -> dict[str, Any]:
    """Searches a function of three blocks."""
    trials = config.random_trials if labels["base"] == "random" else config.tpe_trials
    state = hg.trials.search_trials(
        searcher(labels["base"], labels["strategy"], 20, hg.trials.PedAnova()),
        block_space(),
        block_function(labels["seed"], WEIGHTS[labels["task"]]),
        key=jax.random.key(labels["seed"]),
        num_trials=trials,
    )
    return {"trials": trials, "curve": curve(state)}


def found_and_trained(config: Any, advance: Advance, labels: Labels) -> dict[str, Any]:
    """Searches networks for digits or the parcel model, and trains the best for longer on all that is not for test."""
    part, seed = labels["part"], labels["seed"]
    trials, steps, final_steps = (getattr(config, f"{part}_{name}") for name in ("trials", "steps", "final_steps"))
    if part == "parcel":
        first, last, batch = aerosol(), aerosol(), 256
    else:
        first, last = digit_sets(seed, config.num_noise, labels["task"] == DIGITS["cnn"])
        batch = 64
    method = searcher(labels["base"], labels["strategy"], max(8, trials // 3), hg.trials.RidgeImportance())
    training = make_training(first.spec, steps, batch)
    found = Search(first, training, method, trials, config.batch, seed).run(journal(config, labels), advance)
    best = hg.trials.FixedList([found["params"]])
    training = make_training(last.spec, final_steps, batch)
    final = Search(last, training, best, 1, 1, seed).run(journal(config, labels, "final"))
    return found | {"final_test": final["test"], "final_size": final["size"]}


def inside(config: Any, advance: Advance, labels: Labels) -> dict[str, Any]:
    """Searches with penalties that follow hypergradients within the trials, or at as many gradients without."""
    data, trials, is_inside = halves(labels["seed"], 300, 397, 32), config.digits_trials, labels["strategy"] == "inside"
    if is_inside:
        trials = max(1, trials * config.inside_steps // gradients_inside(config.inside_steps))
    training = make_training(data.spec, config.inside_steps, 64, cosine=False, inside=is_inside)
    search = Search(data, training, hg.trials.Random(), trials, config.batch, labels["seed"])
    return search.run(journal(config, labels), advance)


def journal(config: Any, labels: Labels, *more: str) -> Path:
    """Returns the file of the trials of a search."""
    folder = config.out / "trials"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / ("-".join(str(value).replace(", ", "_") for value in (*labels.values(), *more)) + ".jsonl")
