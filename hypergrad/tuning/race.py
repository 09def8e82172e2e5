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
import numpy as np
from jaxtyping import Array, PyTree

from ..begin import begin
from ..budget import Budget
from ..course import Course
from ..estimators.reverse import Reverse
from ..failures import NotFiniteError
from ..ground.autosave import Interval
from ..ground.program import Layout
from ..history import History
from ..inner import AbstractInnerSolver
from ..pace import Pace
from ..plan import Plan
from ..problem import BilevelProblem, outer_value, reading_all
from ..run import follow, keep_at
from ..search.base import SearchState
from ..search.gradient import GradientSearch
from ..search.holdout import loss_on_holdout

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

    def course(self, search: GradientSearch, state: SearchState) -> Course:
        """Returns the course of a search, before its first step."""
        plan = Plan(search, self.problem, self.key, patience=self.patience)
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
    """The course of a search before its first step, the growth of its adjoint, gradients a hyper-step and all spent."""

    course: Course
    growth: float
    cost: int
    spent: int

    @property
    def estimator(self) -> Reverse:
        """The estimator of the search."""
        search = self.course.plan.search
        assert isinstance(search, GradientSearch)  # `tune` has made it
        estimator = search.estimator
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
        course = track.course(make(horizon), first)
        trial = Rival("a trial", course.anew(course.program.pack(course.state), track.key))
        trial.go_on(1, callback)
        growth, cost = float(trial.course.history.stats.diagnostics["growth"][0]), trial.course.gradients
        spent += cost
        if growth <= GROWTH or horizon == 1:
            return Choice(course, growth, cost, spent)
        horizon //= 2


def line_up(
    choice: Choice, starts: Sequence[tuple[str, PyTree]], checkpoint: str | os.PathLike[str] | None
) -> list[Rival]:
    """Returns the starts before the race, each with a checkpoint of its own where one is given.

    The problem was checked, and traced, for the first of them alone.
    """
    first, inner = choice.course, choice.estimator.inner
    rivals = []
    for number, (name, hparams) in zip(np.arange(len(starts)), starts, strict=True):
        tables, key = _begun(inner, first.plan, first.state, hparams, number, first.program.packing)
        course = first.anew(tables, key)
        if checkpoint is not None:
            keep_at(f"{os.fspath(checkpoint)}.{number}", course, Interval(EVERY))
        rivals.append(Rival(name, course))
    return rivals


@eqx.filter_jit
def _begun(
    inner: AbstractInnerSolver, plan: Plan, first: SearchState, hparams: PyTree, number: Any, packing: Layout
) -> tuple[list[Array], Array]:
    """Returns the first state of a start as the program takes it, and the key of its course."""
    anchor, moved = first.anchor, dataclasses.replace
    assert anchor is not None  # a GradientSearch has one
    training = inner.restart(plan.problem, hparams, first.inner_state.inner)
    state = moved(
        first,
        hparams=hparams,
        best=moved(first.best, hparams=hparams),
        anchor=moved(anchor, hparams=hparams),
        inner_state=moved(first.inner_state, inner=training),
    )
    return packing.pack(state), jax.random.fold_in(plan.key, number)


def winner_of(race: list[Rival], gradients: float, callback: Callable[[SearchState, History], Any] | None) -> Rival:
    """Returns the start that is left once the worse half has given up, again and again, for so many gradients."""
    alive, rounds, limit = race, math.ceil(math.log2(len(race))), 0
    for _ in range(rounds):
        limit += max(int(gradients / rounds / len(alive)), 1)
        for rival in alive:
            rival.go_on(limit, callback)
        alive = sorted(alive, key=lambda rival: rival.loss)[: math.ceil(len(alive) / 2)]
    return alive[0]


def warn_if_worse(first: Course, loss: float) -> None:
    """Warns where a loss is above that of the model from which all starts began; `first` is a course before a step."""
    given = float(_untrained(first.plan, first.state))
    if loss > given:
        warnings.warn(
            f"the best loss, {loss:.4g}, is above that of the params given, {given:.4g}: no start came below "
            "it; give a smaller learning rate where training diverges",
            RuntimeWarning,
            stacklevel=4,
        )


@eqx.filter_jit
def _untrained(plan: Plan, first: SearchState) -> Array:
    """Returns the loss that chooses, of the model of a state."""
    problem, key = plan.problem, plan.key
    if problem.holdout is not None:
        return loss_on_holdout(problem.holdout, first.model, first.hparams, key)
    return outer_value(reading_all(problem), first.model, first.hparams, key)
