"""The comparison on one or two penalties, and one penalty per feature."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np

from ..common import binary
from ..common.cells import Advance, grid, rows, run_cells
from ..common.config import Fraction, Out, Positive, Some, WithData
from ..common.data import Splits
from ..common.figures import COLOURS, suboptimality_panels
from ..common.report import Row, grouped, save, spread_table
from . import coordinate, model, search, svm
from .data import Name, load

TaskName = Literal[
    "lasso",
    "elastic net",
    "non-negative least squares",
    "lasso, diabetes",
    "logistic, breast cancer",
    "support vectors, breast cancer",
    "logistic, a9a",
    "logistic, ijcnn1",
]
TASK_NAMES: tuple[TaskName, ...] = get_args(TaskName)
CriterionName = Literal["validation", "cv"]
QUICK = {"tasks": ("lasso, diabetes",), "seeds": 1, "points": 16, "share": 0.5, "feature_gradients": 500}
NEAR = 1e-3  # a loss counts as reached within this share of the grid's best


class Task(NamedTuple):
    """A data set, its problem under every criterion, and the penalties to learn."""

    data: Name
    problems: dict[CriterionName, Callable[[Splits], model.Problem]]
    kind: coordinate.Kind | None = None  # under which other solvers know it
    num_penalties: int = 1
    per_feature: bool = True  # every feature may have a penalty of its own


def by_criterion(loss: Any, prox: Callable[..., Any]) -> dict[CriterionName, Callable[[Splits], model.Problem]]:
    """Returns a problem under both criteria."""
    return {"validation": partial(model.Problem, loss, prox), "cv": partial(model.CrossValidated, loss, prox)}


LASSO = by_criterion(model.squares, model.lasso)
LOGISTIC = by_criterion(model.logistic, model.lasso)
TASKS: dict[TaskName, Task] = {
    "lasso": Task("generated", LASSO, "lasso"),
    "elastic net": Task("generated", by_criterion(model.squares, model.elastic_net), "elastic net", 2, False),
    "non-negative least squares": Task(
        "generated", by_criterion(model.squares, model.non_negative_lasso), "non-negative"
    ),
    "lasso, diabetes": Task("diabetes", LASSO, "lasso"),
    "logistic, breast cancer": Task("breast_cancer", LOGISTIC, "logistic"),
    "support vectors, breast cancer": Task("breast_cancer", {"validation": svm.Machine}, per_feature=False),
    "logistic, a9a": Task("a9a", LOGISTIC, "logistic"),
    "logistic, ijcnn1": Task("ijcnn1", LOGISTIC, "logistic"),
}


@dataclass(frozen=True)
class Config(WithData):
    """Find the penalties of sparse models: hypergradients against grid, random search, TPE and coordinate descent.

    Models are trained by accelerated proximal gradient descent with restarts. HOAG differentiates through its fixed
    point and moves by the adaptive step, from three starts, at 1/6, 1/2 and 5/6 of the range of log-penalties, because
    the validation loss has several minima. The range is two decades below the penalty that makes all weights zero. The
    grid holds equally spaced log-penalties, each trained on from the last. Random search and TPE (Optuna) may spend as
    many gradients as the grid, HOAG a fifth of them. What counts is the criterion of the exact solution at the best
    penalty so far. scikit-learn's LassoCV or ElasticNetCV, and celer where it is installed, search a grid of as many
    points on the same splits by coordinate descent, for comparison in seconds.

    Then every feature gets a penalty of its own, from the best single one on.

    The support vector machine is trained in its dual by block coordinate descent; its penalty is 1/C, and the largest
    one that above which all α are C; the range below it is four decades. It is left out under cross-validation. a9a and
    ijcnn1 are left out where the folder does not hold them.

    After Bertrand et al. (2022), whose results are figures.
    """

    criterion: CriterionName = "validation"
    """validation: loss on held-out rows. cv: mean loss over five folds of training and held-out rows together."""
    tasks: Some[TaskName] = TASK_NAMES  # Tasks to run.
    points: Positive = 100  # Points of the grid, at least 9.
    share: Fraction = 0.2  # Gradients that hypergradients may spend, of those of the grid.
    feature_gradients: Positive = 20_000  # Gradient equivalents for one penalty per feature.
    rows: Positive = 3_000  # Rows of a9a and ijcnn1 that are drawn, for training, validation and test together.
    out: Out = Path("results/sparse")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.points < 9:
            raise ValueError(f"points must be at least 9, which is 3 x 3 for two penalties, got {self.points}")


def one_task(config: Config, name: TaskName, seed: int, advance: Advance) -> dict[str, list[Row]]:
    """Returns all methods on one split: their summaries, and their paths."""
    task, folds = TASKS[name], model.FOLDS if config.criterion == "cv" else None
    data = load(task.data, seed, source_of(task, config), config.rows, folds)
    problem = task.problems[config.criterion](data)
    paths = search_all(config, task, problem, seed)
    advance(0.6)
    best = min(line["exact"] for path in paths.values() for line in path)
    reached = exact_loss(problem, best_of(paths["grid"])["h"]) * (1 + NEAR)
    ends = {unit: paths["hypergradient"][-1][unit] for unit in UNITS}
    runs = [
        summary_of(problem, path, reached) | {f"above_at_{unit}": above(path, best, unit, ends[unit]) for unit in UNITS}
        for path in paths.values()
    ]
    if task.per_feature:
        path = by_feature(problem, best_of(paths["hypergradient"])["h"], config.feature_gradients)
        runs.append(summary_of(problem, path, reached) | {f"above_at_{unit}": None for unit in UNITS})
    names = (*paths, "one penalty per feature")
    history = [
        {"method": method, "above": max(line["least"] - best, FLOOR)} | {unit: line[unit] for unit in UNITS}
        for method, path in paths.items()
        for line in path
    ]
    return {"runs": [{"method": name} | run for name, run in zip(names, runs, strict=False)], "history": history}


def source_of(task: Task, config: Config) -> binary.Source | None:
    """Returns the source of a set with two classes, `None` for others, or where it is missing."""
    if task.data == "generated" or task.data == "diabetes":
        return None
    return binary.find(task.data, config.data_dir)


def present(config: Config) -> tuple[TaskName, ...]:
    """Returns the tasks that have the criterion and whose data are there, and says which are left out.

    **Raises** `FileNotFoundError` where none is left.
    """
    left = []
    for name in config.tasks:
        task = TASKS[name]
        if config.criterion not in task.problems:
            print(f"{name} is left out: it has no criterion {config.criterion}")
        elif task.data in binary.SHA256 and not source_of(task, config):
            print(f"{name} is left out: there is no {task.data}/{task.data}.npz in {config.data_dir}")
        else:
            left.append(name)
    if not left:
        raise FileNotFoundError("no task is left: choose others with --tasks, or a folder with --data-dir")
    return tuple(left)


def search_all(config: Config, task: Task, problem: model.Problem, seed: int) -> dict[str, list[Row]]:
    """Returns the path of every method, with the exact criterion and the lowest so far at every point."""
    limits, number = problem.limits, task.num_penalties
    points = search.lattice(limits, number, config.points)
    search.tried(problem, points[:1])  # compiles
    paths = {"grid": search.tried(problem, points)}
    budget = paths["grid"][-1]["gradients"]
    paths["random"] = search.tried(problem, search.draws(limits, number, seed), budget)
    paths["TPE"] = search.tree_parzen(problem, number, seed, budget)
    paths["hypergradient"] = search.descended(problem, points[0], round(config.share * budget))
    others = {name: [solve(problem, config.points)] for name, solve in coordinate.methods(task.kind).items()}
    for method, path in (paths | others).items():
        judge(problem, path, anew=method in {"hypergradient", *others})
    return {method: paths[method] for method in search.METHODS} | others


def by_feature(problem: model.Problem, chosen: np.ndarray, gradients: int) -> list[Row]:
    """Returns the best point of the path with one penalty per feature, at the cost of the whole path."""
    path = search.per_feature(problem, np.full(problem.data.train.x.shape[1], chosen), gradients)
    best = min(path, key=lambda line: line["loss"]) | {unit: path[-1][unit] for unit in UNITS}
    judge(problem, [best])
    return [best]


def judge(problem: model.Problem, path: list[Row], anew: bool = True) -> None:
    """Adds the criterion of the exact solution, and the lowest so far, to every point of a path.

    Grid, random search and TPE train nearly as accurately, and keep their own losses; others are trained `anew`.
    """
    state, least = problem.start(path[0]["h"]), np.inf
    for line in path:
        if anew:
            trained = problem.train(line["h"], state, model.EXACT)
            state, line["exact"] = trained.state, float(trained.loss)
        else:
            line["exact"] = line["loss"]
        line["least"] = least = min(least, line["exact"])


def best_of(path: list[Row]) -> Row:
    """Returns the point of a path with the lowest criterion."""
    return min(path, key=lambda line: line["exact"])


def exact_loss(problem: model.Problem, h: np.ndarray) -> float:
    """Returns the criterion of the exact solution."""
    return float(problem.train(h, problem.start(h), model.EXACT).loss)


def above(path: list[Row], best: float, unit: str, most: float) -> float | None:
    """Returns how far above the lowest criterion a path is after so much work, `None` where it has not begun."""
    known = [line["least"] for line in path if line[unit] is not None and line[unit] <= most]
    return known[-1] - best if known else None


def summary_of(problem: model.Problem, path: list[Row], reached: float) -> Row:
    """Returns the best point of a path, its losses, and the cost of reaching the best criterion of the grid."""
    chosen = best_of(path)["h"]
    there = next((line for line in path if line["exact"] <= reached), None)
    weights, test_loss = problem.final(chosen)
    return {
        "log_penalty": np.mean(chosen),
        "loss": exact_loss(problem, chosen),
        "test_loss": test_loss,
        "nonzero": int(np.sum(weights != 0)),
        "gradients": path[-1]["gradients"],
        "gradients_to_grid": there and there["gradients"],
        "seconds": path[-1]["seconds"],
        "seconds_to_grid": there and there["seconds"],
    }


COLUMNS = ("log_penalty", "loss", "test_loss", "nonzero")
COSTS = ("gradients_to_grid", "seconds_to_grid", "seconds", "above_at_gradients", "above_at_seconds")


def main(config: Config) -> dict[str, Any]:
    """Runs what is missing, writes everything, returns the summary."""
    with jax.enable_x64(True):
        one = lambda advance, task, seed: one_task(config, task, seed, advance)
        cells = run_cells(config, grid(task=present(config), seed=config.seed_range()), one, "splits")
    runs, history = rows(cells, "runs"), rows(cells, "history")
    title = f"Penalties of sparse models, {config.seeds} seeds (published: figures only)"
    table = spread_table(runs, ("task", "method"), (*COLUMNS, *COSTS))
    summary = save(config, runs, table, history, title)
    draw(config.out, history)
    return summary


FLOOR = 1e-9  # below it is rounding
UNITS = {"gradients": "gradient equivalents", "seconds": "seconds, without compilation"}


def draw(out: Path, history: list[Row]) -> None:
    """Draws the suboptimality of every method on every task."""
    colours: dict[str, str] = dict(zip((*search.METHODS, *coordinate.NAMES), COLOURS, strict=False))
    panels = grouped(history, ("task",))
    for unit, label in UNITS.items():
        suboptimality_panels(out / f"suboptimality_{unit}.png", panels, "task", unit, label, colours)
