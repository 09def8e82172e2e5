"""The state, the record and the interface of every search."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ensembles.ground.axes import is_deleted

from ..data.sampler import as_sampler
from ..ground.checks import Rule, checked, explained, function, random_key
from ..ground.identity import refuse_different
from ..ground.outside import ReadsOutside
from ..ground.placement import placed_with
from ..ground.shapes import shapes_of
from ..ground.show import paragraph, show, show_size
from ..ground.total import Total
from ..ground.tree import describe, distinct
from ..ground.units import norm
from ..problem import PROBLEM, BilevelProblem, check_model, explain_derivatives
from ..stats import Counts, Estimate, Stats, show_status
from .holdout import on_holdout
from .selection import Best, better, draws_needed, nothing_yet

Step = TypeVar("Step", bound=Callable[..., Any])
PROJECTION = function("projection", "hparams -> hparams")


def projected(projection: Callable[[PyTree], PyTree], hparams: PyTree) -> PyTree:
    """Returns the hyperparameters projected. **Raises** `ValueError` where these would be of another form."""
    try:
        found = projection(hparams)
        fits = jax.tree.all(jax.tree.map(lambda old, new: jnp.shape(old) == jnp.shape(new), hparams, found))
    except Exception as error:  # of somebody's function, or of another structure
        raise ValueError(f"projection fails on the hyperparameters: {type(error).__name__}: {error}") from error
    if not fits:
        raise ValueError(
            f"projection changes the form of the hyperparameters: {describe(hparams)} -> {describe(found)}"
        )
    return found


class Anchor(eqx.Module):
    """The last hyperparameters with a finite result, and the share of the optimiser's next update that is taken."""

    hparams: PyTree
    share: Array


class SearchState(eqx.Module):
    """All that a search carries, as arrays.

    **Example**

        >>> print(hg.GradientSearch(hg.Reverse(inner), optax.adam(0.1)).init(problem, w, log_l2))
        SearchState: 0 steps
          hparams: -1
          best: value inf at -1
          model: 1 array, 3 numbers (float32)
          spent: iterations 0, ...
    """

    hparams: PyTree
    best: Best
    inner_state: Any  # of the estimator, or of what else trains
    opt_state: Any  # of the optimiser of the hyperparameters
    num_steps: Array  # steps done, int32
    spent: Counts  # totals
    anchor: Anchor | None = None  # of a search that moves by `retreat.move`
    stale: Array | None = None  # steps since the best was found, int32, of a run with a holdout

    @property
    def model(self) -> PyTree:
        """The model as it is trained now, whole; `best.params` is that of the best step."""
        return self.inner_state.params

    @property
    def chosen_anew(self) -> "SearchState":
        """The same state with no best step yet, for a run with a holdout."""
        value, draws = (jnp.full_like(loss, jnp.inf) for loss in (self.best.value, self.best.draws))
        best = dataclasses.replace(self.best, value=value, error=jnp.zeros_like(value), draws=draws)
        return dataclasses.replace(self, best=best, stale=jnp.zeros((), jnp.int32))

    def __repr__(self) -> str:
        """Shows hyperparameters, the best so far, and the work done."""
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
        """Shows value, flags, hyperparameters, and what the step took."""
        return paragraph(
            f"Record: value {show(self.value)}, {show_status(self.stats.status)}",
            (f"hparams: {show(self.hparams)}", *self.stats.lines()),
        )


class AbstractSearch(ReadsOutside):
    """A rule that moves hyperparameters and trains with them; `run` repeats `step` under a budget.

    Searchers of `hypergrad.trials` propose hyperparameters alone, and are told what somebody else trained.
    """

    @property
    @abc.abstractmethod
    def num_inner_steps(self) -> int:
        """The most training steps in one step of the search, each of which reads a batch of a stream."""

    @abc.abstractmethod
    def init(self, problem: BilevelProblem, params: PyTree, hparams: PyTree) -> SearchState:
        """Returns the state before the first step. Raises where the arguments do not fit."""

    @abc.abstractmethod
    def step(self, problem: BilevelProblem, state: SearchState, key: Array) -> tuple[SearchState, Record]:
        """Returns the state after one step, and the record of the step."""


def _whole(value: Any) -> SearchState:
    if not isinstance(value, SearchState):
        raise TypeError
    if any(map(is_deleted, jax.tree.leaves(value))):
        raise ValueError
    return value


STATE = Rule("state", "the state that search.init or an earlier run returned, its arrays not deleted", _whole)


def checked_step(step: Step) -> Step:
    """Checks the arguments of a search's `step`."""
    return checked(PROBLEM, STATE, random_key())(explained(_explain)(step))


def _explain(search: AbstractSearch, problem: BilevelProblem, state: SearchState, key: Array) -> None:
    expected = eqx.filter_eval_shape(search.init, problem, state.model, state.hparams)
    refuse_different("state", expected, state, f"one of this {type(search).__name__} on this problem")
    explain_derivatives(problem, check_model(problem, state.model, state.hparams), state.hparams)


def first_state(
    problem: BilevelProblem,
    hparams: PyTree,
    inner_state: Any,
    opt_state: Any,
    *,
    retreats: bool = False,
    least_draws: int = 0,
) -> SearchState:
    """Returns a `SearchState` with nothing found and nothing spent; its model is that of `inner_state`.

    No two of its arrays are one, so that all can be donated.

    - `retreats`: whether the search moves by `retreat.move`.
    - `least_draws`: evaluations before a step becomes the best, where the outer loss itself needs none.
    """
    model = inner_state.params
    best = nothing_yet(problem, model, hparams, max(draws_needed(problem, model, hparams), least_draws))
    anchor = Anchor(hparams, jnp.ones((), shapes_of(norm, hparams).dtype)) if retreats else None
    zero = jnp.zeros((), jnp.int32)
    state = SearchState(hparams, best, inner_state, opt_state, zero, _nothing_spent(), anchor)
    return distinct(placed_with(state, model, (problem.train, problem.valid)))


@jax.jit
def _nothing_spent() -> Counts:
    """Returns the totals of no work, by one call of the device in place of some dozens."""
    return Counts().totals


def conclude(
    problem: BilevelProblem,
    state: SearchState,
    estimate: Estimate,
    key: Array,
    hparams: PyTree,
    *,
    thrifty: bool = True,
) -> tuple[SearchState, Record]:
    """Returns the state after a step and the record of the step.

    `state` has moved already; the best so far, the number of steps and the work are still those of before. `estimate`
    was measured at `hparams`. Where the outer loss is random, a `thrifty` search, whose steps are points of one path,
    passes over those that come while evaluations are more than a quarter of its gradient equivalents. That is a quarter
    of its time only if an evaluation costs no more than an inner gradient; see `Counts`.
    """
    rows = Total.product(estimate.stats.counts.inner_equivalents, as_sampler(problem.train).rows_per_step)
    spent, twice = state.spent, state.spent.evaluations + state.spent.evaluations
    affordable = (twice + twice <= spent.gradients) if thrifty else True
    judge, candidate = on_holdout(problem, hparams, estimate, key)
    best, looked, won = better(state.best, judge, hparams, candidate, key, affordable)
    stats = candidate.stats.also(looked + Counts(rows=rows))
    stale = None if state.stale is None else jnp.where(won, 0, state.stale + 1)
    after = dataclasses.replace(
        state, best=best, num_steps=state.num_steps + 1, spent=spent + stats.counts, stale=stale
    )
    return after, Record(hparams, estimate.value, stats)
