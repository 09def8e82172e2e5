"""A search with its course on the way."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Array

import hypergrad as hg


def follow(
    search: hg.GradientSearch,
    problem: hg.BilevelProblem,
    state: hg.SearchState,
    *,
    key: Array,
    steps: int,
    inner_steps: int,
    looks: int,
    measure: Callable[[hg.SearchState], Mapping[str, Any]],
    advance: Callable[[int], Any],
) -> tuple[hg.SearchState, list[dict[str, Any]]]:
    """Take `steps` hyper-steps; the last state, and what `measure` says of it at about `looks` times on the way.

    Each line of the history has the hyper-steps taken, the seconds since the start and the outer loss that the last of
    these steps measured. `advance` is told the steps taken since.
    """
    history: list[dict[str, Any]] = []
    started = time.monotonic()

    def look(state, values):
        line = {"hyper_steps": int(state.num_steps), "outer_loss": float(values[-1]), **measure(state)}
        history.append(line | {"seconds": round(time.monotonic() - started, 2)})
        advance(len(values))

    budget = hg.Budget(iterations=steps * inner_steps)
    chunk = max(1, steps // looks)
    value = lambda record: record.value
    state, _ = hg.run(search, problem, state, key=key, budget=budget, chunk=chunk, callback=look, keep=value)
    return state, history
