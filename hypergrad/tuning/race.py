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
from ..ground.tree import PartitionedModel
from ..history import History
from ..inner import AbstractInnerSolver
from ..pace import Pace
from ..plan import Plan
from ..problem import BilevelProblem, inner_objective, outer_value, reading_all
from ..run import follow, keep_at
from ..search.base import SearchState
from ..search.gradient import GradientSearch
from ..search.holdout import loss_on_holdout

CHUNK = 10  # hyper-steps per compiled call
GROWTH = 100.0  # of the adjoint, from which a shorter horizon is taken
EVERY = 30.0  # seconds between two saves
LOOK, RUIN = 20, 5  # moves between two looks whether a start is ruined, and the last of them, which say so
LEFT = 0.1  # of what training had gained on a loss, below which it is lost


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


class Losses(NamedTuple):
    """The loss that chooses, and the inner one, of a model and its hyperparameters."""

    outer: Array | float
    inner: Array | float


@dataclasses.dataclass
class Rival:
    """One start of the race, and its course so far."""

    name: str
    course: Course

    @property
    def loss(self) -> float:
        """The loss by which starts are compared, infinite where nothing was finite."""
        return float(self.course.entry(lambda state: state.best.value))

    def is_ruined(self, untrained: Losses) -> bool:
        """Returns whether the last moves have lost nearly all that training had gained, on the training data too.

        Where the outer loss alone is lost, the model overfits. Judged at every `LOOK` moves alone, so that an
        interrupted call goes on as a whole one.
        """
        course = self.course
        if not course.num_steps or course.num_steps % LOOK or not all(map(math.isfinite, untrained)):
            return False
        is_kept = lambda now, first, best: now < first - LEFT * (first - best)
        history, state = course.history, course.state
        losses = np.asarray(history.stats.diagnostics.get("holdout", history.value), float)
        if np.any(is_kept(losses[-RUIN:], untrained.outer, np.fmin.reduce(losses))):
            return False
        now = losses_of(course.plan, state.inner_state.inner.partitioned, state.hparams)
        then = losses_of(course.plan, state.best.partitioned, state.best.hparams)
        return not is_kept(now.inner, untrained.inner, then.inner)

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


def finish(
    race: list[Rival],
    winner: Rival,
    choice: Choice,
    untrained: Losses,
    total: int,
    callback: Callable[[SearchState, History], Any] | None,
) -> list[Rival]:
    """Returns the starts that went on after the race, in their order, the last of them to the end of the budget.

    One that is ruined gives way to the next best, so that no budget is spent on weights that no hypergradient brings
    back. Whether it is so is looked at after every `LOOK` moves. What a call that was interrupted had ruined is first.
    """
    stopped = False
    order = sorted(race, key=lambda rival: (not rival.is_ruined(untrained), rival is not winner, rival.loss))

    def watch(state: SearchState, history: History) -> bool:
        nonlocal stopped
        assert callback is not None  # it is not watched else
        stopped = bool(callback(state, history))
        return stopped

    for number, rival in enumerate(order):
        course, more = rival.course, number + 1 < len(order)
        others = choice.spent + sum(other.course.gradients for other in race if other is not rival)
        limit = total - others - choice.cost + 1  # one more hyper-step fits
        ruined = more and rival.is_ruined(untrained)
        while course.gradients < limit and not (stopped or ruined):
            before, moves = course.num_steps, LOOK - course.num_steps % LOOK
            leg = min(limit, course.gradients + moves * choice.cost) if more else limit
            rival.go_on(leg, None if callback is None else watch)
            stopped = stopped or course.num_steps == before  # patience is at its end
            ruined = more and rival.is_ruined(untrained)
        if stopped or not ruined:
            return order[: number + 1]
    return order


def warn_if_worse(untrained: Losses, loss: float) -> None:
    """Warns where a loss is above that of the model from which all starts began."""
    if loss > untrained.outer:
        warnings.warn(
            f"the best loss, {loss:.4g}, is above that of the params given, {untrained.outer:.4g}: no start came below "
            "it; give a smaller learning rate where training diverges",
            RuntimeWarning,
            stacklevel=4,
        )


def losses_of(plan: Plan, partitioned: PartitionedModel, hparams: PyTree) -> Losses:
    """Returns the losses of a model, as numbers."""
    return Losses(*map(float, _losses(plan, partitioned, hparams)))


@eqx.filter_jit
def _losses(plan: Plan, partitioned: PartitionedModel, hparams: PyTree) -> Losses:
    problem, key, model = plan.problem, plan.key, partitioned.model
    inner = inner_objective(problem, partitioned, key)(partitioned.arrays, hparams)
    if problem.holdout is not None:
        return Losses(loss_on_holdout(problem.holdout, model, hparams, key), inner)
    return Losses(outer_value(reading_all(problem), model, hparams, key), inner)
