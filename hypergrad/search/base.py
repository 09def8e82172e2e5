"""The state, the record and the interface of every search."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from ..ground.show import paragraph, show, show_size
from ..ground.tree import PartitionedModel, distinct, partition
from ..problem import BilevelProblem
from ..stats import Counts, Estimate, Stats, show_status


class Best(eqx.Module):
    """The best finite outer loss so far, the hyperparameters and the trained model it was measured with."""

    hparams: PyTree
    value: Array  # infinity before the first finite value
    partitioned: PartitionedModel

    @property
    def params(self) -> PyTree:
        """The trained model, whole."""
        return self.partitioned.model

    def __repr__(self) -> str:
        """Value, hyperparameters, and the size of the model."""
        return paragraph(f"Best: {self.line()}", (f"params: {show_size(self.partitioned)}",))

    def line(self) -> str:
        """The value and where it was measured."""
        return f"value {show(self.value)} at {show(self.hparams)}"


class SearchState(eqx.Module):
    """All that a search carries, as arrays.

    >>> print(state)
    SearchState: 40 steps
      hparams: log_l2 -3.1, log_lr -2.4
      best: value 0.413 at log_l2 -3.2, log_lr -2.4
      model: 4 arrays, 113 numbers (float32)
      spent: iterations 4000, ...
    """

    hparams: PyTree
    best: Best
    inner_state: Any  # of the estimator, or of what else trains
    opt_state: Any  # of the optimiser of the hyperparameters
    num_steps: Array  # steps done, int32
    spent: Counts  # totals

    @property
    def model(self) -> PyTree:
        """The model as it is trained now, whole; `best.params` is that of the best step."""
        return self.inner_state.params

    def __repr__(self) -> str:
        """Hyperparameters, the best so far, and the work done."""
        return paragraph(
            f"SearchState: {show(self.num_steps)} steps",
            (
                f"hparams: {show(self.hparams)}",
                f"best: {self.best.line()}",
                f"model: {show_size(self.best.partitioned)}",
                f"spent: {repr(self.spent).removeprefix('Counts: ')}",
            ),
        )


class Record(eqx.Module):
    """One step as it was measured: `value` is the outer loss at `hparams`, before they moved."""

    hparams: PyTree
    value: Array
    stats: Stats

    def __repr__(self) -> str:
        """Value, flags, hyperparameters, and what the step took."""
        return paragraph(
            f"Record: value {show(self.value)}, {show_status(self.stats.status)}",
            (f"hparams: {show(self.hparams)}", *self.stats.lines()),
        )


class AbstractSearch(eqx.Module):
    """Moves hyperparameters. `run` repeats `step` under a budget."""

    @abc.abstractmethod
    def init(self, problem: BilevelProblem, params: PyTree, hparams: PyTree) -> SearchState:
        """The state before the first step. Raises where the arguments do not fit."""

    @abc.abstractmethod
    def step(self, problem: BilevelProblem, state: SearchState, key: Array) -> tuple[SearchState, Record]:
        """One step of the search."""


def first_state(problem: BilevelProblem, hparams: PyTree, inner_state: Any, opt_state: Any) -> SearchState:
    """Returns a `SearchState` with nothing found and nothing spent; its model is that of `inner_state`.

    No two of its arrays are one, so that all can be donated.
    """
    model = inner_state.params
    value = eqx.filter_eval_shape(problem.outer_loss, model, hparams, problem.valid, jax.random.key(0))
    best = Best(hparams, jnp.full_like(value, jnp.inf), partition(model))
    zero = jnp.zeros((), jnp.int32)
    return distinct(SearchState(hparams, best, inner_state, opt_state, zero, Counts().totals))


def better(best: Best, hparams: PyTree, estimate: Estimate) -> Best:
    """The better of two by outer loss; a value that is not finite never wins."""
    wins = jnp.isfinite(estimate.value) & (estimate.value < best.value)
    return optax.tree.where(wins, Best(hparams, estimate.value, estimate.partitioned), best)
