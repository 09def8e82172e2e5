"""The comparison: configuration, cells, report."""

import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

import hypergrad as hg
from ensembles import predictive_log_probs

from ..common.cells import grid, rows, run_cells
from ..common.command import num_cores, share_cores
from ..common.config import NonNegative, OnSplits, Out, Positive, Some
from ..common.data import INPUTS, Rows
from ..common.figures import figure, step_curves
from ..common.report import save, spread_table
from ..study.cell import Draws, flat, make_task
from ..study.contest import COUNTS, Task, budget_of, compete, compile_method, full
from ..study.criteria import CRITERIA
from ..study.methods import estimators
from ..study.plots import STYLES
from ..study.settings import IMAGES, Setting, log_probs, network
from .methods import ALL, MethodName, methods

QUICK = {"seeds": 1, "budget": 600.0}
BOX = (-10.0, 4.0)  # range of the log-variances, for every method
START = -3.0  # the middle of the box
EVALUATION_ROWS = 5000
TEST_SAMPLES = 64  # of the posterior
LABELS = {
    "elbo": "negative ELBO per example",
    "evidence": "negative log evidence per example",
    "validation": "validation loss",
}


@dataclass(frozen=True)
class Config(OnSplits):
    """Learn one prior variance per weight of a small network, by gradient and by search, at one budget.

    A network with one hidden layer is trained on handwritten digits. Every weight has a Gaussian prior of its own,
    whose log-variance is a hyperparameter (4,810 of them for the digits). greedy, drmad, hoag and reverse follow
    hypergradients; random draws all of them, random_scalar one for all, tpe (Optuna) one per layer. plain, the control,
    trains at the start of the gradients with the whole budget. best_scalar trains every value of a grid with the whole
    budget each: a bound for what one scalar can do, not at equal budget.

    The output folder holds config.json, summary.json, history.csv, table.md and the plots. A run that was stopped
    goes on where it was when started again with the same options.
    """

    criterion: Literal["elbo", "evidence", "validation"] = "elbo"
    """elbo: variational evidence bound on the training data. evidence: Laplace evidence of the training data.
    validation: cross-entropy on held-out data."""
    methods: Some[MethodName] = ALL  # Methods to run.
    budget: float = 3000  # Budget of every method, per seed.
    budget_unit: Literal["iterations", "gradients", "seconds"] = "iterations"
    """iterations: updates of the weights. gradients: gradient equivalents. seconds: wall time."""
    out: Out = Path("results/compare")
    hidden: Positive = 64  # Hidden units.
    batch: Positive = 100  # Rows per training step.
    outer_batch: Positive = 2000  # Rows per outer gradient; all of them if there are no more.
    inner_lr: float = 0.01  # Learning rate of Adam on the weights.
    hyper_lr: float = 0.1  # Learning rate of Adam on the log-variances, the same for all gradient methods.
    period: Positive = 10  # Training steps per hyper-update of drmad, hoag and reverse (greedy: 1).
    knots: Positive = 1  # Segments of DrMAD's path; 1 is the paper's straight line.
    cg_steps: Positive = 20  # Conjugate-gradient steps of hoag.
    cg_damping: float | None = None
    """Added to the Hessian by hoag, as one-sample Hessians are indefinite. None: as much as another batch asks for."""
    trial_steps: Positive = 300  # Training steps per trial of random, random_scalar and tpe.
    jobs: NonNegative = 0
    """Runs at the same time. 0: one per core; where the budget is in seconds, one."""

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.knots <= self.period:
            raise ValueError(f"knots must be between 1 and period ({self.period}), got {self.knots}")
        budget_of(self.budget_unit, self.budget)

    @property
    def threads(self) -> int:
        """The number of runs at the same time."""
        return self.jobs or (1 if self.budget_unit == "seconds" else num_cores())


def start(config: Config) -> dict[str, Any]:
    """Divides the cores among the runs, then does what `main` does."""
    share_cores(config.threads)
    return main(config)


def make_setting(config: Config) -> Setting:
    """Returns the data, the model and the training that the options describe."""
    timed = config.budget_unit == "seconds"
    return Setting(
        config.splits,
        network(INPUTS[config.data], 10, config.hidden, jnp.tanh),
        **IMAGES,
        box=BOX,
        prior=BOX,
        outer_steps=1,
        inner_steps=200 * config.period if timed else max(1, int(config.budget)),
        period=config.period,
        batch=config.batch,
        outer_batch=config.outer_batch,
        inner_lr=config.inner_lr,
        knots=config.knots,
        linear_solver=linear_solver(config),
        evaluation_rows=EVALUATION_ROWS,
    )


def linear_solver(config: Config) -> hg.linear.AbstractLinearSolver:
    """Returns the linear solver of hoag."""
    if config.cg_damping is None:
        return hg.linear.LevenbergMarquardt(config.cg_steps)
    return hg.CG(config.cg_steps, damping=config.cg_damping)


@eqx.filter_jit
def predict(trained: Any, x: ArrayLike, posterior: bool) -> jax.Array:
    """Returns the log-probabilities of the classes, averaged over the posterior if there is one."""
    if not posterior:
        return log_probs(trained, x)
    return predictive_log_probs(trained, lambda model: log_probs(model, x), jax.random.key(1), TEST_SAMPLES)


def on_test(best: tuple[Any, Any] | None, test: Rows, posterior: bool) -> dict[str, float | None]:
    """Returns accuracy and negative log-likelihood per row of what was found."""
    if best is None:
        return {"test_accuracy": None, "test_nll": None}
    found, rows = np.asarray(predict(best[0], test.x, posterior)), np.arange(len(test.y))
    accuracy, nll = np.mean(found.argmax(1) == test.y), -np.mean(found[rows, test.y])
    return {"test_accuracy": float(accuracy), "test_nll": float(nll)}


def main(config: Config) -> dict[str, Any]:
    """Runs what is missing, writes everything, returns the summary."""
    setting, budget = make_setting(config), budget_of(config.budget_unit, config.budget)
    criterion = CRITERIA[config.criterion](setting, config.num_train)
    straight = 10 * config.trial_steps if config.budget_unit == "seconds" else max(1, int(config.budget))
    by_name = methods(setting, config.hyper_lr, config.trial_steps, straight)

    def task_of(seed: int) -> Task:
        model_key, run_key = jax.random.split(jax.random.key(seed))
        draws = Draws(seed, model_key, model_key, run_key)  # no criterion has folds
        return make_task(setting, criterion, setting.sample(seed), draws, full(setting.weights, START), budget)

    first_call = cache(lambda method: compile_method(by_name[method], task_of(config.first_seed)))
    alone = {method: threading.Lock() for method in config.methods}

    def run(advance, method, seed):
        with alone[method]:
            compiling, task = first_call(method), task_of(seed)
        tracker, totals = compete(by_name[method], task, advance)
        row: dict[str, Any] = {"criterion": config.criterion, "best_value": tracker.value}
        row |= on_test(tracker.best, task.rows.test, config.criterion == "elbo")
        row |= totals | {"first_call_seconds": compiling}
        chosen = full(setting.weights, np.nan) if tracker.best is None else tracker.best[1]
        return {"runs": [row], "history": tracker.history, "log_variances": flat(chosen)}

    cells = run_cells(config, grid(method=config.methods, seed=config.seed_range()), run, "runs", jobs=config.threads)
    learned = {
        cell["runs"][0]["method"]: np.array(cell["log_variances"], float)
        for cell in cells
        if cell["runs"][0]["method"] in estimators(setting) and cell["runs"][0]["seed"] == config.first_seed
    }
    draw(config.out, learned, setting.weights.layers[0].weight.shape, rows(cells, "history"), LABELS[config.criterion])
    return report(config, cells)


def report(config: Config, cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Writes summary.json, history.csv and table.md, and returns the summary."""
    runs, columns = rows(cells, "runs"), ("best_value", "test_accuracy", "test_nll", *COUNTS, "seconds")
    table = spread_table(runs, ("method",), columns)
    table.sort(key=lambda line: float(line["best_value"].split()[0]) if line["best_value"] != "-" else np.inf)
    title = (
        f"{config.data}, {config.seeds} seeds, mean ± standard deviation; best_value is the {LABELS[config.criterion]}"
    )
    return save(config, runs, table, rows(cells, "history"), title)


HEADINGS = {"iterations": "updates of the weights", "seconds": "seconds, without compilation"}


def draw(
    out: Path, learned: dict[str, np.ndarray], shape: tuple[int, int], history: list[dict[str, Any]], label: str
) -> None:
    """Draws the courses of all methods, and the log-variances that were learned for the first layer of this shape."""
    for unit in HEADINGS:
        courses(out / f"criterion_{unit}.png", history, unit, label)
    if learned:
        histograms(out / "log_variances.png", learned)
        maps(out / "first_layer.png", learned, shape)


def courses(path: Path, history: list[dict[str, Any]], unit: str, measure: str) -> None:
    """Draws the best criterion so far against cost; a line where the budget was larger."""
    with figure(path) as axes:
        others = [line for line in history if line["method"] != "best_scalar"]
        step_curves(axes, others, unit, "best", STYLES)
        scalar = {line["seed"]: line["best"] for line in history if line["method"] == "best_scalar"}  # the last counts
        values = [value for value in scalar.values() if value is not None]
        if values:
            label, colour = STYLES.of("best_scalar")
            axes.axhline(np.median(values), color=colour, ls=":", label=f"{label}, larger budget")
        axes.set(xlabel=HEADINGS[unit], ylabel=f"best {measure}", yscale="log")
        for axis in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            axis("{x:g}")
        if unit == "seconds":
            axes.set_xscale("log", subs=(2, 5))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("{x:g}")
        axes.legend(fontsize=8, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False)


def histograms(path: Path, learned: dict[str, np.ndarray]) -> None:
    """Draws the learned prior log-variances of all weights."""
    with figure(path, size=(7, 4)) as axes:
        for name, values in learned.items():
            label, colour = STYLES.of(name)
            axes.hist(values, bins=80, histtype="step", lw=1.6, color=colour, label=label)
        axes.set(xlabel="prior log-variance", ylabel="weights", yscale="log")
        axes.legend()


def maps(path: Path, learned: dict[str, np.ndarray], shape: tuple[int, int]) -> None:
    """Draws the mean log-variance of the weights leaving each pixel: the pixels that the prior lets matter."""
    hidden, inputs = shape
    side = int(np.sqrt(inputs))
    images = [flat[: hidden * inputs].reshape(hidden, side, side).mean(0) for flat in learned.values()]
    low, high = np.nanmin(images), np.nanmax(images)
    with figure(path, 1, len(images), (3 * len(images), 3.2), squeeze=False) as axes:
        for ax, name, image in zip(axes[0], learned, images, strict=True):
            drawn = ax.imshow(image, vmin=low, vmax=high, cmap="viridis")
            ax.set(title=STYLES.of(name)[0], xticks=[], yticks=[])
        axes[0, 0].figure.colorbar(drawn, ax=axes[0], label="mean prior log-variance", shrink=0.8)
