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
from .course import Course
from .data.stream import Stream
from .ground.checks import refuse_traced
from .ground.identity import refuse_different
from .ground.placement import refuse_explicit
from .ground.shapes import remembered, shapes_of
from .pace import Pace
from .plan import Plan
from .search.base import SearchState
from .search.holdout import with_holdout


def begin(
    plan: Plan,
    state: SearchState,
    budget: Budget,
    pace: Pace,
    *,
    holdout: PyTree | Callable[[PyTree], Array] | None = None,
    stream: Iterable[PyTree] | None = None,
) -> Course:
    """Returns the course of a plan before its first step. Later budgets have the unit of this one.

    The plan has the search, the problem and the options of a user; `holdout` and `stream` are those of `run`.
    **Raises**, naming the argument of `run`, where the arguments do not fit each other.
    """
    plan, state = _with_holdout(plan, state, holdout)
    example = plan.problem
    plan, feed = _with_stream(plan, state, stream, pace, budget)
    pace = _checked_pace(plan, state, pace)
    plan = dataclasses.replace(plan, room=pace.room, count=budget.count)
    return Course(plan, dataclasses.replace(state, spent=state.spent.totals), pace, example, feed)


def _with_holdout(plan: Plan, state: SearchState, holdout: Any) -> tuple[Plan, SearchState]:
    """Returns the plan whose problem has the holdout, and the state as a run with it carries it.

    **Raises** what `with_holdout` raises, and `ValueError` naming the argument that has no meaning without a holdout.
    """
    if holdout is None:
        if plan.patience is not None:
            raise ValueError("patience counts steps without a better one on holdout, which is not given")
        if state.stale is not None:
            raise ValueError("the best of state was chosen on a holdout; give holdout again")
        return plan, state
    problem = with_holdout(plan.problem, holdout, state.best.params, state.best.hparams)
    return dataclasses.replace(plan, problem=problem), state if state.stale is not None else state.chosen_anew


def _with_stream(plan: Plan, state: SearchState, stream: Any, pace: Pace, budget: Budget) -> tuple[Plan, Stream | None]:
    """Returns the plan whose training data are a stretch of the stream, and the stream.

    **Raises** `TypeError` or `ValueError` naming the argument with which they cannot be.
    """
    if stream is None:
        return plan, None
    if budget.unit == "epochs":
        raise ValueError("budget must be in iterations, gradients or seconds: a stream does not tell its rows")
    feed = Stream(stream, plan.problem.train, plan.search.num_inner_steps, pace.chunk or 1)
    problem = eqx.tree_at(lambda p: p.train, plan.problem, feed.probe())
    try:
        eqx.filter_eval_shape(plan.search.init, problem, state.best.params, state.hparams)
    except Exception as error:
        raise ValueError(f"search cannot train on a stream: {error}") from error
    return dataclasses.replace(plan, problem=problem, streams=True), feed


def _checked_pace(plan: Plan, state: SearchState, pace: Pace) -> Pace:
    """Returns the pace for records of this plan.

    **Raises**, naming the argument, unless a step takes `state`, returns one like it, and the records of a chunk have
    room.
    """
    refuse_traced("search.step in a loop", problem=plan.problem, state=state, key=plan.key)
    refuse_explicit(problem=plan.problem, state=state)
    size = remembered(_record_bytes, plan, state)
    refuse_too_large(size * (pace.chunk or 1), "chunk", f"the records of {pace.chunk} steps")
    return dataclasses.replace(pace, record_bytes=size)


def _record_bytes(plan: Plan, state: SearchState) -> int:
    """Returns the size of what is kept of a step. **Raises**, naming the argument, unless a step fits `state`."""
    try:
        after, record = shapes_of(plan.search.step, plan.problem, state, plan.key)
    except Exception as error:
        raise ValueError(f"state does not fit search and problem, for which a step fails: {error}") from error
    refuse_different("state", after, state, "one of this search on this problem")
    try:
        kept = jax.tree.leaves(shapes_of(plan.keep, record))
        if any(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in kept):
            raise TypeError("a history holds no random keys, but their jax.random.key_data")
        return sum(leaf.size * leaf.dtype.itemsize for leaf in kept)
    except Exception as error:  # also of what keeps no arrays
        raise ValueError(f"keep fails on the record of a step: {error}") from error
