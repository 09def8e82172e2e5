"""One round of a black-box search: trials are asked for, trained and told, and the journal says so."""

from dataclasses import dataclass, field
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ..ground.checks import shown
from .journal import Journal, ask_event, tell_event
from .objective import AbstractObjective
from .optuna import Pruner
from .plain import plain
from .reports import Report
from .searcher import AbstractSearcher, refuse_unknown
from .space import Space
from .state import SearcherState
from .trial import Result, Trial, revised

OnFailure = Literal["record", "raise"]
PRUNED = "optuna.exceptions.TrialPruned"
BLOCK = 32  # keys made together


@jax.jit
def _block_of_keys(key: Array, first: Array) -> tuple[Array, ...]:
    return tuple(jax.vmap(lambda number: jax.random.fold_in(key, first + number))(jnp.arange(BLOCK, dtype=jnp.uint32)))


@dataclass(frozen=True)
class Loop:
    """The arguments of `search_trials` that are the same in every round, and the keys of a block of trials."""

    searcher: AbstractSearcher
    objective: AbstractObjective
    key: Array
    fidelity: float
    pruner: Pruner | None
    on_failure: OnFailure
    file: Journal | None
    keys: dict[int, tuple[Array, ...]] = field(default_factory=dict)  # by the number of the block

    def ask(self, state: SearcherState, number: int) -> SearcherState:
        """Asks for so many trials, unless some are pending."""
        if state.pending:
            return state
        for _ in range(number):
            state, _ = self.searcher.ask(state)
        if self.file is not None:
            self.file.write(*[ask_event(trial) for trial in state.pending])
        return state

    def tell(self, state: SearcherState, number: int) -> SearcherState:
        """Trains the oldest pending trials and tells their results."""
        trials = [revised(trial, fidelity=self.fidelity) for trial in state.pending[:number]]
        results = self._trained(state, trials)
        self._raise(results, first=all(one.trial.number is None for one in state.history))
        before = len(state.history)
        for trial, result in zip(trials, results, strict=True):
            state = self.searcher.tell(state, trial, revised(result, exception=None))
        if self.file is not None:
            self.file.write(*[tell_event(one.trial, one.result) for one in state.history[before:]])
        return state

    def _trained(self, state: SearcherState, trials: list[Trial]) -> list[Result]:
        keys = [self._key(trial.origin or 0) for trial in trials]
        reports = [Report(None if self.pruner is None else self.pruner.begin(state, trial)) for trial in trials]
        listened = [  # with values and notes of its own: an objective may change the dictionaries
            revised(trial, params=dict(trial.params), meta=plain(trial.meta), report=report)
            for trial, report in zip(trials, reports, strict=True)
        ]
        try:
            results = list(self.objective(listened, keys))
        except Exception as error:
            results = [Result.failure(error) for _ in trials]
        if len(results) != len(trials) or not all(isinstance(result, Result) for result in results):
            raise TypeError(f"objective must return one Result for each of {len(trials)} trials, got {shown(results)}")
        results = [_fitting(state.space, *one) for one in zip(trials, results, strict=True)]
        return [_with_reports(one, report.values) for one, report in zip(results, reports, strict=True)]

    def _key(self, number: int) -> Array:
        """Returns `fold_in(key, number)`; such keys are made together, because a call takes longer than they do."""
        block, index = divmod(number, BLOCK)
        if block not in self.keys:
            self.keys.clear()
            self.keys[block] = _block_of_keys(self.key, np.uint32(block * BLOCK))
        return self.keys[block][index]

    def _raise(self, results: list[Result], *, first: bool) -> None:
        """Raises the exception of a trial where the policy says so; the trials stay pending in the journal."""
        errors = [result.exception for result in results if result.exception is not None]
        if errors and (self.on_failure == "raise" or (first and len(errors) == len(results))):
            raise errors[0]


def _fitting(space: Space, trial: Trial, result: Result) -> Result:
    """Returns the result, or a failed one where it tells of what the space does not have."""
    try:
        refuse_unknown(space, result)
        if result.tuned:
            space.checked(trial.params | space.checked_some(result.tuned, "tuned"))
    except ValueError as error:
        return Result.failure(error, seconds=result.seconds)
    return result


def _with_reports(result: Result, values: list[list[float]]) -> Result:
    """Returns the result with what was reported, pruned at the last value where Optuna's own signal ended it."""
    if any(f"{kind.__module__}.{kind.__name__}" == PRUNED for kind in type(result.exception).__mro__):
        last = values[-1][1] if values else result.value
        result = revised(result, value=last, pruned=True, error=None, exception=None)
    return revised(result, reported=values)
