"""Time, memory, energy and accuracy of calls."""

import math
import time
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.stages import Compiled
from jaxtyping import PyTree

import hypergrad as hg

from . import bare
from .problems import Benchmark


def arguments(case: Benchmark) -> tuple:
    """Returns the arguments of a hand-written function."""
    return case.hparams, case.params, case.problem.train, case.problem.valid


def seconds(call: Callable, clock: Callable = time.process_time) -> float:
    """Returns the time of one call, until its result is ready."""
    start = clock()
    jax.block_until_ready(call())
    return clock() - start


def first_call(call: Callable) -> float:
    """Returns the wall time with tracing and compilation, the shorter of two."""

    def once():
        jax.clear_caches()
        return seconds(call, time.perf_counter)

    return min(once(), once())


class Rounds:
    """Times of several calls, taken in turns: one number per round, every round in the same order; the first warms up.

    Ratios are within a round, so that a load of the machine that comes and goes does not count.
    """

    def __init__(self, calls: Mapping[Hashable, Callable], rounds: int, clock: Callable = time.perf_counter):
        times = [[seconds(call, clock) for call in calls.values()] for _ in range(rounds + 1)]
        self.times = dict(zip(calls, np.array(times)[1:].T, strict=True))

    def seconds(self, name: Hashable) -> float:
        """Returns the median time of a call."""
        return float(np.median(self.times[name]))

    def ratio(self, a: Hashable, b: Hashable) -> float:
        """Returns the median over rounds of the time of `a` over that of `b`."""
        return float(np.median(self.times[a] / self.times[b]))


class Program(NamedTuple):
    """A compiled call, with what it needs; `planned_bytes` are temporaries, arguments and outputs together."""

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


def compiled_estimator(case: Benchmark, estimator: hg.AbstractEstimator, key: jax.Array) -> Program:
    """Compiles one step of an estimator; data are arguments, as for the hand-written functions."""

    def step(hparams, state, train, valid, key):
        problem = hg.BilevelProblem(case.problem.inner_loss, case.problem.outer_loss, train, valid)
        return estimator.step(problem, hparams, state, key)[0]

    state = estimator.init(case.problem, case.params, case.hparams)
    return compiled(step, case.hparams, state, case.problem.train, case.problem.valid, key)


def peak_bytes() -> int | None:
    """Returns the allocator's peak since the process began, None where it keeps no account."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


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


def energy_counter() -> float | None:
    """Reads the joules counted so far by the GPU (NVML) or the processor package (RAPL), None where neither counts."""
    if jax.default_backend() == "gpu":
        try:
            import pynvml

            pynvml.nvmlInit()
            return pynvml.nvmlDeviceGetTotalEnergyConsumption(pynvml.nvmlDeviceGetHandleByIndex(0)) / 1e3
        except Exception:  # no package, or a card or driver without a counter
            return None
    try:
        return int(Path("/sys/class/powercap/intel-rapl:0/energy_uj").read_text()) / 1e6
    except OSError:
        return None


def memory_with_data_doubled(
    case: Benchmark, estimator: hg.AbstractEstimator, by_hand: Callable[[Benchmark], Callable], key: jax.Array
) -> dict[str, float]:
    """Returns the ratio of temporary memory on twice the training rows to that on the data as they are."""
    twice = case.with_train(jax.tree.map(lambda leaf: np.concatenate([leaf, leaf]), case.problem.train))
    ours = [compiled_estimator(each, estimator, key).temp_bytes for each in (twice, case)]
    hand = [compiled(by_hand(each), *arguments(each)).temp_bytes for each in (twice, case)]
    return {"estimator": ours[0] / ours[1], "bare": hand[0] / hand[1]}


def flat(tree: PyTree) -> np.ndarray:
    """Returns all entries as one float64 vector."""
    return np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree)])


def exact(case: Benchmark) -> np.ndarray:
    """Returns the unrolled hypergradient in float64, by `jax.grad` through the training loop."""
    with jax.enable_x64(True):
        widen = lambda leaf: np.asarray(leaf, np.float64) if leaf.dtype == np.float32 else leaf
        wide = jax.tree.map(widen, arguments(case))
        return flat(jax.jit(bare.reverse_remat(case))(*wide)[1])


def agreement(found: np.ndarray, right: np.ndarray) -> dict[str, float]:
    """Returns the cosine, NaN where nothing but zeros was found, and the relative error."""
    size, length = np.linalg.norm(right), np.linalg.norm(found)
    return {
        "cosine": float(found @ right / (length * size)) if length else math.nan,
        "relative_error": float(np.linalg.norm(found - right) / size),
    }
