"""Optuna's samplers as searchers."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from ...ground.checks import boolean, checked, field, function, real, shown, text
from ..searcher import AbstractSearcher, Proposal
from ..state import STATE, SearcherState
from ..trial import FinishedTrial, Result, Trial
from ..uncopied import Uncopied, uncopied_field
from . import translation
from .memory import MemoryStudy
from .shared import SharedStudy


class _Kept(Uncopied):
    """The study of the latest ask."""

    memory: MemoryStudy | None = None
    shared: SharedStudy | None = None


class Optuna(AbstractSearcher):
    """Any Optuna sampler: TPE, GP, CMA-ES, NSGA-II, as far as the packages they need are installed.

        Optuna(lambda seed: optuna.samplers.TPESampler(seed=seed))
        Optuna(..., storage="study.log", study="aerosol")

    **Arguments**

    - `sampler`: a function from a seed to a sampler.
    - `reseed`: by default one sampler serves the whole search and draws from its own stream, as in a program that uses
      Optuna alone. With `True`, and always with a shared study, each ask has a new sampler, with a seed from the
      search's key and the number of the ask.
    - `storage`: a file for Optuna's journal storage, a URL of a data base (`sqlite:///study.db`) or a storage object.
      All processes that name the same storage and `study` share one study and see each other's results at once. They
      need one key and one journal each.
    - `heartbeat`: seconds between two signs of life of a process that trains trials of a shared study. A trial whose
      process gave none for three times as long is failed, and its values are the next to be asked for.
    - `warn`: let Optuna's warnings about experimental features through.

    The study is kept from ask to ask and fed with what is new: an ask costs what the sampler needs. A search that was
    stopped asks again for all its trials, and goes on as if it had not been. Foreign trials are added to the study. A
    shared study also holds each result's size, work, metrics and error as user attributes. CMA-ES and GP draw leaves at
    random that were not active in every trial, CMA-ES choices too; they log it, unless made with
    `warn_independent_sampling=False`.

    **Raises** `ImportError` without optuna, and at the first ask where CMA-ES lacks cmaes or GP lacks torch.

    **Example**

        >>> import optuna
        >>> tpe = hg.trials.Optuna(lambda seed: optuna.samplers.TPESampler(seed=seed))
        >>> state = hg.trials.search_trials(tpe, space, objective, key=key, num_trials=15)
        >>> print(f"{state.best.result.value:.3f}")
        0.008
    """

    sampler: Callable[[int], Any] = field(function("sampler", "from a seed to an Optuna sampler"))
    storage: str | os.PathLike[str] | Any | None = None
    study: str = field(text("study"), "hypergrad")
    reseed: bool = field(boolean("reseed"), False)
    heartbeat: float = field(real("heartbeat", above=0), 60.0)
    warn: bool = field(boolean("warn"), False)
    kept: _Kept = uncopied_field(_Kept)

    def propose(self, state: SearcherState, random: np.random.Generator, fixed: Mapping[str, Any]) -> Proposal:
        """Proposes the sampler's suggestion, the fixed leaves kept from it."""
        seed = int(random.integers(2**31))
        if self.storage is None:
            return _memory(self, state).ask(state.asked, seed, fixed)
        return shared_study(self).ask(state, _made(self, seed), fixed)

    def publish(self, state: SearcherState, trial: Trial, result: Result) -> None:
        """Tells the shared study. Telling twice changes nothing."""
        if self.storage is not None:
            shared_study(self).tell(state, trial, result)

    @checked(STATE)
    def best_of_study(self, state: SearcherState) -> FinishedTrial | None:
        """Returns the best trial of the shared study, from any process; without `storage` the best of the state."""
        return state.best if self.storage is None else shared_study(self).best()


# Functions, because a bound method of a module is a module, and made anew at every call.


def _made(searcher: Optuna, seed: int) -> Any:
    """Makes a sampler."""
    with translation.quiet(searcher.warn):
        sampler = searcher.sampler(seed)
    if not isinstance(sampler, translation.package().samplers.BaseSampler):
        raise TypeError(f"sampler must return an Optuna sampler, got {shown(sampler)}")
    translation.check_requirements(sampler)
    return sampler


def _memory(searcher: Optuna, state: SearcherState) -> MemoryStudy:
    """Returns the study in memory, which knows all results of the state."""
    study = searcher.kept.memory
    if study is None or not study.follows(state):
        with translation.quiet(searcher.warn):
            study = searcher.kept.memory = MemoryStudy(state, partial(_made, searcher), searcher.reseed)
    study.catch_up(state, len(state.history))
    return study


def shared_study(searcher: Optuna) -> SharedStudy:
    """Returns the study in a storage."""
    if searcher.kept.shared is None:
        with translation.quiet(searcher.warn):
            searcher.kept.shared = SharedStudy(searcher.storage, searcher.study, searcher.heartbeat)
    return searcher.kept.shared
