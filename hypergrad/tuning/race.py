"""The starts that race, the course of each, and the search that all of them take."""

import contextlib
import dataclasses
import math
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
from jaxtyping import Array, PyTree

from ..begin import begin
from ..budget import Budget
from ..course import Course
from ..estimators.reverse import Reverse
from ..failures import NotFiniteError
from ..ground.autosave import Interval
from ..ground.tree import distinct
from ..history import History
from ..inner import AbstractInnerSolver, InnerState
from ..pace import Pace
from ..plan import Plan
from ..problem import BilevelProblem
from ..run import follow, keep_at
from ..search.base import SearchState
from ..search.gradient import GradientSearch

CHUNK = 10  # hyper-steps per compiled call
GROWTH = 100.0  # of the adjoint, from which a shorter horizon is taken
EVERY = 30.0  # seconds between two saves


class Track(NamedTuple):
    """The arguments of `tune` that are the same for all starts."""

    problem: BilevelProblem
    key: Array
    holdout: Any
    patience: int | None
    callback: Callable[[SearchState, History], Any] | None

    def course(self, search: GradientSearch, state: SearchState, key: Array) -> Course:
        """Returns the course of one start, before its first step."""
        plan = Plan(search, self.problem, key, patience=self.patience)
        pace = Pace(CHUNK, watched=self.callback is not None)
        return begin(plan, state, Budget(gradients=1), pace, holdout=self.holdout)


@dataclasses.dataclass
class Rival:
    """One start of the race, and its course so far."""

    name: str
    course: Course

    @property
    def loss(self) -> float:
        """The loss by which starts are compared, infinite where nothing was finite."""
        return float(self.course.entry(lambda state: state.best.value))

    def go_on(self, gradients: int, callback: Callable[[SearchState, History], Any] | None) -> None:
        """Trains and moves λ up to a budget. A start that fails stays where it is, with its loss."""
        with warnings.catch_warnings(), contextlib.suppress(NotFiniteError):
            warnings.filterwarnings("ignore", ".* has no finite result", RuntimeWarning)
            follow(self.course, Budget(gradients=gradients), callback=callback)


class Choice(NamedTuple):
    """A search, its first state, the growth of its adjoint, gradients per hyper-step, and gradients spent to choose."""

    search: GradientSearch
    first: SearchState
    growth: float
    cost: int
    spent: int

    @property
    def estimator(self) -> Reverse:
        """The estimator of the search."""
        estimator = self.search.estimator
        assert isinstance(estimator, Reverse)  # `tune` has made it
        return estimator


def choose(make: Callable[[int], GradientSearch], horizon: int, first: SearchState, track: Track) -> Choice:
    """Returns the search with the longest horizon over which the adjoint keeps its size.

    Horizons are the given one and the halves of it. One step is taken where none is better. A trial is a hyper-step, by
    the program of the race, so that this is compiled once.
    """
    callback = None if track.callback is None else lambda *_: False  # a program that is watched differs
    spent = 0
    while True:
        search = make(horizon)
        trial = Rival("a trial", track.course(search, first, track.key))
        trial.go_on(1, callback)
        growth, cost = float(trial.course.history.stats.diagnostics["growth"][0]), trial.course.gradients
        spent += cost
        if growth <= GROWTH or horizon == 1:
            return Choice(search, first, growth, cost, spent)
        horizon //= 2


def line_up(
    choice: Choice, track: Track, starts: Sequence[tuple[str, PyTree]], checkpoint: str | os.PathLike[str] | None
) -> list[Rival]:
    """Returns the starts before the race, each with a checkpoint of its own where one is given.

    The problem was checked, and traced, for the first of them alone.
    """
    first, inner = choice.first, choice.estimator.inner
    assert first.anchor is not None  # a GradientSearch has one

    def at(hparams: PyTree) -> SearchState:
        training = _restarted(inner, track.problem, hparams, first.inner_state.inner)
        moved = lambda part, **changes: dataclasses.replace(part, **changes)
        best, anchor = (moved(part, hparams=hparams) for part in (first.best, first.anchor))
        inner_state = moved(first.inner_state, inner=training)
        return distinct(moved(first, hparams=hparams, best=best, anchor=anchor, inner_state=inner_state))

    rivals = []
    for number, (name, hparams) in enumerate(starts):
        course = track.course(choice.search, at(hparams), jax.random.fold_in(track.key, number))
        if checkpoint is not None:
            keep_at(f"{os.fspath(checkpoint)}.{number}", course, Interval(EVERY))
        rivals.append(Rival(name, course))
    return rivals


def winner_of(race: list[Rival], gradients: float, callback: Callable[[SearchState, History], Any] | None) -> Rival:
    """Returns the start that is left once the worse half has given up, again and again, for so many gradients."""
    alive, rounds, limit = race, math.ceil(math.log2(len(race))), 0
    for _ in range(rounds):
        limit += max(int(gradients / rounds / len(alive)), 1)
        for rival in alive:
            rival.go_on(limit, callback)
        alive = sorted(alive, key=lambda rival: rival.loss)[: math.ceil(len(alive) / 2)]
    return alive[0]


@eqx.filter_jit
def _restarted(inner: AbstractInnerSolver, problem: BilevelProblem, hparams: PyTree, state: InnerState) -> InnerState:
    return inner.restart(problem, hparams, state)  # traced once for all starts
