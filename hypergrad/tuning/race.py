"""The starts that race, and the course of each."""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

import equinox as eqx
from jaxtyping import PyTree

from ..failures import NotFiniteError
from ..ground.tree import distinct
from ..history import History
from ..inner import AbstractInnerSolver
from ..problem import BilevelProblem
from ..run import run
from ..search.base import SearchState
from ..search.gradient import GradientSearch

CHUNK = 10  # hyper-steps per compiled call


@dataclasses.dataclass
class Rival:
    """One start of the race, and its course so far."""

    name: str
    first: SearchState
    latest: SearchState | None = None
    history: History | None = None

    @property
    def state(self) -> SearchState:
        """The latest state."""
        return self.first if self.latest is None else self.latest

    @property
    def loss(self) -> float:
        """The loss by which starts are compared, infinite where nothing was finite."""
        return float(self.state.best.value)

    @property
    def gradients(self) -> int:
        """Gradient equivalents spent."""
        return int(self.state.spent.gradients)

    def go_on(self, search: GradientSearch, problem: BilevelProblem, options: dict[str, Any]) -> None:
        """Trains and moves λ up to a budget. A start that fails stays where it is, with its loss."""
        stored = options["checkpoint"] is not None
        begin = self.first if stored else self.state
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".* has no finite result", RuntimeWarning)
                self.latest, history = run(search, problem, begin, chunk=CHUNK, **options)
        except NotFiniteError as error:
            assert error.state is not None and error.history is not None  # run gives both
            self.latest, history = error.state, error.history
        self.history = history if stored or self.history is None else self.history + history


def line_up(
    search: GradientSearch,
    inner: AbstractInnerSolver,
    problem: BilevelProblem,
    params: PyTree,
    starts: Sequence[tuple[str, PyTree]],
) -> list[Rival]:
    """Returns the starts before the race. The problem is checked, and traced, for the first of them alone."""
    first = search.init(problem, params, starts[0][1])
    assert first.anchor is not None  # a GradientSearch has one
    where = lambda s: (s.hparams, s.best.hparams, s.anchor.hparams, s.inner_state.inner)

    def at(hparams: PyTree) -> SearchState:
        training = inner.restart(problem, hparams, first.inner_state.inner)
        return distinct(eqx.tree_at(where, first, (hparams, hparams, hparams, training)))

    return [Rival(name, at(hparams)) for name, hparams in starts]
