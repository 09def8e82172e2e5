"""Every estimator in every regime: its error, and its cost."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

import hypergrad as hg

from ..common.cells import Advance, grid, rows, run_cells
from ..common.config import Common, Out, Positive, Seeds, Some
from ..common.report import Row, grouped, save
from .problems import REGIMES, Regime

QUICK = {"regimes": ("short unroll", "non-smooth", "chaotic"), "seeds": 3}
LINEAR = hg.CG(20, rtol=1e-10)
Make = Callable[[hg.AbstractInnerSolver, float, int], hg.AbstractEstimator]
ESTIMATORS: dict[str, Make] = {
    "Reverse": lambda inner, sigma, pairs: hg.Reverse(inner),
    "Implicit": lambda inner, sigma, pairs: hg.Implicit(inner, LINEAR),
    "DrMAD": lambda inner, sigma, pairs: hg.DrMAD(inner, check=None),
    "OneStep": lambda inner, sigma, pairs: hg.OneStep(inner, check=None),
    "ES": lambda inner, sigma, pairs: hg.ES(inner, pairs, sigma=sigma),
    "Combined": lambda inner, sigma, pairs: hg.Combined(hg.Reverse(inner), hg.ES(inner, pairs, sigma=sigma)),
}


@dataclass(frozen=True)
class Config(Common):
    """Compare estimators with the true hypergradient on one small problem for every regime of training.

    The error is the median over keys of ‖found - true‖/‖true‖ of one estimate, the cost its gradient equivalents. In
    the chaotic and the discrete regime the truth is the hypergradient of the outer loss smoothed over σ.
    """

    regimes: Some[str] = tuple(REGIMES)  # Regimes to run.
    seeds: Seeds = 16
    pairs: Positive = 32  # Pairs of runs of evolution strategies.
    out: Out = Path("results/regimes")

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := [name for name in self.regimes if name not in REGIMES]:
            raise ValueError(f"regimes must be among {', '.join(REGIMES)}, got {', '.join(unknown)}")


def one_regime(config: Config, name: str, advance: Advance) -> dict[str, list[Row]]:
    """Returns error and cost of every estimator in one regime."""
    regime, lines = REGIMES[name](), []
    for estimator, make in ESTIMATORS.items():
        lines.append({"estimator": estimator, "meaning": regime.meaning} | measured(config, regime, make))
        advance(1 / len(ESTIMATORS))
    return {"runs": lines}


def measured(config: Config, regime: Regime, make: Make) -> Row:
    """Returns error, cost and flags of one estimator, or why it was refused."""
    try:
        estimator = make(regime.inner, regime.sigma, config.pairs)
        state = estimator.init(regime.problem, regime.params, regime.hparams)
        step = lambda key: estimator.step(regime.problem, regime.hparams, state, key)[0]
        found = [step(jax.random.key(seed)) for seed in config.seed_range()]
    except (TypeError, ValueError) as error:
        return {"error": None, "gradients": None, "flags": None, "refused": str(error)}
    miss = [np.linalg.norm(one.hypergradient - regime.truth) / np.linalg.norm(regime.truth) for one in found]
    flags = {str(hg.Status(int(one.stats.status))) for one in found} - {"OK"}
    cost = int(np.median([one.stats.counts.gradients for one in found]))
    return {"error": float(np.median(miss)), "gradients": cost, "flags": ", ".join(sorted(flags)), "refused": None}


def shown(run: Row) -> str:
    """Returns error and cost as a text, with an asterisk where the estimate was flagged."""
    if run["refused"] is not None:
        return "refused"
    error = "not finite" if run["error"] is None else f"{run['error']:.1g}"
    return f"{error}{'*' if run['flags'] else ''} ({run['gradients']})"


def table_of(runs: list[Row]) -> list[Row]:
    """Returns one line per regime: the error of every estimator, and its cost in brackets."""
    return [
        {"regime": ours[0]["regime"]} | {run["estimator"]: shown(run) for run in ours}
        for ours in grouped(runs, ("regime",))
    ]


def main(config: Config) -> dict[str, Any]:
    """Runs what is missing, writes everything, returns the summary."""
    with jax.enable_x64(True):
        one = lambda advance, regime: one_regime(config, regime, advance)
        cells = run_cells(config, grid(regime=config.regimes), one, "regimes")
    runs = rows(cells, "runs")
    return save(config, runs, table_of(runs), runs, "Error of one estimate (gradient equivalents)")
