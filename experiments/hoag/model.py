"""Logistic regression, its methods of search, and the exact validation loss as a function of the penalty."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
from jaxtyping import Array, PyTree
from numpy.polynomial import Chebyshev
from scipy.optimize import minimize_scalar

import hypergrad as hg

from ..common.data import Rows

BOX = (-4.0, 12.0)  # range of the log-penalty, for every method
CHEBYSHEV = 64
EXACT = 1e-10  # gradient norm that counts as solved


def misfit(params: PyTree, rows: PyTree) -> Array:
    """Returns Σ log(1 + exp(-y (x·w + b)))."""
    x, y = rows
    return jnp.sum(jax.nn.softplus(-y * (x @ params["weight"] + params["bias"])))


def inner_loss(params: PyTree, log_penalty: Array, rows: PyTree, key: Array) -> Array:
    """Returns (misfit + ½ exp(λ) ‖w‖²) / n; the intercept is not penalised."""
    penalty = 0.5 * jnp.exp(log_penalty) * jnp.sum(params["weight"] ** 2)
    return (misfit(params, rows) + penalty) / len(rows[1])


def outer_loss(params: PyTree, log_penalty: Array, rows: PyTree, key: Array) -> Array:
    """Returns Σ log(1 + exp(-y (x·w + b))) of the validation rows; a sum, as published."""
    return misfit(params, rows)


def make_problem(train: Rows, valid: Rows) -> tuple[hg.BilevelProblem, PyTree]:
    """Returns the problem and zero weights."""
    params = {"weight": jnp.zeros(train.x.shape[1]), "bias": jnp.zeros(())}
    return hg.BilevelProblem(inner_loss, outer_loss, tuple(train), tuple(valid)), params


def lbfgs(most: int) -> hg.AbstractInnerSolver:
    """Returns inner training by L-BFGS with at most so many updates."""
    return hg.JaxoptSolver(jaxopt.LBFGS, maxiter=most)


class Trained(NamedTuple):
    """The end of training at one penalty."""

    state: Any
    loss: Array  # mean validation loss
    gradients: Array


def make_trainer(inner: hg.AbstractInnerSolver) -> Callable[..., Trained]:
    """Returns `(problem, log_penalty, state, tol) -> Trained`, which trains on from `state` until ‖∇L‖ <= tol."""

    @eqx.filter_jit
    def compiled(problem, log_penalty, state, tol):
        state, solved = inner.solve(
            problem, log_penalty, inner.resume(problem, log_penalty, state), jax.random.key(0), tol
        )
        return Trained(state, misfit(state.params, problem.valid) / len(problem.valid[1]), solved.gradients)

    # Arrays, because a Python number would be compiled in.
    return lambda problem, log_penalty, state, tol: compiled(problem, jnp.asarray(log_penalty), state, jnp.asarray(tol))


class Curve(NamedTuple):
    """The mean validation loss of the exact minimiser as a function of the log-penalty, and its minimum."""

    loss: Callable[[Any], Any]
    best: float


def exact_curve(train: Callable[..., Trained], problem: hg.BilevelProblem, state: Any) -> Curve:
    """Returns the interpolation in Chebyshev points, each trained to `EXACT`, strongest penalty first."""
    nodes = np.polynomial.chebyshev.chebpts1(CHEBYSHEV + 1) * (BOX[1] - BOX[0]) / 2 + sum(BOX) / 2
    values = []
    for node in nodes[::-1]:
        state, loss, _ = train(problem, node, state, EXACT)
        values.append(float(loss))
    curve = Chebyshev.fit(nodes, values[::-1], CHEBYSHEV, domain=BOX)
    fine = np.linspace(*BOX, 1601)
    middle = fine[np.clip(np.argmin(curve(fine)), 1, len(fine) - 2)]
    found = minimize_scalar(curve, bounds=(middle - 0.01, middle + 0.01), method="bounded", options={"xatol": 1e-9})
    return Curve(curve, float(min(found.fun, curve(fine).min())))


def ever_finer_grid() -> Iterator[float]:
    """Yields the middle of the box, then its quarters, its eighths, ...: a grid that may be stopped at any time."""
    level = 1
    while True:
        yield from np.linspace(*BOX, 2**level + 1)[1::2]
        level += 1


def uniform_draws(seed: int) -> Iterator[float]:
    """Yields penalties uniform in the box."""
    draw = np.random.default_rng(seed)
    while True:
        yield draw.uniform(*BOX)
