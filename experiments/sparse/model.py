"""Sparse models: their losses, proximal steps, and how they are trained."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
from jaxtyping import Array

import ensembles as ens
import hypergrad as hg

from ..common.data import Rows, Splits
from .solver import Restarted

MOST = 10_000  # proximal steps of one training
TIGHT = 1e-6  # of the gradient at zero weights: the accuracy of grid and random search
EXACT = 1e-8  # the accuracy at which results are judged
FOLDS = 5


def squares(w: Array, h: Array, rows: Any, key: Array) -> Array:
    """Returns ‖Xw - y‖²/2n."""
    return jnp.mean((rows.x @ w - rows.y) ** 2) / 2


def logistic(w: Array, h: Array, rows: Any, key: Array) -> Array:
    """Returns the mean of log(1 + exp(-y x·w))."""
    return jnp.mean(jax.nn.softplus(-rows.y * (rows.x @ w)))


def lasso(w: Array, h: Array, scaling: Array) -> Array:
    """Returns the proximal step of Σ exp(h_j) |w_j|; one h may stand for all."""
    return jaxopt.prox.prox_lasso(w, jnp.broadcast_to(jnp.exp(h), w.shape), scaling)


def non_negative_lasso(w: Array, h: Array, scaling: Array) -> Array:
    """Returns the proximal step of Σ exp(h_j) w_j over w >= 0; one h may stand for all."""
    return jaxopt.prox.prox_non_negative_lasso(w, jnp.exp(h), scaling)


def elastic_net(w: Array, h: Array, scaling: Array) -> Array:
    """Returns the proximal step of exp(h_0) ‖w‖₁ + ½ exp(h_1) ‖w‖²."""
    return jaxopt.prox.prox_lasso(w, jnp.exp(h[0]), scaling) / (1 + scaling * jnp.exp(h[1]))


class Trained(NamedTuple):
    """The state after training, the criterion, and the gradients spent."""

    state: hg.InnerState
    loss: Array
    gradients: Array


class Problem:
    """One sparse problem: its data, its solver, and training at a penalty. Held-out rows are the criterion.

    `scale` is the norm of the gradient at zero weights, and `largest` a penalty at which all weights are zero.
    `decades` is the range of penalties that is searched below it.

    `rows` and `splits`, pairs of indices of them for training and for validation, are the same problem for other
    solvers.
    """

    decades = 2

    def __init__(self, loss: hg.problem.Loss, prox: Callable[..., Array], data: Splits):
        self.data = data
        self.bilevel, self.rows, self.splits = self._problem(loss)
        self.inner, self.zeros = self._solver(prox), self._zeros()
        gradient = jax.grad(self.bilevel.inner_loss)(self.zeros, None, self.bilevel.train, jax.random.key(0))
        self.scale, self.largest = float(jnp.linalg.norm(gradient)), float(jnp.max(jnp.abs(gradient)))

    def _problem(self, loss: Any) -> tuple[hg.BilevelProblem, Rows, list[tuple[np.ndarray, np.ndarray]]]:
        train, valid, _ = self.data
        rows = Rows(*map(np.concatenate, zip(train, valid, strict=True)))
        split = np.arange(len(train.y)), np.arange(len(train.y), len(rows.y))
        return hg.BilevelProblem(loss, loss, train, valid), rows, [split]

    def _solver(self, prox: Callable[..., Array]) -> hg.JaxoptSolver:
        """Returns accelerated proximal gradient descent with steps of 1, right for data that were `scaled`."""
        return hg.JaxoptSolver(Restarted, prox=prox, stepsize=1.0, maxiter=MOST)

    def _zeros(self) -> Array:
        return jnp.zeros(self.data.train.x.shape[1])

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

    def final(self, h: np.ndarray) -> tuple[np.ndarray, float]:
        """Returns the weights of the exact solution and their loss on the test rows."""
        weights = self.train(h, self.start(h), EXACT).state.params
        return np.asarray(weights), float(self._test_loss(weights, h))

    def _test_loss(self, weights: Array, h: np.ndarray) -> Array:
        return self.bilevel.outer_loss(weights, h, self.data.test, jax.random.key(0))


class CrossValidated(Problem):
    """One sparse problem whose criterion is the mean loss over folds of the training rows.

    The models of all folds are trained together, and one gradient is that of all of them. The final model is trained on
    all rows.
    """

    def __init__(self, loss: hg.problem.Loss, prox: Callable[..., Array], data: Splits):
        super().__init__(loss, prox, data)
        self.whole = Problem(loss, prox, data._replace(valid=data.train))

    def _problem(self, loss: Any) -> tuple[hg.BilevelProblem, Rows, list[tuple[np.ndarray, np.ndarray]]]:
        rows = self.data.train
        index = ens.cross_validation(loss, loss, np.arange(len(rows.y)), FOLDS, jax.random.key(0))
        train, valid = np.asarray(index.train), np.asarray(index.valid)
        parts = rows.take(train), rows.take(valid)
        problem = hg.BilevelProblem(index.inner_loss, index.outer_loss, *parts)
        return problem, rows, list(zip(train, valid, strict=True))

    def _zeros(self) -> Array:
        return jnp.zeros((FOLDS, self.data.train.x.shape[1]))

    def final(self, h: np.ndarray) -> tuple[np.ndarray, float]:
        """Returns the weights of the exact solution on all training rows and their loss on the test rows."""
        return self.whole.final(h)


@eqx.filter_jit
def _train(inner: Any, problem: hg.BilevelProblem, h: Array, state: hg.InnerState, tol: Array) -> Trained:
    key = jax.random.key(0)
    end, spent = inner.solve(problem, h, inner.resume(problem, h, state), key, tol)
    return Trained(end, problem.outer_loss(end.params, h, problem.valid, key), spent.gradients)
