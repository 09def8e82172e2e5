"""The course of a run, one compiled call for each chunk of steps."""

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
from .ground.program import Program
from .ground.total import WORD, Total
from .history import History, join
from .problem import BilevelProblem
from .search.base import AbstractSearch, Record, SearchState

Columns = tuple[PyTree, np.ndarray, np.ndarray, np.ndarray, np.ndarray]
Tables = list[np.ndarray]
COUNTS = ("iterations", "gradients", "rows")  # of all that was spent, those that a step reports


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


class Course:
    """The state that a run has come to, and the columns of its history, in `chunks` once they are gathered."""

    def __init__(self, plan: Plan, state: SearchState, stream: Stream | None = None):
        self.plan, self.stream, self.chunks = plan, stream, list[Columns]()
        self.num_rows = as_sampler(plan.problem.train).num_rows  # in an epoch
        self.program, self._tables, self._durations = Program(_advance, plan, state), list[Tables](), list[float]()
        self._take(state)

    def _take(self, state: SearchState) -> None:
        self._leaves = jax.tree.leaves(state)
        self._state: SearchState | None = state
        self._spent = [int(getattr(state.spent, name)) for name in COUNTS]
        self.num_steps = int(state.num_steps)

    @property
    def state(self) -> SearchState:
        """The state, put together when it is asked for."""
        if self._state is None:
            self._state = jax.tree.unflatten(self.program.state_structure, self._leaves)
        return self._state

    def walk(self, budget: Budget, started: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Moves chunk by chunk until budget or stream is at its end; yields the statuses of each chunk.

        The second array says which values are finite.
        """
        # An array, so that one compilation serves every amount.
        limit = Total.of(budget.limit(self.num_rows))
        is_over = self._end(budget, started)
        while not is_over():
            begun = time.monotonic()
            if not (room := self._fed()):
                return
            leaves, tables = self.program(self._leaves, limit, self.num_steps + room)
            spent, status, finite = self.program.layout.last(tables, 3)
            number = len(status)
            now = _totals(spent[-1:])[0].tolist() if number else self._spent
            taken = (time.monotonic() - begun) / max(number, 1)
            if self.stream is not None:
                self.stream.used(number)
            # no interrupt comes between these: state and records belong together
            self._leaves, self._state, self._spent = leaves, None, now
            self.num_steps += number
            self._tables.append(tables)
            self._durations += [taken] * number
            yield status, finite

    def gather(self) -> None:
        """Puts the records of the last chunks into `chunks`."""
        if not self._tables:
            return
        whole = [np.concatenate(tables) for tables in zip(*self._tables, strict=True)]
        records, spent, _, _ = self.program.layout.unpack(whole)
        iterations, gradients, rows = _totals(spent).T.copy()
        epochs = rows / (self.num_rows if self.stream is None else np.nan)
        columns = records, iterations, gradients, epochs, np.array(self._durations)
        self._tables, self._durations = [], []
        self.chunks.append(columns)

    def _fed(self) -> int:
        """Takes the training data of the next steps, and returns the number of steps that they last."""
        if self.stream is None:
            return self.plan.chunk
        stretch, room = self.stream.next(self.state.num_steps)
        if not room:
            read, spent = self.stream.position.batches, self._spent[0]
            text = f"the stream ended after {read} batches, before the budget was spent (iterations: {spent})"
            warnings.warn(text, RuntimeWarning, stacklevel=4)
        self.program.replace(eqx.tree_at(lambda plan: plan.problem.train, self.plan, stretch))
        return room

    @property
    def latest(self) -> History:
        """The history of the last chunk, or of all steps that were not gathered before."""
        self.gather()
        return History(*self.chunks[-1])

    def notes(self) -> dict[str, Any]:
        """Returns the part of a checkpoint that is not the state."""
        return {} if self.stream is None else {"stream": self.stream.position.to_json()}

    def resume(self, state: SearchState, notes: dict[str, Any]) -> None:
        """Goes on from a checkpoint, with its state and its notes."""
        self._take(state)
        if self.stream is not None and "stream" in notes:
            self.stream.restore(notes["stream"])

    def close(self) -> None:
        """Ends the thread of the stream."""
        if self.stream is not None:
            self.stream.close()

    def used(self, budget: Budget, started: float) -> float:
        """Returns how much of the budget is used."""
        return budget.used(dict(zip(COUNTS, self._spent, strict=True)), started, self.num_rows)

    def is_over(self, budget: Budget, started: float) -> bool:
        """Returns whether the budget is spent, or patience exhausted."""
        return self._end(budget, started)()

    def _end(self, budget: Budget, started: float) -> Callable[[], bool]:
        """Returns `is_over` as a function that takes little time."""
        limit, amount = budget.limit(self.num_rows), budget.amount
        index = None if budget.count is None else COUNTS.index(budget.count)
        patient = self.plan.patience is not None

        def is_over() -> bool:
            spent = time.monotonic() - started >= amount if index is None else self._spent[index] >= limit
            return spent or (patient and not self.plan.has_patience(self.state))

        return is_over

    @property
    def nothing(self) -> Columns:
        """The columns of no steps."""
        shapes = eqx.filter_eval_shape(_step, self.plan, self.state)[1]
        records = jax.tree.map(lambda leaf: np.zeros((0, *leaf.shape), leaf.dtype), shapes)
        return records, np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros(0)

    @property
    def history(self) -> History:
        """The history so far."""
        self.gather()
        return join([History(*columns) for columns in self.chunks or [self.nothing]])


def _advance(plan: Plan, state: SearchState, limit: Total, until: Array) -> Any:
    """Does the steps up to number `until`, at most `plan.chunk`, while something of the budget is left.

    Returns the state, with room for a chunk what was kept of each step, what was spent after it, its status and whether
    its value is finite, and the number of steps done.
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
    state, rooms, index = jax.lax.while_loop(unfinished, body, (state, rooms, jnp.int32(0)))
    return state, rooms, index


def _step(plan: Plan, state: SearchState) -> Any:
    problem = plan.problem
    if plan.streams:
        problem = eqx.tree_at(lambda p: p.train, problem, problem.train.at(state.num_steps))
    state, record = plan.search.step(problem, state, jax.random.fold_in(plan.key, state.num_steps))
    # Not the value itself: XLA could compute it twice, rounded otherwise in a longer room than in a shorter one.
    finite = jnp.isfinite(record.value)
    totals = [getattr(state.spent, name) for name in COUNTS]
    spent = jnp.stack([word for total in totals for word in (total.high, total.low)])
    return state, plan.keep(record), spent, record.stats.status, finite


def _totals(words: np.ndarray) -> np.ndarray:
    """Returns the counts of `COUNTS`, of shape (steps, 3), from their two words each."""
    high, low = words.astype(np.int64).reshape(-1, len(COUNTS), 2).transpose(2, 0, 1)
    return high * WORD + low
