"""Coordinate descent over the grid by other libraries: scikit-learn's LassoCV and ElasticNetCV, and celer."""

import importlib.util
import time
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from ..common.data import Rows
from ..common.report import Row
from . import search
from .model import Problem

Kind = Literal["lasso", "non-negative", "elastic net", "logistic"]
RATIOS = (0.1, 0.5, 0.7, 0.9, 0.95, 0.99)  # of the elastic net, as scikit-learn's documents recommend, without 1
TOLERANCE = 1e-6
NAMES = ("LassoCV", "ElasticNetCV", "celer")


def methods(kind: Kind | None) -> dict[str, Callable[[Problem, int], Row]]:
    """Returns the solvers that know a kind of problem, by name; celer where it is installed."""
    by_name: dict[str, Callable[[Problem, int], Row]] = {}
    if kind is None:
        return by_name
    if kind == "elastic net":
        by_name["ElasticNetCV"] = elastic_net_cv
    elif kind != "logistic":
        by_name["LassoCV"] = lambda problem, points: lasso_cv(problem, points, kind == "non-negative")
    if importlib.util.find_spec("celer") is None:
        print("celer is left out: it is not installed")
    else:
        by_name["celer"] = lambda problem, points: celer(problem, points, kind)
    return by_name


def line_of(h: Any, begun: float) -> Row:
    """Returns the choice of a solver as a line of a path; its gradients are not counted."""
    return {"h": np.asarray(h), "gradients": None, "seconds": time.perf_counter() - begun}


def lasso_cv(problem: Problem, points: int, positive: bool) -> Row:
    """Returns the choice of LassoCV on the splits of the problem and the same grid."""
    from sklearn.linear_model import LassoCV

    grid = np.exp(search.lattice(problem.limits, 1, points))
    options: dict[str, Any] = {"fit_intercept": False, "tol": TOLERANCE, "max_iter": 100_000, "positive": positive}
    begun = time.perf_counter()
    found = LassoCV(alphas=grid, cv=problem.splits, **options).fit(*problem.rows)
    return line_of(np.log(found.alpha_), begun)


def elastic_net_cv(problem: Problem, points: int) -> Row:
    """Returns the choice of ElasticNetCV on the splits of the problem, among `points` pairs of strength and ratio."""
    from sklearn.linear_model import ElasticNetCV

    grid = np.exp(search.lattice(problem.limits, 1, points // len(RATIOS)))
    options: dict[str, Any] = {"fit_intercept": False, "tol": TOLERANCE, "max_iter": 100_000, "l1_ratio": RATIOS}
    begun = time.perf_counter()
    found = ElasticNetCV(alphas=grid, cv=problem.splits, **options).fit(*problem.rows)
    return line_of(two_penalties(found.alpha_, found.l1_ratio_), begun)


def two_penalties(strength: float, ratio: float) -> np.ndarray:
    """Returns the log-penalties of ‖w‖₁ and ½‖w‖² of strength · (ratio ‖w‖₁ + ½ (1 - ratio) ‖w‖²)."""
    return np.log([strength * ratio, strength * (1 - ratio)])


def celer(problem: Problem, points: int, kind: Kind) -> Row:
    """Returns the best of the paths of celer on all splits, over the grid of LassoCV or of ElasticNetCV."""
    from celer import celer_path

    ratios = RATIOS if kind == "elastic net" else (1.0,)
    grid = np.exp(search.lattice(problem.limits, 1, points // len(ratios)))
    options: dict[str, Any] = {"positive": kind == "non-negative", "tol": TOLERANCE, "use_PN": kind == "logistic"}
    begun = time.perf_counter()
    losses = np.zeros((len(ratios), len(grid)))
    for train, valid in ((problem.rows.take(part) for part in split) for split in problem.splits):
        for index, ratio in enumerate(ratios):
            times = len(train.y) if kind == "logistic" else 1  # celer's logistic loss is a sum
            name = "logreg" if kind == "logistic" else "lasso"
            x = np.asfortranarray(train.x)
            _, weights, *_ = celer_path(x, train.y, name, alphas=times * grid, l1_ratio=ratio, **options)
            losses[index] += _losses(weights, valid, kind)
    best = np.unravel_index(np.argmin(losses), losses.shape)
    strength, ratio = grid[best[1]], ratios[best[0]]
    return line_of(two_penalties(strength, ratio) if kind == "elastic net" else np.log(strength), begun)


def _losses(weights: np.ndarray, rows: Rows, kind: Kind) -> np.ndarray:
    """Returns the mean loss of the weights in every column."""
    outputs, y = rows.x @ weights, rows.y[:, None]
    return np.mean(np.logaddexp(0, -y * outputs) if kind == "logistic" else (outputs - y) ** 2 / 2, 0)
