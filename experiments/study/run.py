"""The study: configuration, cells, report."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax
import numpy as np

import hypergrad as hg

from ..common.cells import Advance, Cells, Labels, grid, run_cells
from ..common.command import command
from ..common.config import NonNegative, Out, PositiveFloat, Seeds, Some, WithData
from .cell import Draws, errors, flat, make_task, run_cell, with_image_noise
from .contest import Method, Task, budget_of, compile_method, uniform
from .criteria import CRITERIA, CriterionName
from .groups import per_weight
from .methods import METHODS, PUBLISHED, MethodName, contestants
from .report import report
from .settings import DataName, Setting, setting

Unit = Literal["iterations", "gradients"]
TUNING_SEED = 1_000_000  # far from the seeds that are reported
AFRESH = 10  # published iterations of training with noisy inputs
IMAGE_NOISES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
QUICK: dict[str, Any] = {
    "data": ("synthetic", "wisdm"),
    "methods": (*PUBLISHED, "tpe"),
    "budgets": ("iterations",),
    "seeds": 2,
    "scale": 0.2,
    "tuning_seeds": 0,
    "image_noise": False,
}


@dataclass(frozen=True)
class Config(WithData):
    """Greedy, DrMAD, HOAG and others against random search: one prior variance per weight, equal budgets.

    Every method spends the published number of iterations l times η updates of the weights, and in a second table as
    many gradient equivalents. random draws every log-variance from the published range; tpe (Optuna) searches one per
    layer; greedy, drmad, hoag, reverse and drmad_knots follow hypergradients with Adam from the first random draw; em
    sets the closed-form best prior of the evidence bound; random_greedy searches with a fifth of the budget and goes on
    with greedy. plain, the control, trains at the first random draw for the whole budget. Every other method has one
    setting that is tuned: four values on seeds of their own, by the criterion alone.

    The output folder holds summary.json, table.csv, table.tex, history.csv, report.md and the plots. A study that was
    stopped goes on where it was when started again with the same options.
    """

    data: Some[DataName] = ("synthetic", "digits", "wisdm")
    """mnist is the published size, for a GPU or a night; wisdm-raw is downloaded where --data-dir lacks it."""
    criteria: Some[CriterionName] = ("elbo", "cv")
    """elbo: evidence bound of a mean-field posterior. evidence: Laplace evidence of the most probable weights. cv:
    log-likelihood of held-out rows, four folds."""
    methods: Some[MethodName] = METHODS  # Methods to run.
    budgets: Some[Unit] = ("iterations", "gradients")
    """iterations: equal updates of the weights. gradients: equal gradient equivalents."""
    seeds: Seeds = 5
    """Number of repetitions, each with its own rows, folds, initial weights and initial hyperparameters."""
    scale: PositiveFloat = 1.0  # Factor on the updates of the weights per published iteration.
    period: int | None = None
    """Updates of the weights per hyper-update of drmad, hoag and reverse; ten by default, greedy has one."""
    average: float | None = None
    """Judge averaged weights, w̄ <- β w̄ + (1 - β) w after every update, with this β in every method."""
    tuning_seeds: NonNegative = 3
    """Seeds, others than are reported, on which four values of every method's setting are tried first; 0: no tuning."""
    image_noise: bool = False
    """Train again with noise on the training inputs, with the hyperparameters that were found."""
    out: Out = Path("results/study")

    def __post_init__(self):
        super().__post_init__()
        if self.period is not None and self.period < 1:
            raise ValueError(f"period must be positive, got {self.period}")
        if self.average is not None and not 0 <= self.average < 1:
            raise ValueError(f"average must be at least 0 and below 1, got {self.average}")


class Table:
    """One data set under one criterion: what is compiled once serves all of its cells."""

    def __init__(self, chosen: Setting, criterion: str, groups: Callable[..., Any] = per_weight):
        self.setting, self.groups = chosen, groups
        self.criterion = cache(lambda num_rows: CRITERIA[criterion](chosen, num_rows))
        self.contestants = contestants(chosen, groups(chosen.weights))

    def task(self, seed: int, unit: Unit) -> Task:
        """Returns the problem of a seed with what may be spent on it."""
        model_key, fold_key, start_key, run_key = jax.random.split(jax.random.key(seed), 4)
        rows = self.setting.sample(seed)
        start = uniform(self.groups(self.setting.weights), self.setting.prior)(start_key)
        draws = Draws(seed, model_key, fold_key, run_key)
        criterion, budget = self.criterion(len(rows.train.y)), budget_of(unit, self.setting.updates)
        return make_task(self.setting, criterion, rows, draws, start, budget)

    def retrained(self, task: Task, hparams: Any) -> list[dict[str, float | None]]:
        """Returns the test errors of training with noisy inputs at fixed hyperparameters."""
        inner, found = self.setting.training(AFRESH * self.setting.inner_steps), []
        for deviation in IMAGE_NOISES:
            noisy = with_image_noise(task, deviation)
            trained = hg.evaluate(inner, noisy.problem, noisy.params, hparams, noisy.key).params
            found.append({"image_noise": deviation, "E": errors(self.setting, noisy, (trained, hparams))["E"]})
        return found


class Contest:
    """The methods of one table, each tuned and compiled when its first cell runs."""

    def __init__(self, table: Table, tuning_seeds: int, store: Cells, labels: Labels):
        self.table, self.store, self.labels = table, store, labels
        self.seeds = range(TUNING_SEED, TUNING_SEED + tuning_seeds)
        self.ready = cache(self._ready)

    def cell(self, name: MethodName, task: Task, advance: Advance) -> tuple[dict[str, Any], Any]:
        """Returns the result of one cell, and what it found: (trained, hyperparameters) or `None`."""
        value, method = self.ready(name)
        row, history, best = run_cell(self.table.setting, task, method, advance)
        chosen = None if best is None else flat(best[1])
        return {"runs": [{"setting": value} | row], "history": history, "chosen": chosen}, best

    def _ready(self, name: MethodName) -> tuple[float, Method]:
        contestant = self.table.contestants[name]
        labels = self.labels | {"method": name, "tuning": "tuning"}
        tuned = self.seeds and len(contestant.values) > 1
        value = self.store.get(labels, lambda: self._tuned(name))["best"] if tuned else contestant.usual
        method = contestant.make(value)
        compile_method(method, self.table.task(0, "iterations"))
        return value, method

    def _tuned(self, name: MethodName) -> dict[str, Any]:
        """Returns the best of four values on seeds of their own, by the mean of the criterion."""
        tasks, found = [self.table.task(seed, "iterations") for seed in self.seeds], {}
        for value in self.table.contestants[name].values:
            method = self.table.contestants[name].make(value)
            found[value] = [run_cell(self.table.setting, task, method)[0]["Q"] for task in tasks]
        mean = {value: np.mean(Q) if np.isfinite(Q).all() else -np.inf for value, Q in found.items()}
        return {"best": max(mean, key=mean.__getitem__), "Q": found}


def forget_programs() -> None:
    """Frees the memory of compiled programs: those of one table are of no use to another."""
    eqx.clear_caches()
    jax.clear_caches()


def main(config: Config) -> dict[str, Any]:
    """Runs what is missing, writes everything, returns the summary."""
    store = Cells(config)

    @lru_cache(maxsize=1)
    def contest(data: DataName, criterion: CriterionName) -> Contest:
        forget_programs()
        table = Table(setting(data, config.data_dir, config.scale, config.period, config.average), criterion)
        return Contest(table, config.tuning_seeds, store, {"data": data, "criterion": criterion})

    def run(advance, data, criterion, method, budget, seed):
        here = contest(data, criterion)
        task = here.table.task(seed, budget)
        result, best = here.cell(method, task, advance)
        noisy = config.image_noise and best is not None and budget == "iterations"
        return result | {"noise": here.table.retrained(task, best[1]) if noisy else []}

    axes = {"data": config.data, "criterion": config.criteria, "method": config.methods, "budget": config.budgets}
    cells = [cell for cell in grid(**axes, seed=config.seed_range()) if allowed(**cell)]
    return report(config, run_cells(config, cells, run))


def allowed(method: MethodName, criterion: CriterionName, **others: Any) -> bool:
    """Returns whether a method knows a criterion: the closed-form step is one for the evidence bound."""
    return method != "em" or criterion == "elbo"


def only(data: DataName, quick: DataName | None = None, **usual: Any) -> None:
    """Runs the command of one data set; `usual` are its defaults where they differ."""
    out = Path(f"results/study-{data}")
    small = QUICK | {"data": (quick or data,)}
    command(main, Config(data=(data,), out=out, **usual), f"study.{data}", quick=small)
