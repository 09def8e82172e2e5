"""Optuna's samplers as searchers. The only module that imports optuna, and only when it is used."""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np

from .searcher import AbstractSearcher, Proposal
from .space import Categorical, Int, Space
from .trial import FinishedTrial, Result, SearcherState, Trial


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ImportError("Optuna needs optuna: pip install 'hypergrad-jax[optuna]'") from error
    return optuna


class Optuna(AbstractSearcher):
    """Any Optuna sampler: TPE, GP, CMA-ES, NSGA-II, as far as what they need is installed.

        Optuna(lambda seed: optuna.samplers.TPESampler(seed=seed))
        Optuna(..., storage="study.log", study="aerosol")

    **Arguments**

    - `sampler`: a function from a seed to a sampler. Each ask makes a new one, so that a search which was stopped goes
      on as if it had not been.
    - `storage`: a file for Optuna's journal storage. All processes that name the same file and `study` share one study
      and see each other's results. Without it the study is built from the state at each ask: n asks cost O(n²), some
      0.06 ms per told trial.
    - `warn`: let Optuna's warnings about experimental features through.

    Foreign trials are added to the study. Samplers that keep more than trials in a study (QMC) need `storage`. CMA-ES
    and GP draw leaves at random that were not active in every trial, CMA-ES choices too; they log it, unless made with
    `warn_independent_sampling=False`.

    **Raises** `ImportError` without optuna, and at the first ask where CMA-ES lacks cmaes or GP lacks torch.
    """

    sampler: Callable[[int], Any]
    storage: str | os.PathLike | None = None
    study: str = "hypergrad"
    warn: bool = False

    def propose(self, state: SearcherState, random: np.random.Generator, fixed: Mapping[str, Any]) -> Proposal:
        """What the sampler suggests, the fixed leaves kept from it."""
        optuna = _optuna()
        with _quiet(self.warn):
            sampler = self.sampler(int(random.integers(2**31)))
            _check_package(sampler)
            study = _rebuilt(state) if self.storage is None else _opened(self.storage, self.study)
            study.sampler = optuna.samplers.PartialFixedSampler(dict(fixed), sampler) if fixed else sampler
            trial = study.ask()
            params: dict[str, Any] = {}
            for name, leaf in state.space.leaves.items():
                if leaf.when is None or leaf.when.holds(params):
                    suggested = _suggested(trial, name, leaf)
                    params[name] = fixed.get(name, suggested)
            notes = dict(study.get_trials(deepcopy=False)[trial.number].system_attrs)
        shared = {"study_trial": trial.number} if self.storage is not None else {}
        return params, ({"system_attrs": notes} if notes else {}) | shared

    def publish(self, state: SearcherState, trial: Trial, result: Result) -> None:
        """Tell a study on disk."""
        if self.storage is None:
            return
        states = _optuna().trial.TrialState
        with _quiet(self.warn):
            study = _opened(self.storage, self.study)
            number = trial.meta.get("study_trial")
            if number is not None and not (result.failed or result.tuned):
                study.tell(number, result.value)
                return
            if number is not None:  # Optuna cannot change the values of its own trials
                study.tell(number, state=states.FAIL)
            if not result.failed:
                study.add_trial(_frozen(state.space, FinishedTrial(trial, result)))


def _check_package(sampler: Any) -> None:
    """Optuna itself would find out only when its random startup trials are done."""
    samplers = _optuna().samplers
    for kind, package, extra in ((samplers.CmaEsSampler, "cmaes", "optuna"), (samplers.GPSampler, "torch", "gp")):
        if isinstance(sampler, kind) and find_spec(package) is None:
            raise ImportError(f"{kind.__name__} needs {package}: pip install 'hypergrad-jax[{extra}]'")


def _opened(storage: str | os.PathLike, study: str) -> Any:
    optuna = _optuna()
    backend = optuna.storages.journal.JournalFileBackend(os.fspath(storage))
    journal = optuna.storages.JournalStorage(backend)
    return optuna.create_study(storage=journal, study_name=study, load_if_exists=True)


@contextmanager
def _quiet(warn: bool) -> Iterator[None]:
    """Without the note that a study was created, and without warnings about experimental classes."""
    logging = _optuna().logging
    verbosity = logging.get_verbosity()
    logging.set_verbosity(max(verbosity, logging.WARNING))
    try:
        with warnings.catch_warnings():
            if not warn:
                warnings.simplefilter("ignore", _optuna().exceptions.ExperimentalWarning)
            yield
    finally:
        logging.set_verbosity(verbosity)


def _suggested(trial: Any, name: str, leaf: Any) -> Any:
    if isinstance(leaf, Categorical):
        return trial.suggest_categorical(name, leaf.choices)
    suggest = trial.suggest_int if isinstance(leaf, Int) else trial.suggest_float
    return suggest(name, leaf.low, leaf.high, log=leaf.log)


def _distribution(leaf: Any) -> Any:
    kinds = _optuna().distributions
    if isinstance(leaf, Categorical):
        return kinds.CategoricalDistribution(leaf.choices)
    kind = kinds.IntDistribution if isinstance(leaf, Int) else kinds.FloatDistribution
    return kind(leaf.low, leaf.high, log=leaf.log)


def _frozen(space: Space, told: FinishedTrial) -> Any:
    trials = _optuna().trial
    return trials.create_trial(
        params=told.trial.params,
        distributions={name: _distribution(space.leaves[name]) for name in told.trial.params},
        system_attrs=told.trial.meta.get("system_attrs", {}),
        **({"state": trials.TrialState.FAIL} if told.result.failed else {"value": told.result.value}),
    )


def _rebuilt(state: SearcherState) -> Any:
    """A study in memory that knows what the state knows."""
    optuna = _optuna()
    study = optuna.create_study()
    for told in state.history:
        study.add_trial(_frozen(state.space, told))
    for trial in state.pending:
        study.add_trial(
            optuna.trial.create_trial(
                params=trial.params,
                distributions={name: _distribution(state.space.leaves[name]) for name in trial.params},
                state=optuna.trial.TrialState.RUNNING,
            )
        )
    return study
