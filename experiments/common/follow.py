"""A search, observed on the way."""

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from jaxtyping import Array

import hypergrad as hg

from .cells import Advance


class Steps(NamedTuple):
    """Hyper-steps of a search, training steps per hyper-step, and about how many measurements on the way."""

    hyper: int
    inner: int
    measurements: int


def value_of(record: hg.Record) -> Array:
    """Returns what a history keeps of a step: one function, because `run` compiles anew for another."""
    return record.value


def follow(
    search: hg.GradientSearch,
    problem: hg.BilevelProblem,
    state: hg.SearchState,
    key: Array,
    steps: Steps,
    advance: Advance,
) -> Iterator[tuple[hg.SearchState, dict[str, Any]]]:
    """Yields the state after every few hyper-steps, with a line of the history.

    The line has the hyper-steps taken, the outer loss that the last of them measured, and the seconds since the start.
    """
    started, chunk = time.monotonic(), max(1, steps.hyper // steps.measurements)
    for first in range(0, steps.hyper, chunk):
        budget = steps.inner * min(first + chunk, steps.hyper)
        state, history = hg.run(search, problem, state, key=key, budget=budget, chunk=chunk, keep=value_of)
        line = {"hyper_steps": int(state.num_steps), "outer_loss": float(history[-1])}
        yield state, line | {"seconds": round(time.monotonic() - started, 2)}
        advance(int(state.num_steps) / steps.hyper)
