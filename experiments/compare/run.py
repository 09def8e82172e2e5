"""The comparison: configuration, loop over methods and seeds, tables and plots."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax
import numpy as np
from tqdm.auto import tqdm

import hypergrad as hg

from ..common.cells import Cells
from ..common.config import OnSplits, Out, Positive, Some
from ..common.contest import Task, Tracker, compile_method, full
from ..common.data import Splits, split
from ..common.report import save, spread_table
from .methods import BOX, START, all_methods
from .model import CRITERIA, network
from .plots import draw

QUICK = {"seeds": 1, "budget": 600.0}
MethodName = Literal["greedy", "drmad", "hoag", "reverse", "random", "random_scalar", "tpe", "best_scalar"]
ALL: tuple[MethodName, ...] = ("greedy", "drmad", "hoag", "reverse", "random", "random_scalar", "tpe", "best_scalar")


@dataclass(frozen=True)
class Config(OnSplits):
    """Learn one prior variance per weight of a small network, by gradient and by search, at one budget.

    A network with one hidden layer is trained on handwritten digits. Every weight has a Gaussian prior of its own,
    whose log-variance is a hyperparameter (4,810 of them for the digits). greedy, drmad, hoag and reverse follow
    hypergradients; random draws all of them, random_scalar one for all, tpe (Optuna) one per layer. best_scalar
    trains every value of a grid with the whole budget each: a bound for what one scalar can do, not at equal budget.

    The output folder holds config.json, summary.json, history.csv, table.md and the plots. A run that was stopped
    goes on where it was when started again with the same options.
    """

    criterion: Literal["elbo", "validation"] = "elbo"
    """elbo: variational evidence bound on the training data. validation: cross-entropy on held-out data."""
    methods: Some[MethodName] = ALL
    """Which methods to run."""
    budget: float = 3000
    """What every method may spend, per seed."""
    budget_unit: Literal["iterations", "gradients", "seconds"] = "iterations"
    """iterations: updates of the weights. gradients: gradient equivalents. seconds: wall time."""
    out: Out = Path("results/compare")
    hidden: Positive = 64
    """Hidden units."""
    batch: Positive = 100
    """Rows per training step."""
    outer_batch: Positive = 2000
    """Rows per outer gradient; all of them if there are no more."""
    inner_lr: float = 0.01
    """Learning rate of Adam on the weights."""
    hyper_lr: float = 0.1
    """Learning rate of Adam on the log-variances, the same for all gradient methods."""
    period: Positive = 10
    """Training steps per hyper-update of drmad, hoag and reverse (greedy: 1)."""
    knots: Positive = 1
    """Segments of DrMAD's path; 1 is the paper's straight line."""
    cg_steps: Positive = 20
    """Conjugate-gradient steps of hoag."""
    cg_damping: float = 0.1
    """Added to the Hessian by hoag: one-sample Hessians are indefinite."""
    trial_steps: Positive = 300
    """Training steps per trial of random, random_scalar and tpe."""

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.knots <= self.period:
            raise ValueError(f"knots must be between 1 and period ({self.period}), got {self.knots}")
        self.spendable()

    def spendable(self) -> hg.Budget:
        """The budget of one run."""
        amount: dict[str, Any] = {self.budget_unit: self.budget}
        return hg.Budget(**amount)


def make_task(config: Config, criterion, data: Splits, seed: int) -> Task:
    """The problem of one seed."""
    init_key, run_key = jax.random.split(jax.random.key(seed))
    model = network(data.train.x.shape[1], config.hidden, init_key)
    weights = eqx.filter(model, eqx.is_inexact_array)
    train, valid = ((part.x.astype(model.layers[0].weight.dtype), part.y) for part in (data.train, data.valid))
    problem = hg.BilevelProblem(
        criterion.inner_loss, criterion.outer_loss, train, valid if criterion.uses_valid else train
    )
    start = full(weights, START)
    return Task(problem, criterion.wrap(model), weights, start, BOX, criterion, config.spendable(), run_key, seed)


def run_cell(config: Config, task: Task, method, name: str, data: Splits, advance) -> tuple[dict, list, np.ndarray]:
    """One method on one seed: its summary, its history, and the log-variances it chose."""
    tracker = Tracker(task, advance)
    method(task, tracker)
    seconds = tracker.seconds
    advance(1 - tracker.share)
    chosen = full(task.weights, np.nan)
    accuracy = nll = None
    if tracker.best is not None:
        params, chosen = tracker.best
        log_probs = np.asarray(_predict(task.criterion.predict, params, data.test.x))
        accuracy = float(np.mean(log_probs.argmax(1) == data.test.y))
        nll = float(-np.mean(log_probs[np.arange(len(data.test.y)), data.test.y]))
    last = tracker.history[-1]
    row = {
        "method": name,
        "seed": task.seed,
        "criterion": config.criterion,
        "best_value": tracker.value,
        "test_accuracy": accuracy,
        "test_nll": nll,
        **{count: last[count] for count in ("iterations", "gradients", "hvps", "hyper_updates")},
        "seconds": round(seconds, 3),
        "status": tracker.status.name or "OK",
    }
    history = [{"method": name, "seed": task.seed, **line} for line in tracker.history]
    return row, history, np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(chosen)])


@eqx.filter_jit
def _predict(predict, params, x):
    return predict(params, x, jax.random.key(1))


def main(config: Config) -> dict[str, Any]:
    """Run what is missing, write everything, return the summary."""
    store = Cells(config)
    cells = {(name, seed): {"method": name, "seed": seed} for name in config.methods for seed in config.seed_range()}
    criterion = CRITERIA[config.criterion](config.num_train, config.batch, config.outer_batch)
    form = "{l_bar}{bar}| {n:.1f}/{total} runs [{elapsed}<{remaining}{postfix}]"
    with tqdm(total=len(cells), bar_format=form) as bar:
        advance = lambda share: bar.update(min(share, len(cells) - bar.n))  # shares are rounded sums
        for name in config.methods:
            missing = [seed for seed in config.seed_range() if cells[name, seed] not in store]
            advance(config.seeds - len(missing))
            method = first_call = None
            for seed in missing:
                bar.set_postfix_str(f"{name}, seed {seed}")
                data = split(config.data, config.data_dir, seed, config.num_train, config.num_valid)
                task = make_task(config, criterion, data, seed)
                if method is None:
                    method = all_methods(config, task.weights)[name]
                    first_call = compile_method(method, task)
                row, history, chosen = run_cell(config, task, method, name, data, advance)
                row["first_call_seconds"] = first_call
                store.write(cells[name, seed], {"run": row, "history": history, "log_variances": chosen})
    return report(config, [store.read(labels) for labels in cells.values()])


def report(config: Config, cells: list[dict]) -> dict[str, Any]:
    """summary.json, history.csv, table.md and the plots."""
    runs = [cell["run"] for cell in cells]
    columns = (
        "best_value",
        "test_accuracy",
        "test_nll",
        "iterations",
        "gradients",
        "hvps",
        "hyper_updates",
        "seconds",
    )
    table = spread_table(runs, ("method",), columns)
    table.sort(key=lambda line: float(line["best_value"].split()[0]) if line["best_value"] != "-" else np.inf)
    draw(config, cells)
    criterion = "negative ELBO per example" if config.criterion == "elbo" else "validation loss"
    title = f"{config.data}, {config.seeds} seeds, mean ± standard deviation; best_value is the {criterion}"
    return save(config, runs, table, [line for cell in cells for line in cell["history"]], title)
