"""What every search carries and reports."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from ..ground.tree import PartitionedModel, partition
from ..problem import BilevelProblem
from ..stats import Counts, Estimate, Stats


class Best(eqx.Module):
    """The best finite outer loss so far, the hyperparameters and the trained model it was measured with."""

    hparams: PyTree
    value: Array  # infinity before the first finite value
    partitioned: PartitionedModel

    @property
    def params(self) -> PyTree:
        """The trained model, whole."""
        return self.partitioned.model


class SearchState(eqx.Module):
    """All that a search carries, as arrays."""

    hparams: PyTree
    best: Best
    inner_state: Any  # of the estimator, or of what else trains
    opt_state: Any  # of the optimiser of the hyperparameters
    num_steps: Array  # steps done, int32
    spent: Counts

    @property
    def model(self) -> PyTree:
        """The model as it is trained now, whole; `best.params` is that of the best step."""
        return self.inner_state.params


class Record(eqx.Module):
    """One step as it was measured: `value` is the outer loss at `hparams`, before they moved."""

    hparams: PyTree
    value: Array
    stats: Stats


class AbstractSearch(eqx.Module):
    """Moves hyperparameters. `run` repeats `step` under a budget."""

    @abc.abstractmethod
    def init(self, problem: BilevelProblem, params: PyTree, hparams: PyTree) -> SearchState:
        """The state before the first step. Raises where the arguments do not fit."""

    @abc.abstractmethod
    def step(self, problem: BilevelProblem, state: SearchState, key: Array) -> tuple[SearchState, Record]:
        """One step of the search."""


def first_state(problem: BilevelProblem, hparams: PyTree, inner_state: Any, opt_state: Any) -> SearchState:
    """Returns a `SearchState` with nothing found and nothing spent; its model is that of `inner_state`."""
    model = inner_state.params
    value = eqx.filter_eval_shape(problem.outer_loss, model, hparams, problem.valid, jax.random.key(0))
    best = Best(hparams, jnp.full_like(value, jnp.inf), partition(model))
    return SearchState(hparams, best, inner_state, opt_state, jnp.zeros((), jnp.int32), Counts())


def better(best: Best, hparams: PyTree, estimate: Estimate) -> Best:
    """The better of two by outer loss; a value that is not finite never wins."""
    wins = jnp.isfinite(estimate.value) & (estimate.value < best.value)
    return optax.tree.where(wins, Best(hparams, estimate.value, estimate.partitioned), best)
