"""The study: configuration, loop over cells, report."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax
import numpy as np
import optax
from tqdm.auto import tqdm

import hypergrad as hg

from ..common.cells import Cells, Labels
from ..common.command import command
from ..common.config import NonNegative, Out, PositiveFloat, Seeds, Some, WithData
from ..common.contest import Method, compile_method
from .cell import errors, make_problem, run_cell, with_image_noise
from .criteria import CriterionName
from .groups import per_weight
from .methods import METHODS, PUBLISHED, Contestant, MethodName, contestants
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
    """Greedy, DrMAD, HOAG and others against random search: one prior variance per weight, two criteria, equal budgets.

    Every method spends the published number of iterations l times η updates of the weights, and in a second table as
    many gradient equivalents. random draws every log-variance from the published range; tpe (Optuna) searches one per
    layer; greedy, drmad, hoag, reverse and drmad_knots follow hypergradients with Adam from the first random draw; em
    sets the closed-form best prior of the evidence bound; random_greedy searches with a fifth of the budget and goes on
    with greedy. Every method has one setting that is tuned: four values on seeds of their own, by the criterion alone.

    The output folder holds summary.json, table.csv, table.tex, history.csv, report.md and the plots. A study that was
    stopped goes on where it was when started again with the same options.
    """

    data: Some[DataName] = ("synthetic", "digits", "wisdm")
    """mnist is the published size, for a GPU or a night; wisdm-raw is downloaded where --data-dir lacks it."""
    criteria: Some[CriterionName] = ("elbo", "cv")
    """elbo: evidence bound of a mean-field posterior. cv: log-likelihood of held-out rows, four folds."""
    methods: Some[MethodName] = METHODS
    """Which methods to run."""
    budgets: Some[Unit] = ("iterations", "gradients")
    """iterations: equal updates of the weights. gradients: equal gradient equivalents."""
    seeds: Seeds = 5
    """Number of repetitions, each with its own rows, folds, initial weights and initial hyperparameters."""
    scale: PositiveFloat = 1.0
    """Factor on the updates of the weights per published iteration."""
    period: int | None = None
    """Updates of the weights per hyper-update of drmad, hoag and reverse; ten by default, greedy has one."""
    tuning_seeds: NonNegative = 3
    """Seeds, others than are reported, on which four values of every method's setting are tried first; 0: no tuning."""
    image_noise: bool = False
    """Train again with noise on the training inputs, with the hyperparameters that were found."""
    out: Out = Path("results/study")

    def __post_init__(self):
        super().__post_init__()
        if self.period is not None and self.period < 1:
            raise ValueError(f"period must be positive, got {self.period}")


@dataclass
class Table:
    """The cells of one data set and criterion: what is compiled once serves all of them."""

    config: Config
    data: DataName
    criterion: CriterionName
    setting: Setting
    store: Cells
    labels: Labels
    advance: Callable[[float], Any]
    losses: dict = field(default_factory=dict)
    groups: Callable = per_weight

    def __post_init__(self):
        self.inner = hg.OptaxSolver(optax.adam(self.setting.inner_lr), AFRESH * self.setting.inner_steps)

    def problem(self, seed: int, unit: Unit):
        """The problem of a seed, with what may be spent on it."""
        amount: dict[str, Any] = {unit: self.setting.updates}
        return make_problem(self.setting, self.criterion, self.losses, hg.Budget(**amount), seed, self.groups)

    def run(self) -> list[dict[str, Any]]:
        """All cells, finished or not."""
        names = [name for name in self.config.methods if (name, self.criterion) != ("em", "cv")]
        known = contestants(self.setting, self.problem(0, "iterations").task.start)
        return [cell for name in names for cell in self.cells(name, known[name])]

    def cells(self, name: MethodName, contestant: Contestant) -> list[dict[str, Any]]:
        """The cells of one method."""
        value = self.tuned(name, contestant) if self.config.tuning_seeds else contestant.usual
        method, compiled, found = contestant.make(value), False, []
        for unit in self.config.budgets:
            for seed in self.config.seed_range():
                place = {
                    **self.labels,
                    "data": self.data,
                    "criterion": self.criterion,
                    "budget": unit,
                    "method": name,
                    "seed": seed,
                }
                if place not in self.store:
                    problem = self.problem(seed, unit)
                    if not compiled:
                        compile_method(method, problem.task)
                        compiled = True
                    labels: dict[str, Any] = {"data": self.data, "criterion": self.criterion, "budget": unit}
                    labels |= {"method": name, "seed": seed, "setting": value}
                    self.store.write(place, self.cell(labels, problem, method))
                else:
                    self.advance(1)
                found.append(self.store.read(place))
        return found

    def cell(self, labels: dict[str, Any], problem, method: Method) -> dict[str, Any]:
        """One cell; with `image_noise` also what training with noisy inputs gives at the hyperparameters found."""
        row, history, best = run_cell(self.setting, problem, method, self.advance)
        chosen = None if best is None else np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(best[1])])
        noisy = []
        if self.config.image_noise and best is not None and labels["budget"] == "iterations":
            noisy = [labels | self.retrained(problem, best[1], deviation) for deviation in IMAGE_NOISES]
        return {"run": labels | row, "history": [labels | line for line in history], "noise": noisy, "chosen": chosen}

    def retrained(self, problem, hparams, deviation: float) -> dict[str, float | None]:
        """The test error of training with noisy inputs at fixed hyperparameters."""
        noisy = with_image_noise(problem, deviation, problem.task.seed).task
        trained = hg.evaluate(self.inner, noisy.problem, noisy.params, hparams, noisy.key).params
        return {"image_noise": deviation, "E": errors(self.setting, noisy, (trained, hparams), problem.test)["E"]}

    def tuned(self, name: MethodName, contestant: Contestant) -> float:
        """The best of the four values on seeds of their own, by the mean of the criterion."""
        place = {**self.labels, "data": self.data, "criterion": self.criterion, "method": name, "tuning": "tuning"}
        if place not in self.store:
            seeds = range(TUNING_SEED, TUNING_SEED + self.config.tuning_seeds)
            problems, tried = [self.problem(seed, "iterations") for seed in seeds], {}
            for value in contestant.values:
                method = contestant.make(value)
                tried[value] = [run_cell(self.setting, problem, method, ignore)[0]["Q"] for problem in problems]
            mean = {value: np.mean(found) if np.isfinite(found).all() else -np.inf for value, found in tried.items()}
            self.store.write(place, {"best": max(mean, key=mean.__getitem__), "Q": tried})
        return self.store.read(place)["best"]


@contextmanager
def progress(cells: int) -> Iterator[tuple[tqdm, Callable[[float], Any]]]:
    """A bar of so many cells, and what moves it on by shares of one, never past its end."""
    form = "{l_bar}{bar}| {n:.1f}/{total} cells [{elapsed}<{remaining}{postfix}]"
    with tqdm(total=cells, bar_format=form) as bar:
        yield bar, lambda share: bar.update(min(share, bar.total - bar.n))


def ignore(share: float) -> None:
    """No progress is shown."""


def main(config: Config) -> dict[str, Any]:
    """Run what is missing, write everything, return the summary."""
    store = Cells(config)
    found = []
    tables = [(data, criterion) for data in config.data for criterion in config.criteria]
    per_table = len(config.methods) * len(config.budgets) * config.seeds
    with progress(len(tables) * per_table) as (bar, advance):
        for data, criterion in tables:
            bar.set_postfix_str(f"{data}, {criterion}")
            chosen = setting(data, config.data_dir, config.scale, config.period)
            found += Table(config, data, criterion, chosen, store, {}, advance).run()
            eqx.clear_caches()
            jax.clear_caches()
    return report(config, found)


def only(data: DataName, quick: DataName | None = None, **usual: Any) -> None:
    """The command of one data set; `usual` are its options where they differ."""
    out = Path(f"results/study-{data}")
    small = QUICK | {"data": (quick or data,)}
    command(main, Config(data=(data,), out=out, **usual), f"study.{data}", quick=small)
