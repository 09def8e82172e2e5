"""The course of a run, one compiled call for each chunk of steps."""

import dataclasses
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .budget import Budget
from .data.sampler import as_sampler
from .data.stream import Stream
from .ground.total import Total
from .history import History, join
from .problem import BilevelProblem
from .search.base import AbstractSearch, Record, SearchState

Columns = tuple[PyTree, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class Plan(eqx.Module):
    """The arguments of `run` that its compiled program depends on."""

    search: AbstractSearch
    problem: BilevelProblem
    key: Array
    keep: Callable[[Record], PyTree]
    chunk: int
    count: str | None  # the count that the budget bounds
    streams: bool = False  # True if the training data are a `Stretch`
    patience: Array | None = None  # steps without a better one on the holdout before the run stops

    def has_patience(self, state: SearchState) -> Any:
        """Returns whether a better step may still come."""
        return True if self.patience is None or state.stale is None else state.stale < self.patience


@dataclasses.dataclass
class Course:
    """The state that a run has come to, and the columns of its history chunk by chunk."""

    plan: Plan
    state: SearchState
    chunks: list[Columns] = dataclasses.field(default_factory=list)
    stream: Stream | None = None

    def walk(self, budget: Budget, started: float) -> Iterator[tuple[SearchState, np.ndarray, np.ndarray]]:
        """Moves chunk by chunk until budget or stream is at its end; yields of each the state before and all statuses.

        The last array says which values are finite.
        """
        # An array, so that one compilation serves every amount.
        limit = Total.of(budget.limit(self.num_rows))
        while not self.is_over(budget, started):
            before, begun = self.state, time.monotonic()
            plan, room = self._fed(before)
            if not room:
                return
            state, *steps = _advance(plan, before, limit, before.num_steps + jnp.int32(room))
            number = int(state.num_steps - before.num_steps)
            records, spent, status, finite = jax.tree.map(lambda room: np.asarray(room)[:number], steps)  # noqa: B023
            durations = np.full(number, (time.monotonic() - begun) / max(number, 1))
            iterations, gradients, rows = map(np.asarray, spent)
            epochs = rows / (self.num_rows if self.stream is None else np.nan)
            columns = records, iterations, gradients, epochs, durations
            if self.stream is not None:
                self.stream.used(number)
            self.state = state  # no interrupt comes between this and the next: state and records belong together
            self.chunks.append(columns)
            yield before, status, finite

    def _fed(self, state: SearchState) -> tuple[Plan, int]:
        """Returns the plan with the training data of the next steps, and the number of steps that they last."""
        if self.stream is None:
            return self.plan, self.plan.chunk
        stretch, room = self.stream.next(state.num_steps)
        if not room:
            read, spent = self.stream.position.batches, int(state.spent.iterations)
            text = f"the stream ended after {read} batches, before the budget was spent (iterations: {spent})"
            warnings.warn(text, RuntimeWarning, stacklevel=4)
        return eqx.tree_at(lambda plan: plan.problem.train, self.plan, stretch), room

    def notes(self) -> dict[str, Any]:
        """Returns the part of a checkpoint that is not the state."""
        return {} if self.stream is None else {"stream": self.stream.position.to_json()}

    def resume(self, state: SearchState, notes: dict[str, Any]) -> None:
        """Goes on from a checkpoint, with its state and its notes."""
        self.state = state
        if self.stream is not None and "stream" in notes:
            self.stream.restore(notes["stream"])

    def close(self) -> None:
        """Ends the thread of the stream."""
        if self.stream is not None:
            self.stream.close()

    @property
    def num_rows(self) -> int:
        """The training rows in an epoch."""
        return as_sampler(self.plan.problem.train).num_rows

    def is_over(self, budget: Budget, started: float) -> bool:
        """Returns whether the budget is spent, or patience exhausted."""
        return budget.is_spent(self.state.spent, started, self.num_rows) or not self.plan.has_patience(self.state)

    @property
    def nothing(self) -> Columns:
        """The columns of no steps."""
        shapes = eqx.filter_eval_shape(_step, self.plan, self.state)[1]
        records = jax.tree.map(lambda leaf: np.zeros((0, *leaf.shape), leaf.dtype), shapes)
        return records, np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros(0)

    @property
    def history(self) -> History:
        """The history so far."""
        return join([History(*columns) for columns in self.chunks or [self.nothing]])


@eqx.filter_jit
def _advance(plan: Plan, state: SearchState, limit: Total, until: Array) -> Any:
    """Does the steps up to number `until`, at most `plan.chunk`, while something of the budget is left.

    Returns the state and, with room for a chunk, what was kept of each step, what was spent after it, its status and
    whether its value is finite.
    """

    def unfinished(carry: Any) -> Array:
        state, *_ = carry
        left = True if plan.count is None else getattr(state.spent, plan.count) < limit
        return left & (state.num_steps < until) & plan.has_patience(state)

    def body(carry: Any) -> Any:
        state, rooms, index = carry
        state, *step = _step(plan, state)
        return state, jax.tree.map(lambda room, leaf: room.at[index].set(leaf), rooms, step), index + 1

    _, *shapes = eqx.filter_eval_shape(_step, plan, state)
    rooms = jax.tree.map(lambda leaf: jnp.zeros((plan.chunk, *leaf.shape), leaf.dtype), shapes)
    # A loop of a length that the compiler does not know: one it unrolls would round otherwise than a longer one.
    state, rooms, _ = jax.lax.while_loop(unfinished, body, (state, rooms, jnp.int32(0)))
    return state, *rooms


def _step(plan: Plan, state: SearchState) -> Any:
    problem = plan.problem
    if plan.streams:
        problem = eqx.tree_at(lambda p: p.train, problem, problem.train.at(state.num_steps))
    state, record = plan.search.step(problem, state, jax.random.fold_in(plan.key, state.num_steps))
    # Not the value itself: XLA could compute it twice, rounded otherwise in a longer room than in a shorter one.
    finite = jnp.isfinite(record.value)
    spent = state.spent.iterations, state.spent.gradients, state.spent.rows
    return state, plan.keep(record), spent, record.stats.status, finite
