"""The beginning of a run: its arguments checked together, and the course that they begin."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ensembles.ground.memory import refuse_too_large

from .budget import Budget
from .course import Course, Plan
from .data.stream import Stream
from .ground.checks import refuse_traced
from .ground.identity import refuse_different
from .ground.shapes import remembered, shapes_of
from .pace import Pace
from .problem import BilevelProblem
from .search.base import AbstractSearch, Record, SearchState
from .search.holdout import with_holdout

Keep = Callable[[Record], PyTree]


def everything(record: Record) -> Record:
    """Keeps the whole record."""
    return record


def begin(
    search: AbstractSearch,
    problem: BilevelProblem,
    state: SearchState,
    *,
    key: Array,
    budget: Budget,
    chunk: int | None = None,
    watched: bool = False,
    keep: Keep = everything,
    holdout: PyTree | Callable[[PyTree], Array] | None = None,
    patience: int | None = None,
    stream: Iterable[PyTree] | None = None,
) -> tuple[Course, BilevelProblem]:
    """Returns the course before its first step, and the problem with the holdout, and without the stream.

    The arguments are those of `run`; `watched`: somebody sees the state after every chunk. Later budgets have the unit
    of this one. **Raises**, naming the argument, where the arguments do not fit each other.
    """
    example, state = _with_holdout(problem, state, holdout, patience)
    problem, feed = _with_stream(search, example, state, stream, chunk or 1, budget)
    state, pace = _checked_state(search, problem, state, key, keep, chunk, watched)
    plan = Plan(search, problem, key, keep, pace.room, budget.count, stream is not None, _as_array(patience))
    return Course(plan, state, pace, stream=feed), example


def _with_holdout(
    problem: BilevelProblem, state: SearchState, holdout: Any, patience: int | None
) -> tuple[BilevelProblem, SearchState]:
    """Returns the problem with its holdout, and the state as a run with it carries it.

    **Raises** what `with_holdout` raises, and `ValueError` naming the argument that has no meaning without a holdout.
    """
    if holdout is None:
        if patience is not None:
            raise ValueError("patience counts steps without a better one on holdout, which is not given")
        if state.stale is not None:
            raise ValueError("the best of state was chosen on a holdout; give holdout again")
        return problem, state
    problem = with_holdout(problem, holdout, state.best.params, state.best.hparams)
    return problem, state if state.stale is not None else state.chosen_anew


def _as_array(patience: int | None) -> Array | None:
    """Returns the number as an array, so that one compilation serves every patience."""
    return None if patience is None else jnp.int32(patience)


def _with_stream(
    search: AbstractSearch, problem: BilevelProblem, state: SearchState, stream: Any, chunk: int, budget: Budget
) -> tuple[BilevelProblem, Stream | None]:
    """Returns the problem whose training data are a stretch of the stream, and the stream.

    **Raises** `TypeError` or `ValueError` naming the argument with which they cannot be.
    """
    if stream is None:
        return problem, None
    if budget.unit == "epochs":
        raise ValueError("budget must be in iterations, gradients or seconds: a stream does not tell its rows")
    feed = Stream(stream, problem.train, search.num_inner_steps, chunk)
    problem = eqx.tree_at(lambda p: p.train, problem, feed.probe())
    try:
        eqx.filter_eval_shape(search.init, problem, state.best.params, state.hparams)
    except Exception as error:
        raise ValueError(f"search cannot train on a stream: {error}") from error
    return problem, feed


def _checked_state(
    search: AbstractSearch,
    problem: BilevelProblem,
    state: SearchState,
    key: Array,
    keep: Keep,
    chunk: int | None,
    watched: bool,
) -> tuple[SearchState, Pace]:
    """Returns the state with its work in totals, and the pace of the run.

    **Raises**, naming the argument, unless a step takes `state`, returns one like it, and `chunk` records have room.
    """
    refuse_traced("search.step in a loop", problem=problem, state=state, key=key)
    size = remembered(_record_bytes, search, problem, state, key, keep)
    refuse_too_large(size * (chunk or 1), "chunk", f"the records of {chunk} steps")
    return dataclasses.replace(state, spent=state.spent.totals), Pace(chunk, watched, size)


def _record_bytes(search: AbstractSearch, problem: BilevelProblem, state: SearchState, key: Array, keep: Keep) -> int:
    """Returns the size of what is kept of a step. **Raises**, naming the argument, unless a step fits `state`."""
    try:
        after, record = shapes_of(search.step, problem, state, key)
    except Exception as error:
        raise ValueError(f"state does not fit search and problem, for which a step fails: {error}") from error
    refuse_different("state", after, state, "one of this search on this problem")
    try:
        kept = jax.tree.leaves(shapes_of(keep, record))
        if any(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in kept):
            raise TypeError("a history holds no random keys, but their jax.random.key_data")
        return sum(leaf.size * leaf.dtype.itemsize for leaf in kept)
    except Exception as error:  # also of what keeps no arrays
        raise ValueError(f"keep fails on the record of a step: {error}") from error
