"""Search by hypergradient."""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from ..estimators.base import AbstractEstimator
from ..ground.tree import all_finite
from ..problem import BilevelProblem, as_hparams
from ..stats import Counts, Status
from .base import AbstractSearch, Record, SearchState, better, first_state


def identity(hparams: PyTree) -> PyTree:
    """No constraint."""
    return hparams


class GradientSearch(AbstractSearch):
    """Hyperparameters moved by an optax optimiser along an estimator's hypergradients.

        λ <- projection(λ + optimiser(hypergradient))

    **Arguments**

    - `estimator`: any estimator; whether training starts warm is the estimator's business.
    - `optimiser`: an optax optimiser. One that takes extra arguments receives `value` and the estimator's diagnostics.
    - `projection`: applied after every update, e.g. `lambda h: optax.tree.clip(h, -5.0, 5.0)`.

    A step whose result is not finite moves nothing: it is recorded with its status, and the search goes on from where
    it was with the next key.
    """

    estimator: AbstractEstimator
    optimiser: optax.GradientTransformation
    _: dataclasses.KW_ONLY
    projection: Callable[[PyTree], PyTree] = identity

    def init(self, problem: BilevelProblem, params: PyTree, hparams: PyTree) -> SearchState:
        """Returns the state before the first step. Raises what the estimator's `init` raises."""
        hparams = as_hparams(hparams)
        inner_state = self.estimator.init(problem, params, hparams)
        return first_state(problem, hparams, inner_state, self.optimiser.init(hparams))

    @eqx.filter_jit
    def step(self, problem: BilevelProblem, state: SearchState, key: Array) -> tuple[SearchState, Record]:
        """Estimate, record, move."""
        estimate, inner_state = self.estimator.step(problem, state.hparams, state.inner_state, key)
        optimiser = optax.with_extra_args_support(self.optimiser)
        updates, opt_state = optimiser.update(
            estimate.hypergradient,
            state.opt_state,
            state.hparams,
            value=estimate.value,
            **estimate.stats.diagnostics,
        )
        hparams = self.projection(optax.apply_updates(state.hparams, updates))
        usable = (estimate.stats.status & Status.NONFINITE) == 0
        moved = usable & all_finite(hparams)
        spent = state.spent + estimate.stats.counts + Counts(hyper_updates=moved)
        record = Record(state.hparams, estimate.value, estimate.stats)
        return SearchState(
            hparams=optax.tree.where(moved, hparams, state.hparams),
            best=better(state.best, state.hparams, estimate),
            inner_state=optax.tree.where(usable, inner_state, state.inner_state),
            opt_state=optax.tree.where(moved, opt_state, state.opt_state),
            num_steps=state.num_steps + jnp.int32(1),
            spent=spent,
        ), record
