"""The searches for penalties, and the cost of each."""

import time
from collections.abc import Iterable, Iterator
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

import hypergrad as hg

from ..common.report import Row
from .model import Problem

MethodName = Literal["hypergradient", "grid", "random", "TPE"]
METHODS: tuple[MethodName, ...] = get_args(MethodName)
STARTS = (1 / 6, 1 / 2, 5 / 6)  # of the range, from the largest penalty down, at which descents start


def lattice(limits: tuple[float, float], num_penalties: int, points: int) -> np.ndarray:
    """Returns `points` log-penalties equally spaced from the largest down, of two penalties √points each."""
    low, high = limits
    if num_penalties == 1:
        return np.linspace(high, low, points)
    side = np.linspace(high, low, round(np.sqrt(points)))
    return np.stack(np.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2)


def draws(limits: tuple[float, float], num_penalties: int, seed: int) -> Iterator[np.ndarray]:
    """Yields log-penalties uniform in the box."""
    draw = np.random.default_rng(seed)
    while True:
        yield draw.uniform(*limits, size=() if num_penalties == 1 else num_penalties)


class Trials:
    """The penalties tried, each trained on from the end of the last, and what they cost."""

    def __init__(self, problem: Problem):
        self.problem, self.path, self.begun = problem, list[Row](), time.perf_counter()
        self.state: hg.InnerState | None = None

    def add(self, h: np.ndarray) -> Row:
        """Trains at a penalty and returns its line of the path."""
        trained = self.problem.train(h, self.problem.start(h) if self.state is None else self.state)
        self.state, loss = trained.state, float(trained.loss)
        spent = {"gradients": self.gradients + int(trained.gradients), "seconds": time.perf_counter() - self.begun}
        self.path.append({"h": h, "loss": loss} | spent)
        return self.path[-1]

    @property
    def gradients(self) -> int:
        """The gradients of all trials."""
        return self.path[-1]["gradients"] if self.path else 0


def tried(problem: Problem, proposals: Iterable[np.ndarray], gradients: float = np.inf) -> list[Row]:
    """Returns the path of all proposals, or of those until the gradients are spent."""
    trials, rest = Trials(problem), iter(proposals)
    while trials.gradients < gradients and (h := next(rest, None)) is not None:
        trials.add(h)
    return trials.path


def tree_parzen(problem: Problem, num_penalties: int, seed: int, gradients: int) -> list[Row]:
    """Returns the path of Optuna's TPE until the gradients are spent."""
    import optuna

    trials = Trials(problem)
    names = [f"log_penalty_{i}" for i in range(num_penalties)]
    space = hg.trials.Space({name: hg.trials.Float(*problem.limits) for name in names})

    def train(trial: hg.trials.Trial, key: jax.Array) -> hg.trials.Result:
        before, h = trials.gradients, np.array([trial.params[name] for name in names])
        line = trials.add(h if num_penalties > 1 else h[0])
        return hg.trials.Result(line["loss"], gradients=line["gradients"] - before)

    searcher = hg.trials.Optuna(lambda _: optuna.samplers.TPESampler(seed=seed))
    budget = hg.Budget(gradients=gradients)
    hg.trials.search_trials(searcher, space, train, key=jax.random.key(seed), budget=budget, on_failure="raise")
    return trials.path


def descended(problem: Problem, like: np.ndarray, gradients: int) -> list[Row]:
    """Returns the paths of HOAG with its adaptive step from all starts, one after another, with equal budgets."""
    estimator, optimiser = hg.HOAG(problem.inner, hg.CG(100, rtol=0.0)), hg.adaptive_step()
    path: list[Row] = []
    low, high = problem.limits
    for share in STARTS:
        start = np.full_like(like, high - share * (high - low))
        now = _followed(problem, estimator, optimiser, (start, gradients // len(STARTS)))
        spent = {unit: path[-1][unit] if path else 0 for unit in ("gradients", "seconds")}
        path += [line | {unit: line[unit] + spent[unit] for unit in spent} for line in now]
    return path


def per_feature(problem: Problem, start: np.ndarray, gradients: int) -> list[Row]:
    """Returns the path of Adam on one log-penalty per feature, along hypergradients of a fixed tight tolerance."""
    estimator = hg.Implicit(problem.inner, hg.CG(100), atol=1e-5 * problem.scale, warm_start=True)
    return _followed(problem, estimator, optax.adam(0.1), (start, gradients))


def _followed(
    problem: Problem,
    estimator: hg.AbstractEstimator,
    optimiser: optax.GradientTransformation,
    begin: tuple[np.ndarray, int],
) -> list[Row]:
    clip = lambda h: jnp.clip(h, *problem.limits)
    search = hg.GradientSearch(estimator, optimiser, projection=clip)
    start, gradients = begin

    def run(budget: int) -> list[Row]:
        path: list[Row] = []
        state = search.init(problem.bilevel, problem.zeros, jnp.asarray(start))
        begun = time.perf_counter()

        def record(state, records):
            spent = {"gradients": int(state.spent.gradients), "seconds": time.perf_counter() - begun}
            path.append({"h": np.asarray(records.hparams)[0], "loss": float(records.value[0])} | spent)

        hg.run(
            search, problem.bilevel, state, key=jax.random.key(0), budget=hg.Budget(gradients=budget), callback=record
        )
        return path

    run(1)  # compiles
    return run(gradients)
