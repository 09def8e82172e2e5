"""Black-box searches: trials are asked for, trained and told until enough are done, with a journal."""

import itertools
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import equinox as eqx
from jaxtyping import Array

from ..budget import Budget
from ..ground.checks import boolean, checked, choice, function, instance, integer, random_key, real, several
from ..ground.identity import random_bits, without_addresses
from ..progress import progress_bar
from .journal import Journal, replay
from .loop import Loop, OnFailure
from .objective import AbstractObjective, PerTrial
from .optuna import Pruner
from .searcher import SEARCHER, SPACE, AbstractSearcher
from .space import Space
from .state import SearcherState
from .trial import FinishedTrial, Result, Trial

IDLE = 100  # trials in a row that spend nothing of a budget, and then nothing will
KNOWN = several("known", FinishedTrial, "a list of FinishedTrial")


@checked(
    SEARCHER,
    SPACE,
    function("objective", "from a trial and its key to a loss or a Result, or an AbstractObjective"),
    random_key(),
    integer("num_trials", least=1, optional=True),
    instance("budget", Budget, "a hypergrad.Budget", optional=True),
    integer("batch", least=1),
    real("fidelity", above=0, most=1),
    KNOWN,
    instance("pruner", Pruner, "a Pruner", optional=True),
    choice("on_failure", "record", "raise"),
    boolean("progress"),
    function("callback", "of a SearcherState", optional=True),
)
def search_trials(
    searcher: AbstractSearcher,
    space: Space,
    objective: AbstractObjective | Callable[[Trial, Array], Result | float],
    *,
    key: Array,
    num_trials: int | None = None,
    budget: Budget | None = None,
    batch: int = 1,
    fidelity: float = 1.0,
    journal: str | os.PathLike[str] | None = None,
    known: Sequence[FinishedTrial] = (),
    pruner: Pruner | None = None,
    on_failure: OnFailure = "record",
    progress: bool = False,
    callback: Callable[[SearcherState], Any] | None = None,
) -> SearcherState:
    """Asks for trials, trains them and tells the results, until `num_trials` are done or the budget is spent.

    Trial k trains with `fold_in(key, k)`; a trial that repeats another one (`Trial.origin`) with the key of that one.

    **Arguments**

    - `objective`: a function from a trial and its key to a loss or a `Result`; or `Vmapped(...)`, or any other
      `AbstractObjective`.
    - `num_trials`, `budget`: at least one. Trials are begun as long as something of the budget is left: of its
      `iterations` or `gradients` as told by each `Result`, or of its `seconds` of training.
    - `batch`: trials asked for at once, before any of them is told.
    - `fidelity`: the fraction of the training data, passed on as `Trial.fidelity`.
    - `journal`: a file. If it exists the search goes on from there, with the same trials and results as if it had not
      stopped; trials that were under way are trained again. One of another search is refused. Workers that share an
      Optuna study have each a key and a journal of their own.
    - `known`: results known beforehand, their trials foreign: `FinishedTrial(Trial(None, params), Result(loss))`.
    - `pruner`: stops trials early by the values that they report, see `Trial.report`. Trials that run in one program or
      in other processes are not stopped.
    - `on_failure`: for a trial that raises. With "record" it is a failed trial and the search goes on, unless all
      trials of the first batch raise; with "raise" the search stops there. A trial whose value is not finite is always
      recorded.
    - `progress`: show a bar (needs tqdm).
    - `callback(state)`: called with the state found in a journal and after every batch; a true result ends the search.

    **Returns** the state of the searcher; `state.best.trial.params` are the best hyperparameters.

    **Interrupts.** The exception of a search that ends early, `KeyboardInterrupt` included, has the state so far in its
    attribute `state`:

        try:
            state = hg.trials.search_trials(searcher, space, objective, key=key, num_trials=100)
        except KeyboardInterrupt as stop:
            state = stop.state

    **Raises** `TypeError` or `ValueError` before anything is trained for arguments that do not fit, `CheckpointError`
    for a journal that is damaged, in use or of another search, the exception of a trial as `on_failure` says,
    `FloatingPointError` if every trial failed, `ValueError` if no result tells the unit of the budget, and
    `RuntimeError` if a hundred trials in a row spend nothing of it.

    **Example**

        >>> state = hg.trials.search_trials(hg.trials.Random(), space, objective, key=key, num_trials=5)
        >>> len(state.history), len(state.failures)
        (5, 0)
    """
    _check_limits(num_trials, budget)
    objective = objective if isinstance(objective, AbstractObjective) else PerTrial(objective)
    state = _with_known(searcher, searcher.init(space, key), known)
    header = _identity(searcher, state) | {"batch": batch, "fidelity": fidelity, "known": state.to_json()["history"]}
    goal = (num_trials, "trials") if budget is None else (budget.amount, budget.unit)
    with (
        nullcontext(None) if journal is None else Journal(journal, header) as file,
        progress_bar(progress, *goal) as bar,
    ):
        loop = Loop(searcher, objective, key, fidelity, pruner, on_failure, file)
        state = state if file is None else replay(state, file.events, file.path)
        _move_bar(bar, state, budget)
        if state.asked and callback is not None and callback(state):
            return state
        try:
            while number := _left(state, num_trials, budget, batch):
                state = loop.tell(loop.ask(state, number), number)
                _check_spending(state, budget)
                _move_bar(bar, state, budget)
                if callback is not None and callback(state):
                    return state
        except BaseException as error:
            error.state = state  # type: ignore[attr-defined]
            raise
    if state.num_failed == len(state.history):
        raise _all_failed(state)
    return state


def _identity(searcher: AbstractSearcher, state: SearcherState) -> dict[str, Any]:
    """Returns the parts of a search that its journal names, so that another search is refused."""
    return {
        "space": state.space.to_json(),
        "searcher": without_addresses(eqx.tree_pformat(searcher, width=10_000)),
        "key": list(state.seed),
        "random bits": random_bits(),
    }


def _check_limits(num_trials: int | None, budget: Budget | None) -> None:
    if num_trials is None and budget is None:
        raise ValueError("num_trials and budget are both None: give at least one")
    if budget is not None and budget.unit == "epochs":
        raise ValueError("budget must be in iterations, gradients or seconds: a trial does not tell its epochs")


def _with_known(searcher: AbstractSearcher, state: SearcherState, known: Sequence[FinishedTrial]) -> SearcherState:
    for one in known:
        if one.trial.number is not None:
            raise ValueError(f"known holds trial {one.trial.number}: a foreign trial has number None")
        state = searcher.tell(state, one.trial, one.result)
    return state


def _left(state: SearcherState, num_trials: int | None, budget: Budget | None, batch: int) -> int:
    """Returns how many trials to train next: those pending, else a batch within the number and the budget."""
    done = state.asked - len(state.pending)  # more than num_trials where the journal is of a longer search
    most = batch if num_trials is None else min(batch, max(0, num_trials - done))
    if state.pending:
        return min(most, len(state.pending))
    return 0 if budget is not None and getattr(state.spent, budget.unit) >= budget.amount else most


def _check_spending(state: SearcherState, budget: Budget | None) -> None:
    """Raises where trials spend nothing of the budget, so that it would never end the search."""
    if budget is None:
        return
    own = (one.result for one in reversed(state.history) if one.trial.number is not None)
    idle = list(itertools.takewhile(lambda result: not getattr(result, budget.unit), own))
    if not getattr(state.spent, budget.unit) and any(result.error is None for result in idle):
        raise ValueError(f"budget is in {budget.unit}, which no Result tells: return Result(loss, {budget.unit}=...)")
    if len(idle) >= IDLE:
        raise RuntimeError(f"{len(idle)} trials in a row spent no {budget.unit} of the budget, the last: {idle[0]}")


def _move_bar(bar: Any, state: SearcherState, budget: Budget | None) -> None:
    """Moves the bar of trials, or of the budget where there is one, on to a state."""
    if bar is not None:
        best = "-" if state.best is None else f"{state.best.result.value:.5g}"
        bar.set_postfix(best=best, failed=state.num_failed, refresh=False)
        done = state.asked - len(state.pending) if budget is None else getattr(state.spent, budget.unit)
        bar.update(min(done, bar.total) - bar.n)


def _all_failed(state: SearcherState) -> FloatingPointError:
    first = state.history[0].result
    error = FloatingPointError(
        f"all {len(state.history)} trials failed, the first with: {first.error or f'value {first.value}'}"
    )
    error.state = state  # type: ignore[attr-defined]
    return error
