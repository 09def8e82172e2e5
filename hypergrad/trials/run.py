"""The loop of a black-box search: ask, train, tell, with a journal."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array

from ..ground.checkpoint import without_addresses
from .journal import Journal, ask_event, replay, tell_event
from .objective import Objective
from .searcher import AbstractSearcher
from .space import Space
from .trial import FinishedTrial, Result, SearcherState, Trial


def search_trials(
    searcher: AbstractSearcher,
    space: Space,
    objective: Objective,
    *,
    key: Array,
    num_trials: int,
    batch: int = 1,
    fidelity: float = 1.0,
    journal: str | os.PathLike | None = None,
    told: Sequence[FinishedTrial] = (),
    progress: bool = False,
    callback: Callable[[SearcherState], Any] | None = None,
) -> SearcherState:
    """Ask for trials, train them, tell the results, `num_trials` in all.

    Trial k trains with `fold_in(key, k)`. A trial that raises, or whose value is not finite, is recorded as failed, and
    the search goes on.

    **Arguments**

    - `objective`: `PerTrial(function)`, `Vmapped(...)` or anything that turns a list of trials and their keys into
      as many results.
    - `batch`: trials asked for at once, before any of them is told.
    - `fidelity`: the fraction of the training data, passed on as `Trial.fidelity`.
    - `journal`: a file. If it exists the search goes on from there, with the same trials and results as if it had not
      stopped; trials that were under way are trained again. One of another search is refused. Workers that share an
      Optuna study have each a key and a journal of their own.
    - `told`: results known beforehand, their trials foreign: `FinishedTrial(Trial(None, params), Result(loss))`.
    - `callback(state)`: called after every batch; a true result ends the search.

    **Returns** the state of the searcher; `state.best.trial.params` are the best hyperparameters.

    **Raises** `TypeError` or `ValueError` before anything is trained for arguments that do not fit, and
    `CheckpointError` for a journal of another search.
    """
    state = _begin(searcher, space, objective, key, num_trials, batch, fidelity, told)
    header = {
        "space": space.to_json(),
        "searcher": without_addresses(eqx.tree_pformat(searcher, width=10_000)),
        "key": list(state.seed),
        "batch": batch,
        "fidelity": fidelity,
        "told": state.to_json()["history"],
    }
    with (
        nullcontext(None) if journal is None else Journal(journal, header) as file,
        _bar(progress, num_trials) as advance,
    ):
        state = state if file is None else replay(state, file.events)
        advance(state, state.asked - len(state.pending))
        while state.pending or state.asked < num_trials:
            if not state.pending:
                state = _ask(searcher, state, min(batch, num_trials - state.asked), file)
            trials = [replace(trial, fidelity=fidelity) for trial in state.pending[:batch]]
            keys = [jax.random.fold_in(key, int(trial.number or 0)) for trial in trials]
            state = _tell(searcher, state, trials, _evaluated(objective, trials, keys), file)
            advance(state, len(trials))
            if callback is not None and callback(state):
                break
    return state


def _begin(searcher, space, objective, key, num_trials, batch, fidelity, told) -> SearcherState:
    if not isinstance(searcher, AbstractSearcher):
        raise TypeError(f"searcher must be a searcher, got {searcher!r}")
    if not callable(objective):
        raise TypeError(f"objective must be callable, got {objective!r}")
    for name, value in {"num_trials": num_trials, "batch": batch}.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}")
    if not 0 < fidelity <= 1:
        raise ValueError(f"fidelity must lie in (0, 1], got {fidelity}")
    state = searcher.init(space, key)
    for one in told:
        if one.trial.number is not None:
            raise ValueError(f"told holds trial {one.trial.number}: a foreign trial has number None")
        state = searcher.tell(state, one.trial, one.result)
    return state


def _ask(searcher: AbstractSearcher, state: SearcherState, number: int, file: Journal | None) -> SearcherState:
    before = len(state.pending)
    for _ in range(number):
        state, _ = searcher.ask(state)
    if file is not None:
        file.write(*[ask_event(trial) for trial in state.pending[before:]])
    return state


def _evaluated(objective: Objective, trials: list[Trial], keys: list[Array]) -> list[Result]:
    try:
        results = list(objective(trials, keys))
    except Exception as error:
        return [Result.failure(f"{type(error).__name__}: {error}") for _ in trials]
    if len(results) != len(trials) or not all(isinstance(result, Result) for result in results):
        raise TypeError(
            f"objective must return one Result for each of {len(trials)} trials, got {results!r}; "
            "wrap a function of one trial in PerTrial"
        )
    return results


def _tell(searcher, state: SearcherState, trials: list[Trial], results: list[Result], file) -> SearcherState:
    before = len(state.history)
    for trial, result in zip(trials, results, strict=True):
        try:
            state.space.checked(trial.params | result.tuned)
        except ValueError as error:
            result = Result.failure(f"tuned: {error}", cost=result.cost)
        state = searcher.tell(state, trial, result)
    if file is not None:
        file.write(*[tell_event(told.trial, told.result) for told in state.history[before:]])
    return state


@contextmanager
def _bar(progress: bool, total: int) -> Iterator[Callable[[SearcherState, int], None]]:
    if not progress:
        yield lambda state, number: None
        return
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError("progress=True needs tqdm: pip install tqdm") from error
    with tqdm(total=total, unit=" trials") as bar:

        def advance(state: SearcherState, number: int) -> None:
            best = "-" if state.best is None else f"{state.best.result.value:.5g}"
            bar.set_postfix(best=best, failed=len(state.failures), refresh=False)
            bar.update(number)

        yield advance
