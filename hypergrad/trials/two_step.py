"""Searches on a little data that train the best again on all of it."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypedDict, Unpack

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ..data.draws import num_rows
from ..ground.checks import Rule, checked, integer, path, random_key, real, several
from ..ground.files import check_folder
from .loop import OnFailure
from .objective import AbstractObjective
from .optuna import Pruner
from .run import search_trials
from .searcher import AbstractSearcher
from .space import Space
from .state import SearcherState
from .trial import FinishedTrial, Result, Trial
from .uninformed import FixedList


@dataclass(frozen=True)
class TwoStepResult:
    """The states after every step: the first is the search's, the others are of what was retrained."""

    states: tuple[SearcherState, ...]

    @property
    def best(self) -> FinishedTrial | None:
        """The best after the last step; `meta["origin"]` is its number in the first."""
        return self.states[-1].best

    @property
    def front(self) -> list[FinishedTrial]:
        """The Pareto front of loss and size after the last step, smallest first."""
        return pareto_front(self.states[-1].ranked)

    @property
    def seconds(self) -> float:
        """Seconds of all trials of all steps."""
        return sum(told.result.seconds for state in self.states for told in state.history)


def _each(rule: Rule) -> Callable[[Any], tuple[Any, ...]]:
    def convert(values: Any) -> tuple[Any, ...]:
        if isinstance(values, str | bytes | dict | set):
            raise TypeError
        return tuple(map(rule.convert, values))

    return convert


FRACTION = real("fraction", above=0, most=1)
FRACTIONS = Rule("fractions", "numbers above 0 and at most 1", _each(FRACTION))
KEEP = Rule("keep", "positive integers", _each(integer("keep", least=1)))
JOURNAL = path("journal", optional=True)
TRIALS = several("trials", FinishedTrial, "a list of FinishedTrial")


class SearchOptions(TypedDict, total=False):
    """Options of `search_trials` that apply to every step."""

    batch: int
    on_failure: OnFailure
    progress: bool
    callback: Callable[[SearcherState], Any] | None
    pruner: Pruner | None


@checked(integer("num_trials", least=1), real("fraction", above=0, below=1), integer("top", least=1), JOURNAL)
def two_step(
    searcher: AbstractSearcher,
    space: Space,
    objective: AbstractObjective | Callable[[Trial, Array], Result | float],
    *,
    key: Array,
    num_trials: int,
    fraction: float = 0.04,
    top: int = 5,
    journal: str | os.PathLike[str] | None = None,
    **options: Unpack[SearchOptions],
) -> TwoStepResult:
    """Searches with a fraction of the training data, then trains the `top` best anew on all of it.

    The same as `n_step` with `fractions=(fraction, 1.0)`, `keep=(top,)`.

    **Source**: after Yu et al. (2023), "Two-step hyperparameter optimization" (arXiv:2302.03845). There the validation
    set shrinks with the training set; here it is the same in both steps.

    **Example**

        >>> steps = hg.trials.two_step(
        ...     hg.trials.Random(), space, objective, key=key, num_trials=10, fraction=0.1, top=2
        ... )
        >>> [len(state.history) for state in steps.states]
        [10, 2]
    """
    if top > num_trials:
        raise ValueError(f"top must be at most num_trials = {num_trials}, got {top}")
    steps: dict[str, Any] = {"fractions": (fraction, 1.0), "keep": (top,), "journal": journal}
    return n_step(searcher, space, objective, key=key, num_trials=num_trials, **steps, **options)


@checked(integer("num_trials", least=1), FRACTIONS, KEEP, JOURNAL)
def n_step(
    searcher: AbstractSearcher,
    space: Space,
    objective: AbstractObjective | Callable[[Trial, Array], Result | float],
    *,
    key: Array,
    num_trials: int,
    fractions: Sequence[float],
    keep: Sequence[int],
    journal: str | os.PathLike[str] | None = None,
    **options: Unpack[SearchOptions],
) -> TwoStepResult:
    """Searches with `fractions[0]` of the data; then, for every further fraction, trains the `keep[i]` best anew.

    **Arguments**

    - `objective`: reads `trial.fidelity`, trains on `nested_subset(train, trial.fidelity, shuffle_key)` and
      measures on one validation set, the same for all.
    - `fractions`, `keep`: rising fractions in (0, 1], and falling numbers, one fewer. Of equal configurations one is
      kept.
    - `journal`: a folder, with one journal per step.
    - `options`: see `search_trials`.

    Only the first step's values are told to `searcher`: losses at different fractions cannot be compared. A trial that
    is trained anew has the key of its origin. One that tuned hyperparameters inside goes on from where they came to.

    **Raises** `ValueError` or `TypeError` before anything is trained for fractions, numbers or options that make no
    sense; `FloatingPointError` where a step leaves no trial to train again.

    **Example**

        >>> steps = hg.trials.n_step(
        ...     hg.trials.Random(), space, objective, key=key, num_trials=10, fractions=(0.1, 0.3, 1.0), keep=(4, 2)
        ... )
        >>> [len(state.history) for state in steps.states]
        [10, 4, 2]
    """
    _check(num_trials, fractions, keep)
    if unknown := sorted(set(options) - set(SearchOptions.__annotations__)):
        raise TypeError(f"options has {unknown[0]!r}; each step takes {', '.join(SearchOptions.__annotations__)}")
    if journal is not None:
        journal = check_folder(journal, "journal")
    file = lambda step: None if journal is None else os.path.join(journal, f"step_{step + 1}.jsonl")
    states: list[SearcherState] = []
    for step, fraction in enumerate(fractions):
        if step > 0:
            chosen = _distinct(states[-1].ranked)[: keep[step - 1]]
            if not chosen:
                raise FloatingPointError(f"no trial of step {step} is left to train again: all failed or were pruned")
            searcher = FixedList([one.trial.params for one in chosen], origins=[one.trial.origin for one in chosen])
            num_trials = len(chosen)
        state = search_trials(
            searcher,
            space,
            objective,
            key=key,
            num_trials=num_trials,
            fidelity=fraction,
            journal=file(step),
            **options,
        )
        states.append(state)
    return TwoStepResult(tuple(states))


@checked(FRACTION, random_key())
def nested_subset(data: PyTree, fraction: float, key: Array) -> PyTree:
    """Returns the first `fraction` of the rows of `data`, at least one, in an order shuffled by `key`.

    Subsets of one key are nested.

    **Raises** `ValueError` for a fraction outside (0, 1].

    **Example**

        >>> hg.trials.nested_subset(jnp.arange(100), 0.04, key).shape
        (4,)
    """
    rows = num_rows(data)
    chosen = jax.random.permutation(key, rows)[: max(1, round(fraction * rows))]
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[chosen], data)


@checked(TRIALS)
def pareto_front(trials: Iterable[FinishedTrial]) -> list[FinishedTrial]:
    """Returns the trials that none betters in both value and size, smallest first.

    Those that failed, were pruned or have no size are left out.

    **Example**

        >>> sized = lambda trial, key: hg.trials.Result(objective(trial, key), size=trial.params["units"])
        >>> state = hg.trials.search_trials(hg.trials.Random(), space, sized, key=key, num_trials=30)
        >>> [one.trial.params["units"] for one in hg.trials.pareto_front(state.history)]
        [8, 10, 11, 17, 19, 20]
    """
    front: list[FinishedTrial] = []
    ranked = [one for one in trials if not (one.result.failed or one.result.pruned)]
    sized = [one for one in ranked if one.result.size is not None]
    for one in sorted(sized, key=lambda one: (one.result.size, one.result.value)):
        if not front or one.result.value < front[-1].result.value:
            front.append(one)
    return front


@checked(TRIALS, real("rtol", least=0))
def smallest_within_tolerance(trials: Iterable[FinishedTrial], rtol: float) -> FinishedTrial | None:
    """Returns the smallest model whose value is within `rtol` (0.05: five percent) of the best, relative to it.

    **Example**

        >>> sized = lambda trial, key: hg.trials.Result(objective(trial, key), size=trial.params["units"])
        >>> state = hg.trials.search_trials(hg.trials.Random(), space, sized, key=key, num_trials=30)
        >>> hg.trials.smallest_within_tolerance(state.history, 3.0).trial.params["units"]
        20
    """
    front = pareto_front(trials)
    limit = front[-1].result.value + rtol * abs(front[-1].result.value) if front else 0.0
    return next((one for one in front if one.result.value <= limit), None)


def _distinct(ranked: Sequence[FinishedTrial]) -> list[FinishedTrial]:
    """Returns the best trial of every set of values."""
    found: dict[tuple[Any, ...], FinishedTrial] = {}
    for one in ranked:
        found.setdefault(tuple(one.trial.params.items()), one)
    return list(found.values())


def _check(num_trials: int, fractions: Sequence[float], keep: Sequence[int]) -> None:
    if not fractions:
        raise ValueError("fractions is empty: give at least one")
    if not all(a < b for a, b in pairwise(fractions)):
        raise ValueError(f"fractions must rise, got {fractions}")
    if len(keep) != len(fractions) - 1:
        raise ValueError(f"keep must have one number fewer than the {len(fractions)} fractions, got {keep}")
    if not all(a >= b for a, b in pairwise([num_trials, *keep])):
        raise ValueError(f"keep must be positive integers that fall from num_trials = {num_trials}, got {keep}")
