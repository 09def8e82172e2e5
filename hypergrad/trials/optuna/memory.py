"""A study in memory that is kept in step with a search."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from ..space import Params
from ..state import SearcherState
from ..trial import FinishedTrial, Result, Trial
from . import translation


class MemoryStudy:
    """An Optuna study that holds what a search was told, fed with what is new before each ask.

    The study has one trial for each that its sampler proposed, in the order of asking, and one for each other result,
    in the order of telling. A trial that moved (`Result.tuned`) counts as failed there and is added with the values it
    came to. The notes of a proposal are what is needed to ask for it again: how many results were known, the seed and
    the fixed leaves. A study made anew from a state asks again for everything, and so becomes the same one, with all
    that its sampler keeps in it.

    With `reseed` each ask has a sampler of its own, made from a seed; without, one sampler serves all.
    """

    def __init__(self, state: SearcherState, make: Callable[[int], Any], reseed: bool):
        self.space, self.seed, self.make = state.space, state.seed, make
        self.study = translation.package().create_study()
        self.sampler = None if reseed else make(int(np.random.default_rng(state.seed).integers(2**31)))
        self.trials: dict[int, Any] = {}  # of the study, by the search's number
        self.newest = -1  # number of the newest trial that the sampler proposed
        self.known = 0
        self.last: FinishedTrial | None = None
        moved = {one.trial.number for one in state.history if one.result.tuned}
        for trial in sorted((trial for trial in _trials(state) if "known" in trial.meta), key=_number):
            self.catch_up(state, trial.meta["known"])
            self._repeat(trial, trial.number in moved)
        self.catch_up(state, len(state.history))

    def follows(self, state: SearcherState) -> bool:
        """Returns whether the state grew from the one that this study holds."""
        if (self.space, self.seed) != (state.space, state.seed) or self.known > len(state.history):
            return False
        if self.known and state.history[self.known - 1] != self.last:
            return False
        return self.newest < 0 or any(_number(trial) == self.newest for trial in _trials(state))

    def catch_up(self, state: SearcherState, known: int) -> None:
        """Tells the study the results up to number `known`."""
        for one in state.history[self.known : known]:
            self._tell(one)
            self.last = one
        self.known = max(self.known, known)

    def ask(self, number: int, seed: int, fixed: Mapping[str, Any]) -> tuple[Params, dict[str, Any]]:
        """Proposes values for a trial, with the notes needed to ask again."""
        sampler = self.make(seed) if self.sampler is None else self.sampler
        trial, params = translation.suggested(self.study, sampler, self.space, fixed)
        self.trials[number], self.newest = trial, number
        notes: dict[str, Any] = {"known": self.known, "seed": seed}
        return params, notes | ({"fixed": list(fixed)} if fixed else {})

    def _tell(self, one: FinishedTrial) -> None:
        trial, result = self.trials.pop(_number(one.trial), None), one.result
        if trial is None:
            self.study.add_trial(translation.frozen(self.space, one.trial.params, result))
        elif result.tuned and not result.failed:
            translation.tell(self.study, trial, Result.failure("moved"))
            self.study.add_trial(translation.frozen(self.space, one.trial.params, result))
        else:
            translation.tell(self.study, trial, result)

    def _repeat(self, trial: Trial, moved: bool) -> None:
        """Asks again for a trial; one that another sampler had proposed is added once its result is told."""
        number, meta = _number(trial), trial.meta
        fixed = {name: trial.params[name] for name in meta.get("fixed", ()) if name in trial.params}
        params, _ = self.ask(number, meta["seed"], fixed)
        if params != trial.params and not moved:
            translation.tell(self.study, self.trials.pop(number), Result.failure("of another sampler"))


def _number(trial: Trial) -> int:
    return -1 if trial.number is None else trial.number


def _trials(state: SearcherState) -> Iterator[Trial]:
    """Yields all trials, the newest results first."""
    return itertools.chain(state.pending, (one.trial for one in reversed(state.history)))
