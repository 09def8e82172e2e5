"""Sweeps over the number of hyperparameters and the number of hyper-updates."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..common.cells import Cells, grid, rows, run_cells
from ..common.command import command
from ..common.config import NonNegative, Out, PositiveFloat, Seeds, Some, WithData
from ..common.figures import COLOURS, figure
from ..common.report import grouped, save, spread_table
from . import run
from .cell import flat
from .criteria import CriterionName
from .groups import GROUPS
from .methods import MethodName
from .plots import WORDS
from .report import compare
from .settings import DataName, setting

CLIMBING: tuple[MethodName, ...] = ("greedy", "drmad", "hoag", "reverse")
GroupName = Literal["one", "layers", "inputs", "weights"]
SIZES = {"one": "one in all", "layers": "one per array", "inputs": "one per input", "weights": "one per weight"}
QUICK: dict[str, Any] = {"seeds": 2, "scale": 0.2, "periods": (10, 100), "tuning_seeds": 0}


@dataclass(frozen=True)
class Config(WithData):
    """Two sweeps on one data set and criterion, at equal updates of the weights.

    Groups: random search and a gradient method with one hyperparameter in all, one per array, per input of a layer and
    per weight. Periods: greedy, drmad, hoag and reverse with more or fewer updates of the weights per hyper-update;
    the published drmad and hoag made one hyper-update per iteration, greedy one per update of the weights.
    """

    data: DataName = "wisdm"  # Data set.
    criterion: CriterionName = "elbo"  # elbo, evidence or cv.
    groups: Some[GroupName] = ("one", "layers", "inputs", "weights")  # Sizes of the first sweep.
    climber: MethodName = "greedy"  # The gradient method of the first sweep.
    periods: Some[int] = (5, 10, 25, 100)  # Periods of the second sweep.
    seeds: Seeds = 5
    scale: PositiveFloat = 1.0  # Factor on the updates of the weights per published iteration.
    tuning_seeds: NonNegative = 1  # As of experiments.study, at every point of a sweep.
    out: Out = Path("results/study-sweeps")


def main(config: Config) -> dict[str, Any]:
    """Runs what is missing, writes everything, returns the summary."""
    store = Cells(config)

    @lru_cache(maxsize=1)
    def contest(sweep: str, value: Any) -> run.Contest:
        run.forget_programs()
        period, groups = (None, GROUPS[value]) if sweep == "groups" else (value, GROUPS["weights"])
        table = run.Table(setting(config.data, config.data_dir, config.scale, period), config.criterion, groups)
        return run.Contest(table, config.tuning_seeds, store, {"sweep": sweep, "value": value})

    def cell(advance, sweep, value, method, seed):
        here = contest(sweep, value)
        task = here.table.task(seed, "iterations")
        fixed = {"hyperparameters": flat(task.start).size, "data": config.data, "criterion": config.criterion}
        result, _ = here.cell(method, task, advance)
        return {"runs": [fixed | {"budget": "iterations"} | row for row in result["runs"]]}

    seeds = config.seed_range()
    cells = grid(sweep=["groups"], value=config.groups, method=("random", config.climber), seed=seeds)
    cells += grid(sweep=["periods"], value=config.periods, method=CLIMBING, seed=seeds)
    runs = rows(run_cells(config, cells, cell), "runs")
    point = ("sweep", "value", "hyperparameters")
    claims = [{key: mine[0][key] for key in point} | claim for mine in grouped(runs, point) for claim in compare(mine)]
    columns = ("Q", "E", "hyper_updates", "gradients", "seconds")
    table = spread_table(runs, (*point, "method"), columns)
    draw(config, runs, claims)
    title = f"{config.data}, {config.criterion}, {config.seeds} seeds, mean ± standard deviation; Q in nats"
    return save(config, runs, table, runs, title, claims=claims)


def draw(config: Config, runs: list[dict[str, Any]], claims: list[dict[str, Any]]) -> None:
    """Draws the gain over random search against hyperparameters, and Q against hyper-updates."""
    gains = [claim for claim in claims if claim["sweep"] == "groups" and "above_random" in claim]
    with figure(config.out / "groups.png", size=(6, 4)) as axes:
        counts = [claim["hyperparameters"] for claim in gains]
        values, errors = ([claim[name] for claim in gains] for name in ("above_random", "above_random_error"))
        axes.errorbar(counts, values, np.nan_to_num(errors, posinf=0), capsize=3, marker="o", color=COLOURS[0])
        for claim in gains:
            point = (claim["hyperparameters"], claim["above_random"])
            axes.annotate(SIZES[claim["value"]], point, (-6, 6), textcoords="offset points", ha="right")
        axes.axhline(0, color="grey", lw=0.8)
        climber = WORDS.get(config.climber, config.climber)
        axes.set(xscale="log", xlabel="number of hyperparameters", ylabel=f"Q of {climber} less random search, nats")
        axes.set_xlim(left=0.2)
        axes.grid(alpha=0.3)
    with figure(config.out / "periods.png", size=(6, 4)) as axes:
        mine = [run for run in runs if run["sweep"] == "periods" and run["Q"] is not None]
        for name, colour in zip(dict.fromkeys(run["method"] for run in mine), COLOURS, strict=False):
            cells = [[r for r in mine if (r["method"], r["value"]) == (name, period)] for period in config.periods]
            updates, values = (
                [np.array([run[key] for run in some]) for some in cells] for key in ("hyper_updates", "Q")
            )
            means, spread = zip(*((value.mean(), value.std() / np.sqrt(len(value))) for value in values), strict=True)
            where = [update.mean() for update in updates]
            label = WORDS.get(name, name)
            axes.errorbar(where, means, spread, capsize=3, marker="o", color=colour, label=label)
        axes.set(xscale="log", xlabel="number of hyper-updates", ylabel="Q, nats (mean and its error)")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)


if __name__ == "__main__":
    command(main, Config(), "study.sweeps", quick=QUICK)
