"""Tabular data: configuration, loop over sets, splits, starts and methods, report."""

import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import jax

from ..common.cells import grid, run_cells
from ..common.config import Fraction, Out, Positive, Rule, Some, WithData
from .data import available, read, refuse_missing_splits
from .methods import METHODS, fixed
from .model import GOOD, STARTS, losses_of, network
from .report import FIXED, report
from .task import Task

Name = Annotated[str, Rule(lambda name: name in METHODS, f"must be among {', '.join(METHODS)}")]
Start = Annotated[str, Rule(lambda name: name in STARTS, f"must be among {', '.join(STARTS)}")]
SETS = ("yacht", "energy", "wine-quality-red", "kin8nm", "diabetes", "breast-cancer", "digits")
QUICK: dict[str, Any] = {
    "sets": ("diabetes", "wine"),
    "starts": ("good", "rate x 30"),
    "methods": ("plain", "tpe, 10 % trials", "per weight, guarded", "tune"),
    "seeds": 1,
    "budget": 400,
    "hidden": 8,
    "batch": 32,
}


@dataclass(frozen=True)
class Config(WithData):
    """Train a small network on tabular data from good and bad hyperparameters, at one budget in gradients.

    A network with two hidden layers learns with Adam; hyperparameters are one weight decay per layer, the rate and b1.
    plain trains at the start for the whole budget. tpe trains a trial per 2 or 10 % of it, the first at the start.
    cold differentiates whole runs of 2 % each. online differentiates the last 10 of every 100 updates while
    training goes on; averaged, the loss is that of averaged weights; with a long horizon, the last 100 of every
    1,000; pes takes persistent evolution strategies over 100 updates, with two pairs. With four folds, an evidence
    bound or the training loss, λ follows a criterion on the training rows: of four networks that predict together, of
    a posterior, or of rate and b1 alone; the validation rows choose the best step. per weight is online with one
    decay per weight; guarded, half of the validation rows choose the best step and decays shrink to the mean of
    their layer. layer and weight has both a decay for the layer and a factor to it for each weight; guarded, the
    factors shrink. tune is `hypergrad.tune` as a newcomer would call it; free momentum lifts its bound on the
    memory of a momentum. All keep the best model on the validation rows; the test rows are measured on the way for
    the plot and choose nothing. The yardstick, with --grid, is the best of 50 fixed settings, each trained with the
    whole budget, as the test rows show it in hindsight.

    Sets: folders of --data-dir (or of its folder uci) that hold data.txt.gz, index_features.txt, index_target.txt and
    splits.npz; diabetes, breast-cancer, wine and digits ship with scikit-learn. A seed is a split, its first weights
    and its batches.
    """

    sets: Some[str] = SETS  # Data sets.
    starts: Some[Start] = tuple(STARTS)  # Hyperparameters to start from.
    methods: Some[Name] = tuple(METHODS)  # Methods.
    out: Out = Path("results/tabular")
    budget: Positive = 20_000  # Gradient equivalents per run.
    hidden: Positive = 32  # Units of each hidden layer.
    batch: Positive = 32  # Rows per update.
    grid: bool = False  # Also train the fixed settings of a grid.
    valid: Fraction = 0.2  # Share of the training rows that validate.

    def __post_init__(self):
        super().__post_init__()
        if self.budget < 200:
            raise ValueError(f"budget must be at least 200, got {self.budget}")


def main(config: Config) -> dict[str, Any]:
    """Runs what is missing, writes everything, returns the summary."""
    if unknown := set(config.sets) - set(available(config.data_dir)):
        raise FileNotFoundError(
            f"no data set {', '.join(sorted(unknown))} in {config.data_dir}; there are "
            f"{', '.join(available(config.data_dir))}; name a folder with --data-dir or choose others with --sets"
        )
    for name in config.sets:
        refuse_missing_splits(name, config.data_dir, config.seed_range())
    losses = cache(lambda classes: losses_of(classes, config.batch))  # one function per kind: compiled once

    def task_of(set, seed, start):
        table = read(set, config.data_dir, seed, config.valid)
        init_key, run_key = jax.random.split(jax.random.key(seed))
        model = network(init_key, table, config.hidden)
        return Task(table, losses(table.classes), model, start, config.budget, config.batch, run_key)

    def run(advance, set, start, method, seed):
        task, begun = task_of(set, seed, STARTS.get(start, GOOD)), time.monotonic()
        if method == FIXED:
            return {"runs": [], "history": [], "fixed": fixed(task)}
        params, hparams, gradients = METHODS[method](task)
        task.record(params, gradients)
        row = dict(task.history[-1]) | {"valid_loss": task.valid_loss(params), "seconds": time.monotonic() - begun}
        advance(1.0)
        return {"runs": [row], "history": task.history, "fixed": [], "hparams": task.summary(hparams)}

    where = {"seed": config.seed_range(), "set": config.sets}
    cells = grid(**where, start=config.starts, method=config.methods)
    cells += grid(**where, start=["any"], method=[FIXED]) if config.grid else []
    return report(config, run_cells(config, cells, run, "runs"))
