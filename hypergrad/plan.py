"""The program of a run: some steps of a search, and what is kept of each, in one compiled call."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .ground.program import Records
from .ground.total import WORD, Total
from .problem import BilevelProblem
from .search.base import AbstractSearch, Record, SearchState
from .stats import Counts

COUNTS = ("iterations", "gradients", "rows")  # of all that was spent, those that a step reports
Keep = Callable[[Record], PyTree]


def everything(record: Record) -> Record:
    """Keeps the whole record."""
    return record


def _as_array(patience: int | Array | None) -> Array | None:
    """Returns the number as an array, so that one compilation serves every patience."""
    return None if patience is None else jnp.asarray(patience, jnp.int32)


class Plan(eqx.Module):
    """The part of a run that its compiled program depends on; `begin` sets the room, the count and the stream."""

    search: AbstractSearch
    problem: BilevelProblem
    key: Array
    keep: Keep = eqx.field(default=everything)
    room: int = 1  # steps of one call
    count: str | None = None  # the count that the budget bounds
    streams: bool = False  # True if the training data are a `Stretch`
    patience: int | Array | None = eqx.field(converter=_as_array, default=None)  # steps without a better one on holdout
    outside: str = eqx.field(static=True, default="")  # a checksum of what `keep` reads there

    def has_patience(self, state: SearchState) -> Any:
        """Returns whether a better step may still come."""
        return True if self.patience is None or state.stale is None else state.stale < self.patience

    def step(self, state: SearchState) -> Any:
        """Returns the next state, what is kept of the step, and the numbers by which the run goes on."""
        problem = self.problem
        if self.streams:
            problem = eqx.tree_at(lambda p: p.train, problem, problem.train.at(state.num_steps))
        state, record = self.search.step(problem, state, jax.random.fold_in(self.key, state.num_steps))
        # Not the value itself: XLA could compute it twice, rounded otherwise in a longer room than in a shorter one.
        finite = jnp.isfinite(record.value).astype(jnp.int32)  # which travels with the other numbers
        return state, self.keep(record), words_of(state.spent), record.stats.status, finite


def advance(plan: Plan, state: SearchState, limit: Total, take: Array) -> Any:
    """Does at most `take` steps, of which there is room for `plan.room`, while something of the budget is left.

    Returns the state, with room for as many what was kept of each step, what was spent after it, its status and whether
    its value is finite, and the number of steps done.
    """

    def unfinished(carry: Any) -> Array:
        state, _, index = carry
        left = True if plan.count is None else getattr(state.spent, plan.count) < limit
        return left & (index < take) & plan.has_patience(state)

    def body(carry: Any) -> Any:
        state, tables, index = carry
        state, *step = plan.step(state)
        return state, records._replace(tables=tables).written(index, step), index + 1

    _, *shapes = eqx.filter_eval_shape(Plan.step, plan, state)
    records = Records.of(shapes, plan.room)
    # A loop of a length that the compiler does not know: one it unrolls would round otherwise than a longer one.
    state, tables, index = jax.lax.while_loop(unfinished, body, (state, records.tables, jnp.int32(0)))
    return state, records._replace(tables=tables), index


def words_of(spent: Counts) -> Array:
    """Returns the counts of `COUNTS`, two words each."""
    totals = [getattr(spent, name) for name in COUNTS]
    return jnp.stack([word for total in totals for word in (total.high, total.low)])


def totals_of(words: np.ndarray) -> np.ndarray:
    """Returns the counts of `COUNTS`, of shape (steps, 3), from their two words each."""
    high, low = words.astype(np.int64).reshape(-1, len(COUNTS), 2).transpose(2, 0, 1)
    return high * WORD + low
