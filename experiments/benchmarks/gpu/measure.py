"""Wall time, energy and memory of calls on an accelerator."""

import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.stages import Compiled

import hypergrad as hg

from ..ensembles import energy_counter
from ..measure import seconds
from ..problems import Benchmark


class Program(NamedTuple):
    """A compiled call, with what it needs."""

    call: Callable
    compile_s: float
    temp_bytes: int
    planned_bytes: int


def compiled(function: Callable, *args: Any) -> Program:
    """Compiles for these arguments, with which the result is called."""
    started = time.perf_counter()
    program = jax.jit(function).lower(*args).compile()
    took = time.perf_counter() - started
    return Program(lambda: program(*args), round(took, 3), *planned(program))


def planned(program: Compiled) -> tuple[int, int]:
    """Returns the bytes of temporaries; and of temporaries, arguments and outputs together."""
    memory = program.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.temp_size_in_bytes, memory.temp_size_in_bytes + held


def compiled_estimator(case: Benchmark, estimator: hg.AbstractEstimator) -> Program:
    """Compiles one step of an estimator; data are arguments, as for the hand-written functions."""

    def step(hparams, state, train, valid, key):
        problem = hg.BilevelProblem(case.problem.inner_loss, case.problem.outer_loss, train, valid)
        return estimator.step(problem, hparams, state, key)[0]

    state = estimator.init(case.problem, case.params, case.hparams)
    return compiled(step, case.hparams, state, case.problem.train, case.problem.valid, jax.random.key(0))


def peak_bytes() -> int | None:
    """Returns the allocator's peak since the process began, None where it keeps no account."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


class Rounds:
    """Wall times of several calls, taken in turns."""

    def __init__(self, calls: Mapping[Hashable, Callable], rounds: int):
        self.times = interleaved(calls, rounds)

    def seconds(self, name: Hashable) -> float:
        """Returns the median time of a call."""
        return float(np.median(self.times[name]))

    def ratio(self, a: Hashable, b: Hashable) -> float:
        """Returns the median over rounds of the time of `a` over that of `b`."""
        return float(np.median(self.times[a] / self.times[b]))


def interleaved(calls: Mapping[Hashable, Callable], rounds: int) -> dict[Hashable, np.ndarray]:
    """Measures wall times, one number a round, every round in the same order; the first round warms up."""
    times = [[seconds(call, time.perf_counter) for call in calls.values()] for _ in range(rounds + 1)]
    return dict(zip(calls, np.array(times)[1:].T, strict=True))


def median_seconds(call: Callable, rounds: int) -> float:
    """Measures the median wall time, warmed up."""
    return Rounds({"": call}, rounds).seconds("")


def with_energy(call: Callable, rounds: int, at_least: float) -> dict[str, Any]:
    """Measures the median wall time of a call; and joules of one call by the card's counter, over `at_least` seconds,
    because the counter moves in steps of some hundredths of a second."""
    seconds(call, time.perf_counter)
    times: list[float] = []
    before, started = energy_counter(), time.perf_counter()
    while len(times) < rounds or time.perf_counter() - started < at_least:
        times.append(seconds(call, time.perf_counter))
    took, after = time.perf_counter() - started, energy_counter()
    joules = None if before is None or after is None or after < before else after - before
    return {
        "seconds": float(np.median(times)),
        "fastest_s": min(times),
        "calls": len(times),
        "joules": None if joules is None else joules / len(times),
        "watts": None if joules is None else joules / took,
    }
