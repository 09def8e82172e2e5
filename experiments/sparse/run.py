"""The comparison on one or two penalties, and one penalty per feature."""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np

from ..common import binary
from ..common.cells import Advance, grid, rows, run_cells
from ..common.config import Fraction, Out, Positive, Some, WithData
from ..common.data import Rows, Splits
from ..common.figures import COLOURS, suboptimality_panels
from ..common.report import Row, grouped, mean_and_spread, save
from . import model, search, svm
from .data import Name, load

TaskName = Literal[
    "lasso",
    "elastic net",
    "lasso, diabetes",
    "logistic, breast cancer",
    "support vectors, breast cancer",
    "logistic, a9a",
    "logistic, ijcnn1",
]
TASK_NAMES: tuple[TaskName, ...] = get_args(TaskName)
QUICK = {"tasks": ("lasso, diabetes",), "seeds": 1, "points": 16, "share": 0.5, "feature_gradients": 500}
NEAR = 1e-3  # a loss counts as reached within this share of the grid's best


class Task(NamedTuple):
    """A data set, how its problem is made of training and validation rows, and the penalties to learn."""

    data: Name
    problem: Callable[[Rows, Rows], model.Problem]
    num_penalties: int = 1
    per_feature: bool = True  # every feature may have a penalty of its own


LASSO = functools.partial(model.Problem, model.squares, model.lasso)
LOGISTIC = functools.partial(model.Problem, model.logistic, model.lasso)
TASKS: dict[TaskName, Task] = {
    "lasso": Task("generated", LASSO),
    "elastic net": Task("generated", functools.partial(model.Problem, model.squares, model.elastic_net), 2, False),
    "lasso, diabetes": Task("diabetes", LASSO),
    "logistic, breast cancer": Task("breast_cancer", LOGISTIC),
    "support vectors, breast cancer": Task("breast_cancer", svm.Machine, per_feature=False),
    "logistic, a9a": Task("a9a", LOGISTIC),
    "logistic, ijcnn1": Task("ijcnn1", LOGISTIC),
}


@dataclass(frozen=True)
class Config(WithData):
    """Find the penalties of sparse models on held-out rows: hypergradients against grid and random search.

    Models are trained by accelerated proximal gradient descent. HOAG differentiates through its fixed point and moves
    by the adaptive step, from three starts, at 1/6, 1/2 and 5/6 of the range of log-penalties, because the validation
    loss has several minima. The range is two decades below the penalty that makes all weights zero. The grid holds
    equally spaced log-penalties, each trained on from the last. Random search may spend as many gradients as the grid,
    HOAG a fifth of them. What counts is the validation loss of the exact solution at the best penalty so far.
    scikit-learn's LassoCV solves the same grid on the same split by coordinate descent, for comparison in seconds.

    Then every feature gets a penalty of its own, from the best single one on.

    The support vector machine is trained in its dual by block coordinate descent; its penalty is 1/C, and the largest
    one that above which all α are C; the range below it is four decades. a9a and ijcnn1 are left out where the folder
    does not hold them.

    After Bertrand et al. (2022), whose results are figures.
    """

    tasks: Some[TaskName] = TASK_NAMES  # Tasks to run.
    points: Positive = 100  # Points of the grid.
    share: Fraction = 0.2  # Gradients that hypergradients may spend, of those of the grid.
    feature_gradients: Positive = 20_000  # Gradient equivalents for one penalty per feature.
    rows: Positive = 3_000  # Rows of a9a and ijcnn1 that are drawn, for training, validation and test together.
    out: Out = Path("results/sparse")


def one_task(config: Config, name: TaskName, seed: int, advance: Advance) -> dict[str, list[Row]]:
    """Returns all methods on one split: their summaries, and their paths."""
    task = TASKS[name]
    data = load(task.data, seed, source_of(task, config), config.rows)
    problem = task.problem(data.train, data.valid)
    paths = search_all(config, task, problem, data, seed)
    advance(0.6)
    best = min(line["exact"] for path in paths.values() for line in path)
    reached = solved(problem, data, best_of(paths["grid"])["h"])[1] * (1 + NEAR)
    runs = [summary_of(problem, data, method, path, reached) for method, path in paths.items()]
    if name.startswith("lasso"):
        runs.append(by_scikit_learn(problem, data, search.lattice(problem.limits, 1, config.points)))
    if task.per_feature:
        chosen = best_of(paths["hypergradient"])["h"]
        start = np.full(problem.zeros.shape, chosen)
        path = search.per_feature(problem, start, config.feature_gradients)
        least = min(path, key=lambda line: line["loss"])
        last = [least | {"gradients": path[-1]["gradients"], "seconds": path[-1]["seconds"]}]
        judge(problem, data, last)
        runs.append(summary_of(problem, data, "one penalty per feature", last, reached))
    history = [
        {"method": method, "above": max(line["least"] - best, FLOOR)}
        | {unit: line[unit] for unit in ("gradients", "seconds")}
        for method, path in paths.items()
        for line in path
    ]
    return {"runs": runs, "history": history}


def source_of(task: Task, config: Config) -> binary.Source | None:
    """Returns the source of a set with two classes, `None` for others, or where it is missing."""
    if task.data == "generated" or task.data == "diabetes":
        return None
    return binary.find(task.data, config.data_dir)


def present(config: Config) -> tuple[TaskName, ...]:
    """Returns the tasks whose data are there, and says which are not."""
    named = {name: TASKS[name] for name in config.tasks}
    missing = {name for name, task in named.items() if task.data in binary.SHA256 and not source_of(task, config)}
    for name in missing:
        print(f"{name} is left out: there is no {TASKS[name].data}/{TASKS[name].data}.npz in {config.data_dir}")
    return tuple(name for name in named if name not in missing)


def search_all(config: Config, task: Task, problem: model.Problem, data: Splits, seed: int) -> dict[str, list[Row]]:
    """Returns the path of every method, with the exact validation loss and the lowest so far at every point."""
    limits, number = problem.limits, task.num_penalties
    points = search.lattice(limits, number, config.points)
    search.tried(problem, iter(points[:1]), None)  # compiles
    paths = {"grid": search.tried(problem, iter(points), None)}
    budget = paths["grid"][-1]["gradients"]
    paths["random"] = search.tried(problem, search.draws(limits, number, seed), budget)
    paths["hypergradient"] = search.descended(problem, points[0], round(config.share * budget))
    for method, path in paths.items():
        judge(problem, data, path, anew=method == "hypergradient")
    return {method: paths[method] for method in search.METHODS}


def judge(problem: model.Problem, data: Splits, path: list[Row], anew: bool = True) -> None:
    """Adds the validation loss of the exact solution, and the lowest so far, to every point of a path.

    Grid and random search train nearly as accurately, and keep their own losses; others are trained `anew`.
    """
    state, least = problem.start(path[0]["h"]), np.inf
    for line in path:
        if anew:
            state = problem.train(line["h"], state, model.EXACT).state
            line["exact"] = problem.loss(state, line["h"], data.valid)
        else:
            line["exact"] = line["loss"]
        line["least"] = least = min(least, line["exact"])


def best_of(path: list[Row]) -> Row:
    """Returns the point of a path with the lowest validation loss."""
    return min(path, key=lambda line: line["exact"])


def solved(problem: model.Problem, data: Splits, h: np.ndarray) -> tuple[Any, float]:
    """Returns the state of the exact solution and its validation loss."""
    state = problem.train(h, problem.start(h), model.EXACT).state
    return state, problem.loss(state, h, data.valid)


def summary_of(problem: model.Problem, data: Splits, method: str, path: list[Row], reached: float) -> Row:
    """Returns the best point of a path, its losses, and the cost of reaching the best loss of the grid."""
    chosen = best_of(path)["h"]
    there = next((line for line in path if line["exact"] <= reached), None)
    state, valid_loss = solved(problem, data, chosen)
    return {
        "method": method,
        "log_penalty": np.mean(chosen),
        "valid_loss": valid_loss,
        "test_loss": problem.loss(state, chosen, data.test),
        "nonzero": int(np.sum(np.asarray(state.params) != 0)),
        "gradients": path[-1]["gradients"],
        "gradients_to_grid": there and there["gradients"],
        "seconds": path[-1]["seconds"],
        "seconds_to_grid": there and there["seconds"],
    }


def by_scikit_learn(problem: model.Problem, data: Splits, log_penalties: np.ndarray) -> Row:
    """Returns the result of LassoCV on the same split and grid, and its seconds."""
    from sklearn.linear_model import LassoCV

    train, valid, _ = data
    x, y = np.concatenate([train.x, valid.x]), np.concatenate([train.y, valid.y])
    split = [(np.arange(len(train.y)), np.arange(len(train.y), len(y)))]
    begun = time.perf_counter()
    found = LassoCV(alphas=np.exp(log_penalties), cv=split, fit_intercept=False, tol=1e-6, max_iter=100_000).fit(x, y)
    line: Row = {"h": np.log(found.alpha_), "gradients": 0, "seconds": time.perf_counter() - begun}
    judge(problem, data, [line])
    nothing = {"gradients": None, "gradients_to_grid": None, "seconds_to_grid": line["seconds"]}
    return summary_of(problem, data, "LassoCV", [line], np.inf) | nothing


def table_of(runs: list[Row]) -> list[Row]:
    """Returns one line per task and method."""
    columns = ("log_penalty", "valid_loss", "test_loss", "nonzero", "gradients_to_grid", "seconds_to_grid")
    return [
        {"task": ours[0]["task"], "method": ours[0]["method"]}
        | {name: mean_and_spread(run[name] for run in ours) for name in columns}
        for ours in grouped(runs, ("task", "method"))
    ]


def main(config: Config) -> dict[str, Any]:
    """Runs what is missing, writes everything, returns the summary."""
    with jax.enable_x64(True):
        one = lambda advance, task, seed: one_task(config, task, seed, advance)
        cells = run_cells(config, grid(task=present(config), seed=config.seed_range()), one, "splits")
    runs, history = rows(cells, "runs"), rows(cells, "history")
    title = f"Penalties of sparse models, {config.seeds} seeds (published: figures only)"
    summary = save(config, runs, table_of(runs), history, title)
    draw(config.out, history)
    return summary


FLOOR = 1e-9  # below it is rounding
UNITS = {"gradients": "gradient equivalents", "seconds": "seconds, without compilation"}


def draw(out: Path, history: list[Row]) -> None:
    """Draws the suboptimality of every method on every task."""
    colours: dict[str, str] = dict(zip(search.METHODS, COLOURS, strict=False))
    panels = grouped(history, ("task",))
    for unit, label in UNITS.items():
        suboptimality_panels(out / f"suboptimality_{unit}.png", panels, "task", unit, label, colours)
