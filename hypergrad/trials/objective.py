"""Objectives: what turns a batch of trials into results, one by one or all in one compiled program."""

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .compilations import compilations
from .trial import Result, Trial

Objective = Callable[[Sequence[Trial], Sequence[Array]], Sequence[Result]]


class PerTrial(eqx.Module):
    """An objective that trains one trial at a time: `function(trial, key) -> Result`, or a loss.

    Measures cost and compilations. An exception becomes a failed result with its message.
    """

    function: Callable[[Trial, Array], Result | float | Array]

    def __call__(self, trials: Sequence[Trial], keys: Sequence[Array]) -> list[Result]:
        """One result per trial."""
        return [self._one(trial, key) for trial, key in zip(trials, keys, strict=True)]

    def _one(self, trial: Trial, key: Array) -> Result:
        started, before = time.perf_counter(), compilations()
        try:
            found = self.function(trial, key)
            result = found if isinstance(found, Result) else Result(float(found))
        except Exception as error:
            result = Result.failure(f"{type(error).__name__}: {error}")
        compiled = compilations().since(before)
        cost = time.perf_counter() - started
        return replace(result, cost=cost, compilations=compiled.number, compile_seconds=compiled.seconds)


class Vmapped(eqx.Module):
    """An objective that trains all trials of one shape in one compiled, batched program.

        Vmapped(train, prepare, data)
        prepare(trial) -> (shape, arrays)          # what decides the program; what is data to it
        train(shape, arrays, data, key) -> {"value": loss, ...}

    Trials of equal `shape` (hashable) are stacked along `arrays` (numbers and arrays) and trained under `vmap`, at most
    `size` at once; smaller groups are filled up, so that one program is compiled per shape. With widths and depths as
    data (`MaskedMLP`) there is one shape for all.

    Beside `value` the dictionary may hold `size`, and dictionaries `tuned`, `block_norms`, `block_scores`, `metrics`:
    see `Result`. A program that fails to run makes its group's trials fail. The cost of a group is shared evenly.
    """

    train: Callable[[Any, PyTree, PyTree, Array], dict[str, Any]]
    prepare: Callable[[Trial], tuple[Hashable, PyTree]]
    data: PyTree = None
    size: int = 8

    def __check_init__(self):
        if not (isinstance(self.size, int) and self.size >= 1):
            raise ValueError(f"size must be a positive integer, got {self.size!r}")

    def __call__(self, trials: Sequence[Trial], keys: Sequence[Array]) -> list[Result]:
        """One result per trial, in their order."""
        results: dict[int, Result] = {}
        groups: dict[Hashable, list[tuple[int, PyTree]]] = {}
        for place, trial in enumerate(trials):
            try:
                shape, arrays = self.prepare(trial)
                groups.setdefault(shape, []).append((place, arrays))
            except Exception as error:
                results[place] = Result.failure(f"{type(error).__name__}: {error}")
        for shape, members in groups.items():
            for start in range(0, len(members), self.size):
                part = members[start : start + self.size]
                found = self._group(shape, [arrays for _, arrays in part], [keys[place] for place, _ in part])
                results |= dict(zip((place for place, _ in part), found, strict=True))
        return [results[place] for place in range(len(trials))]

    def _group(self, shape: Hashable, arrays: list[PyTree], keys: list[Array]) -> list[Result]:
        started, before = time.perf_counter(), compilations()
        room = self.size - len(arrays)
        stack = lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves])
        try:
            stacked = jax.tree.map(stack, *arrays, *[arrays[-1]] * room)
            every = jnp.stack([*keys, *[keys[-1]] * room])
            found = jax.tree.map(np.asarray, _train(self.train, shape, stacked, self.data, every))
            rows = [jax.tree.map(lambda leaf: float(leaf[i]), found) for i in range(len(arrays))]  # noqa: B023
            results = [Result(**row) for row in rows]
        except Exception as error:
            results = [Result.failure(f"{type(error).__name__}: {error}")] * len(arrays)
        compiled, share = compilations().since(before), 1 / len(arrays)
        cost, compiling = share * (time.perf_counter() - started), share * compiled.seconds
        counts = [compiled.number, *[0] * (len(arrays) - 1)]  # a program counts once
        return [
            replace(result, cost=cost, compilations=count, compile_seconds=compiling)
            for result, count in zip(results, counts, strict=True)
        ]


@eqx.filter_jit
def _train(train, shape, arrays, data, keys):
    return jax.vmap(lambda one, key: train(shape, one, data, key))(arrays, keys)
