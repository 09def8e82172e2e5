"""The starts that race, the course of each, and the search that all of them take."""

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import optax
from jaxtyping import PyTree

from ..begin import begin
from ..budget import Budget
from ..course import Course
from ..estimators.reverse import Reverse
from ..failures import NotFiniteError
from ..ground.tree import distinct
from ..history import History
from ..inner import AbstractInnerSolver, InnerState
from ..problem import BilevelProblem
from ..run import follow, run
from ..search.base import SearchState
from ..search.gradient import GradientSearch

CHUNK = 10  # hyper-steps per compiled call
REACH = 20  # horizons between two moves of λ: a differentiated update costs two gradients, and three updates in time
GROWTH = 100.0  # of the adjoint, from which a shorter horizon is taken


@dataclasses.dataclass
class Rival:
    """One start of the race, and its course so far."""

    name: str
    first: SearchState
    course: Course | None = None
    example: BilevelProblem | None = None  # of the course, see `begin`
    resumed: tuple[SearchState, History] | None = None  # in place of a course, from a checkpoint

    @property
    def state(self) -> SearchState:
        """The latest state."""
        if self.course is not None:
            return self.course.state
        return self.first if self.resumed is None else self.resumed[0]

    @property
    def history(self) -> History | None:
        """The history so far."""
        if self.course is not None:
            return self.course.history
        return None if self.resumed is None else self.resumed[1]

    @property
    def loss(self) -> float:
        """The loss by which starts are compared, infinite where nothing was finite."""
        best = lambda state: state.best.value
        return float(best(self.state) if self.course is None else self.course.entry(best))

    @property
    def gradients(self) -> int:
        """Gradient equivalents spent."""
        return int(self.state.spent.gradients) if self.course is None else self.course.gradients

    def go_on(self, search: GradientSearch, problem: BilevelProblem, options: dict[str, Any]) -> None:
        """Trains and moves λ up to a budget. A start that fails stays where it is, with its loss."""
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".* has no finite result", RuntimeWarning)
                if options["checkpoint"] is not None:
                    self.resumed = run(search, problem, self.first, chunk=CHUNK, **options)
                else:
                    self._go_on(search, problem, **{name: options[name] for name in options if name != "checkpoint"})
        except NotFiniteError as error:
            if self.course is None:
                assert error.state is not None and error.history is not None  # run gives both
                self.resumed = error.state, error.history

    def _go_on(
        self, search: GradientSearch, problem: BilevelProblem, budget: Budget, callback: Any, **own: Any
    ) -> None:
        if self.course is None:
            more: dict[str, Any] = {"budget": budget, "chunk": CHUNK, "watched": callback is not None}
            self.course, self.example = begin(search, problem, self.first, **more, **own)
        assert self.example is not None  # set with the course
        follow(self.course, self.example, budget, callback=callback)


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
        assert isinstance(estimator, Reverse)  # `choose` has made it
        return estimator


def choose(
    inner: AbstractInnerSolver,
    optimiser: optax.GradientTransformation,
    projection: Callable[[PyTree], PyTree],
    problem: BilevelProblem,
    params: PyTree,
    hparams: PyTree,
    options: dict[str, Any],
) -> Choice:
    """Returns the search with the longest horizon over which the adjoint keeps its size.

    Horizons are K/20 and the halves of it. One step is taken where none is better. A trial is a hyper-step, by the
    program of the race, so that this is compiled once.
    """

    def make(horizon: int) -> GradientSearch:
        estimator = Reverse(inner, horizon=horizon, warm_start=True, check=None)
        return GradientSearch(estimator, optimiser, projection=projection)

    # A program that is watched differs from one that is not.
    watched = None if options["callback"] is None else lambda *_: False
    trial_options = options | {"budget": Budget(gradients=1), "callback": watched, "checkpoint": None}
    horizon, spent = max(inner.num_steps // REACH, 1), 0
    first = make(horizon).init(problem, params, hparams)  # the same for every horizon
    while True:
        search, trial = make(horizon), Rival("a trial", first)
        trial.go_on(search, problem, trial_options)
        assert trial.history is not None  # go_on sets it
        growth, cost = float(trial.history.stats.diagnostics["growth"][0]), trial.gradients
        spent += cost
        if growth <= GROWTH or horizon == 1:
            return Choice(search, first, growth, cost, spent)
        horizon //= 2


def line_up(choice: Choice, problem: BilevelProblem, starts: Sequence[tuple[str, PyTree]]) -> list[Rival]:
    """Returns the starts before the race. The problem was checked, and traced, for the first of them alone."""
    first, inner = choice.first, choice.estimator.inner
    assert first.anchor is not None  # a GradientSearch has one

    def at(hparams: PyTree) -> SearchState:
        training = _restarted(inner, problem, hparams, first.inner_state.inner)
        moved = lambda part, **changes: dataclasses.replace(part, **changes)
        best, anchor = (moved(part, hparams=hparams) for part in (first.best, first.anchor))
        inner_state = moved(first.inner_state, inner=training)
        return distinct(moved(first, hparams=hparams, best=best, anchor=anchor, inner_state=inner_state))

    return [Rival(name, at(hparams)) for name, hparams in starts]


@eqx.filter_jit
def _restarted(inner: AbstractInnerSolver, problem: BilevelProblem, hparams: PyTree, state: InnerState) -> InnerState:
    return inner.restart(problem, hparams, state)  # traced once for all starts
