"""The searches for penalties, and the cost of each."""

import time
from collections.abc import Iterator
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

import hypergrad as hg

from ..common.report import Row
from .model import Problem

MethodName = Literal["hypergradient", "grid", "random"]
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


def tried(problem: Problem, proposals: Iterator[np.ndarray], gradients: int | None) -> list[Row]:
    """Returns every penalty tried, each trained on from the end of the last, until the gradients are spent."""
    path: list[Row] = []
    first = next(proposals)
    state, spent, begun = problem.start(first), 0, time.perf_counter()
    for h in (first, *proposals) if gradients is None else _endless(first, proposals):
        trained = problem.train(h, state)
        state, spent = trained.state, spent + int(trained.gradients)
        path.append({"h": h, "loss": float(trained.loss), "gradients": spent, "seconds": time.perf_counter() - begun})
        if gradients is not None and spent >= gradients:
            break
    return path


def _endless(first: np.ndarray, rest: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    yield first
    yield from rest


def descended(problem: Problem, like: np.ndarray, gradients: int) -> list[Row]:
    """Returns the paths of HOAG with its adaptive step from all starts, one after another, with equal budgets."""
    estimator = hg.HOAG(problem.inner, hg.CG(100, rtol=0.0))
    path: list[Row] = []
    low, high = problem.limits
    for share in STARTS:
        start = np.full_like(like, high - share * (high - low))
        now = _followed(problem, estimator, hg.adaptive_step(), (start, gradients // len(STARTS)))
        spent = {unit: path[-1][unit] if path else 0 for unit in ("gradients", "seconds")}
        path += [line | {unit: line[unit] + spent[unit] for unit in spent} for line in now]
    return path


def per_feature(problem: Problem, start: np.ndarray, gradients: int) -> list[Row]:
    """Returns the path of Adam on one log-penalty per feature, along hypergradients of a fixed tight tolerance."""
    estimator = hg.Implicit(problem.inner, hg.CG(100), tol=1e-5 * problem.scale, warm_start=True)
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
