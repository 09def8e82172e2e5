"""The course of a run, one compiled call for each chunk of steps."""

import copy
import dataclasses
import math
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
from .ground.autosave import Autosave
from .ground.program import Program
from .ground.total import Total
from .history import History, joined
from .pace import Pace
from .plan import COUNTS, Plan, advance, totals_of, words_of
from .problem import BilevelProblem
from .search.base import SearchState

Columns = tuple[PyTree, np.ndarray, np.ndarray, np.ndarray, np.ndarray]
Tables = list[np.ndarray]

_words_alone = jax.jit(words_of)


class Course:
    """The state that a run has come to, and the columns of its history, in `chunks` once they are gathered.

    Calls of the compiled program are sent ahead, as many as `pace` says, before the records of the first are read.
    `example` is the problem without its stream, and `saver` saves the course where that is asked for.
    """

    def __init__(
        self, plan: Plan, state: SearchState, pace: Pace, example: BilevelProblem, stream: Stream | None = None
    ):
        self.pace, self.example, self.stream = pace, example, stream
        self.num_rows = as_sampler(plan.problem.train).num_rows  # in an epoch
        state = _as_arrays(state)
        self.program = Program(advance, plan, state, packed=not pace.watched)
        self._begin(plan)
        self._take(state)

    def _begin(self, plan: Plan) -> None:
        self.plan = plan
        self.saver: Autosave | None = None
        self.chunks = list[Columns]()
        self._blocks, self._durations = list[Tables](), list[np.ndarray]()
        self.is_lost = False  # True once a call has failed to which the state was donated

    def anew(self, tables: list[Array], key: Array) -> "Course":
        """Returns a course of the same plan with another key, from the tables of another state with as much spent.

        Nothing is checked again. Nobody else may hold the tables of small arrays. There must be no stream.
        """
        plan, course = dataclasses.replace(self.plan, key=key), copy.copy(self)
        course.pace, course.program = copy.copy(self.pace), self.program.at(plan)
        course._state, course._tables, course._lent, course._sent = None, tables, True, []
        course._begin(plan)
        return course

    def _take(self, state: SearchState) -> None:
        self._state: SearchState | None = state
        self._tables, self._lent = self.program.pack(state), True
        self._sent = list[Any]()  # results of calls whose records are still on the device
        self._begun = time.monotonic()  # the first of these calls
        self._spent = totals_of(np.asarray(_words_alone(state.spent)))[0].tolist()
        self.num_steps = int(state.num_steps)

    @property
    def state(self) -> SearchState:
        """The state, put together when it is asked for."""
        self._read()
        if self._state is None:
            self._state, self._lent = self.program.unpack(self._tables), True
        return self._state

    def entry(self, choose: Callable[[SearchState], Any]) -> np.ndarray:
        """Returns one number of the state, such as `lambda state: state.best.value`, without the rest."""
        return self.program.entry(self._tables, choose)

    def walk(self, budget: Budget, started: float, most: Callable[[int], int]) -> Iterator[tuple[np.ndarray, ...]]:
        """Moves until budget or stream is at its end; yields the statuses of all steps since the last look.

        The second array says which values are finite. From step n on at most `most(n)` steps are taken at a time.
        """
        # An array, so that one compilation serves every amount.
        limit = Total.argument(budget.limit(self.num_rows))
        is_over, left = self._end(budget, started)
        while not is_over():
            self._begun = time.monotonic()
            for take in self.pace.takes(min(most(self.num_steps), left())):
                if not (room := self._fed(take)):
                    return
                self._send(limit, room)
            status, finite = self._read()
            self.pace.adapt(len(status), time.monotonic() - self._begun)
            if len(status):
                yield status, finite

    def _send(self, limit: Total, take: int) -> None:
        """Calls the program, and does not wait for it."""
        tables = self._sent[-1][0] if self._sent else self._tables
        if self.program.donates and self._lent:
            self._tables = tables = self.program.own(tables)
        self._state, self._lent = None, False
        try:
            self.program(tables, limit, take, self._sent)
        except Exception:
            self.is_lost = self.program.donates
            raise

    def _read(self) -> tuple[np.ndarray, np.ndarray]:
        """Waits for what was sent; returns the statuses of its steps, and which values are finite.

        **Raises** what a call raised. State and records are then those before it.
        """
        if not self._sent:
            return np.zeros(0, np.int32), np.zeros(0, bool)
        parts, tables, error = [], self._tables, None
        for after, records, number in self._sent:
            try:
                taken = np.asarray(number).item()  # a quarter of the time of int(number)
                parts.append([np.asarray(table)[:taken] for table in records])
            except Exception as raised:
                error, self.is_lost = raised, self.program.donates
                break
            tables = after
        if error is not None and not parts:
            self._sent = []
            raise error
        block = [np.concatenate(columns) for columns in zip(*parts, strict=True)]
        spent, status, finite = self.program.layout.last(block, 3)
        finite = finite.astype(bool)
        number = len(status)
        durations = np.full(number, (time.monotonic() - self._begun) / max(number, 1))
        now = totals_of(spent[-1:])[0].tolist() if number else self._spent
        if self.stream is not None:
            self.stream.used(number)
        # no interrupt comes between these: state and records belong together
        self._tables, self._sent, self._spent = tables, [], now
        self.num_steps += number
        self._blocks += [block]
        self._durations += [durations]
        if error is not None:
            raise error
        return status, finite

    def gather(self) -> None:
        """Puts the records since the last time into `chunks`."""
        self._read()
        if not self._blocks:
            return
        whole = [np.concatenate(tables) for tables in zip(*self._blocks, strict=True)]
        records, spent, _, _ = self.program.layout.unpack(whole)
        iterations, gradients, rows = totals_of(spent).T.copy()
        epochs = rows / (self.num_rows if self.stream is None else np.nan)
        columns = records, iterations, gradients, epochs, np.concatenate(self._durations)
        self._blocks, self._durations = [], []
        self.chunks.append(columns)

    def _fed(self, take: int) -> int:
        """Takes the training data of the next steps, and returns the number of steps that they last."""
        if self.stream is None:
            return take
        stretch, room = self.stream.next(jnp.int32(self.num_steps))
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
        self._take(_as_arrays(state))
        if self.stream is not None and "stream" in notes:
            self.stream.restore(notes["stream"])

    def close(self) -> None:
        """Ends the thread of the stream."""
        if self.stream is not None:
            self.stream.close()

    @property
    def gradients(self) -> int:
        """Gradient equivalents spent."""
        return self._spent[COUNTS.index("gradients")]

    def used(self, budget: Budget, started: float) -> float:
        """Returns how much of the budget is used."""
        return budget.used(dict(zip(COUNTS, self._spent, strict=True)), started, self.num_rows)

    def is_over(self, budget: Budget, started: float) -> bool:
        """Returns whether the budget is spent, or patience exhausted."""
        return self._end(budget, started)[0]()

    def _end(self, budget: Budget, started: float) -> tuple[Callable[[], bool], Callable[[], int]]:
        """Returns `is_over` as a function that takes little time, and the steps left if all are as the last were."""
        limit, amount = budget.limit(self.num_rows), budget.amount
        index = None if budget.count is None else COUNTS.index(budget.count)
        patience = None if self.plan.patience is None else int(self.plan.patience)
        first, spent_first = self.num_steps, list(self._spent)

        def is_over() -> bool:
            spent = time.monotonic() - started >= amount if index is None else self._spent[index] >= limit
            return spent or (patience is not None and int(self.entry(lambda state: state.stale)) >= patience)

        def left() -> int:
            if index is None or self.num_steps == first:
                return self.pace.most
            per_step = max((self._spent[index] - spent_first[index]) / (self.num_steps - first), 1e-9)
            return max(1, math.ceil(min((limit - self._spent[index]) / per_step, self.pace.most)))

        return is_over, left

    @property
    def nothing(self) -> Columns:
        """The columns of no steps."""
        shapes = eqx.filter_eval_shape(Plan.step, self.plan, self.state)[1]
        records = jax.tree.map(lambda leaf: np.zeros((0, *leaf.shape), leaf.dtype), shapes)
        return records, np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros(0)

    @property
    def history(self) -> History:
        """The history so far."""
        self.gather()
        return joined([History(*columns) for columns in self.chunks or [self.nothing]])


def _as_arrays(state: SearchState) -> SearchState:
    return jax.tree.map(lambda leaf: leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf), state)
