"""Time, memory and accuracy of one call."""

import time
from collections.abc import Callable, Hashable, Mapping

import jax
import numpy as np
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


def interleaved(calls: Mapping[Hashable, Callable], rounds: int) -> dict[Hashable, np.ndarray]:
    """Returns CPU times, one number per round, every round in the same order."""
    for call in calls.values():
        jax.block_until_ready(call())
    times = [[seconds(call) for call in calls.values()] for _ in range(rounds)]
    return dict(zip(calls, np.array(times).T, strict=True))


def temp_bytes(function: Callable, *args) -> int:
    """Returns the bytes that XLA allocates for temporaries."""
    return jax.jit(function).lower(*args).compile().memory_analysis().temp_size_in_bytes


def estimator_temp_bytes(case: Benchmark, estimator: hg.AbstractEstimator, key: jax.Array) -> int:
    """Returns the same for one step of an estimator; data are arguments, as for the hand-written functions."""

    def step(hparams, state, train, valid, key):
        problem = hg.BilevelProblem(case.problem.inner_loss, case.problem.outer_loss, train, valid)
        return estimator.step(problem, hparams, state, key)

    state = estimator.init(case.problem, case.params, case.hparams)
    return temp_bytes(step, case.hparams, state, case.problem.train, case.problem.valid, key)


def memory_with_data_doubled(
    case: Benchmark, estimator: hg.AbstractEstimator, by_hand: Callable[[Benchmark], Callable], key: jax.Array
) -> dict[str, float]:
    """Returns the ratio of temporary memory on twice the training rows to that on the data as they are."""
    twice = case.with_train(jax.tree.map(lambda leaf: np.concatenate([leaf, leaf]), case.problem.train))
    ours = [estimator_temp_bytes(each, estimator, key) for each in (twice, case)]
    hand = [temp_bytes(by_hand(each), *arguments(each)) for each in (twice, case)]
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
    """Returns the cosine and the relative error."""
    size = np.linalg.norm(right)
    return {
        "cosine": float(found @ right / (np.linalg.norm(found) * size)),
        "relative_error": float(np.linalg.norm(found - right) / size),
    }
