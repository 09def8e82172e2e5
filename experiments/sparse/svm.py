"""The dual of a linear support vector machine: a box whose upper bound is the hyperparameter."""

from typing import Any

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
from jaxopt.base import LinearOperator
from jaxtyping import Array

import hypergrad as hg

from ..common.data import Rows, Splits
from .model import MOST, Problem, logistic


class Dual(jaxopt.objective.CompositeLinearFunction):
    """½‖Zᵀα‖² - Σα with the rows y x of Z; its minimum over 0 <= α <= C has the weights w = Zᵀα of the machine."""

    def subfun(self, predictions: Array, h: Array, rows: Any, key: Array) -> Array:
        """Returns ½‖w‖²."""
        return jnp.sum(predictions**2) / 2

    def make_linop(self, h: Array, rows: Any, key: Array) -> LinearOperator:
        """Returns the map from α to w."""
        return LinearOperator((rows.x * rows.y[:, None]).T)

    def columnwise_lipschitz_const(self, h: Array, rows: Any, key: Array) -> Array:
        """Returns ‖x_i‖²."""
        return jnp.sum(rows.x**2, 1)

    def b(self, h: Array, rows: Any, key: Array) -> Array:
        """Returns -1 for every row."""
        return -jnp.ones_like(rows.y)


def box(alpha: Array, h: Array, scaling: Array) -> Array:
    """Returns α within 0 and C = exp(-h)."""
    return jnp.clip(alpha, 0, jnp.exp(-h))


def held_out(alpha: Array, h: Array, parts: Any, key: Array) -> Array:
    """Returns the logistic loss of the machine's decision values on other rows."""
    train, rows = parts
    return logistic((train.y * alpha) @ train.x, h, rows, key)


class Machine(Problem):
    """The choice of C by the held-out rows, with α trained by block coordinate descent.

    `largest` is the penalty 1/C above which no row lies outside the margin, so that all α are C.
    """

    decades = 4

    def __init__(self, data: Splits):
        super().__init__(Dual(), box, data)
        signed = data.train.x * data.train.y[:, None]
        self.largest = float(np.max(signed @ np.sum(signed, 0)))

    def _problem(self, loss: Any) -> tuple[hg.BilevelProblem, Rows, list[tuple[np.ndarray, np.ndarray]]]:
        _, rows, splits = super()._problem(loss)
        return hg.BilevelProblem(loss, held_out, self.data.train, (self.data.train, self.data.valid)), rows, splits

    def _solver(self, prox: Any) -> hg.JaxoptSolver:
        return hg.JaxoptSolver(jaxopt.BlockCoordinateDescent, block_prox=prox, maxiter=MOST)

    def _zeros(self) -> Array:
        return jnp.zeros(len(self.data.train.y))

    def _test_loss(self, weights: Array, h: np.ndarray) -> Array:
        return held_out(weights, jnp.asarray(h), (self.data.train, self.data.test), jax.random.key(0))
