"""Sparse models: their losses, proximal steps, and how they are trained."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
from jaxtyping import Array

import hypergrad as hg

from ..common.data import Rows

MOST = 10_000  # proximal steps of one training
TIGHT = 1e-5  # of the gradient at zero weights: the accuracy of grid and random search
EXACT = 1e-7  # the accuracy at which results are judged


def squares(w: Array, h: Array, rows: Any, key: Array) -> Array:
    """Returns ‖Xw - y‖²/2n."""
    return jnp.mean((rows.x @ w - rows.y) ** 2) / 2


def logistic(w: Array, h: Array, rows: Any, key: Array) -> Array:
    """Returns the mean of log(1 + exp(-y x·w))."""
    return jnp.mean(jax.nn.softplus(-rows.y * (rows.x @ w)))


def lasso(w: Array, h: Array, scaling: Array) -> Array:
    """Returns the proximal step of Σ exp(h_j) |w_j|; one h may stand for all."""
    return jaxopt.prox.prox_lasso(w, jnp.broadcast_to(jnp.exp(h), w.shape), scaling)


def elastic_net(w: Array, h: Array, scaling: Array) -> Array:
    """Returns the proximal step of exp(h_0) ‖w‖₁ + ½ exp(h_1) ‖w‖²."""
    return jaxopt.prox.prox_lasso(w, jnp.exp(h[0]), scaling) / (1 + scaling * jnp.exp(h[1]))


class Trained(NamedTuple):
    """The state after training, the validation loss, and the gradients spent."""

    state: hg.InnerState
    loss: Array
    gradients: Array


class Problem:
    """One sparse problem: its data, its solver, and training at a penalty.

    `scale` is the norm of the gradient at zero weights, and `largest` the penalty above which all weights are zero.
    `decades` is the range of penalties that is searched below it.
    """

    decades = 2

    def __init__(self, loss: hg.problem.Loss, prox: Callable[..., Array], train: Rows, valid: Rows):
        self.bilevel = self._bilevel(loss, train, valid)
        self.inner, self.zeros = self._solver(prox), self._zeros(train)
        gradient = jax.grad(loss)(self.zeros, None, self.bilevel.train, jax.random.key(0))
        self.scale, self.largest = float(jnp.linalg.norm(gradient)), float(jnp.max(jnp.abs(gradient)))

    def _bilevel(self, loss: hg.problem.Loss, train: Rows, valid: Rows) -> hg.BilevelProblem:
        return hg.BilevelProblem(loss, loss, train, valid)

    def _solver(self, prox: Callable[..., Array]) -> hg.JaxoptSolver:
        """Returns accelerated proximal gradient descent with steps of 1, right for data that were `scaled`."""
        return hg.JaxoptSolver(jaxopt.ProximalGradient, prox=prox, stepsize=1.0, maxiter=MOST)

    def _zeros(self, train: Rows) -> Array:
        return jnp.zeros(train.x.shape[1])

    @property
    def limits(self) -> tuple[float, float]:
        """The range of log-penalties, for every method."""
        high = float(np.log(self.largest))
        return high - self.decades * float(np.log(10)), high

    def start(self, h: np.ndarray) -> hg.InnerState:
        """Returns the state at zero weights."""
        return self.inner.init(self.bilevel, self.zeros, jnp.asarray(h))

    def train(self, h: np.ndarray, state: hg.InnerState, rtol: float = TIGHT) -> Trained:
        """Trains on from `state` until the proximal gradient is `rtol` of the gradient at zero weights."""
        return _train(self.inner, self.bilevel, jnp.asarray(h), state, jnp.asarray(rtol * self.scale))

    def loss(self, state: hg.InnerState, h: np.ndarray, rows: Rows) -> float:
        """Returns the loss on `rows`."""
        return float(self.bilevel.outer_loss(state.params, h, rows, jax.random.key(0)))


@eqx.filter_jit
def _train(inner: Any, problem: hg.BilevelProblem, h: Array, state: hg.InnerState, tol: Array) -> Trained:
    key = jax.random.key(0)
    end, spent = inner.solve(problem, h, inner.resume(problem, h, state), key, tol)
    return Trained(end, problem.outer_loss(end.params, h, problem.valid, key), spent.gradients)
