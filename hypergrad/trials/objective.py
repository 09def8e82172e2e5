"""Objectives: they turn a batch of trials into results, one by one or all in one compiled program."""

import abc
import dataclasses
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ..ground.checks import field, function, integer, shown
from ..ground.outside import read_outside
from .compilations import Compilations, compilations
from .trial import Result, Trial, revised

RESULT_NAMES = {one.name for one in dataclasses.fields(Result)}


class AbstractObjective(eqx.Module):
    """A function from trials and their keys to as many results, in their order.

    `Result.failure(exception)` stands for a trial that raised.
    """

    @abc.abstractmethod
    def __call__(self, trials: Sequence[Trial], keys: Sequence[Array]) -> list[Result]:
        """Trains the trials."""


class PerTrial(AbstractObjective):
    """An objective that trains one trial at a time: `function(trial, key)` returns a `Result` or a loss.

    Measures seconds and compilations. An exception becomes a failed result.

    **Example**

        >>> state = hg.trials.search_trials(
        ...     hg.trials.Random(), space, hg.trials.PerTrial(objective), key=key, num_trials=2
        ... )
        >>> len(state.history), len(state.failures)
        (2, 0)
    """

    function: Callable[[Trial, Array], Result | float | Array] = field(
        function("function", "from a trial and its key to a loss or a Result")
    )

    def __call__(self, trials: Sequence[Trial], keys: Sequence[Array]) -> list[Result]:
        """Trains the trials one by one."""
        return [_one(self.function, trial, key) for trial, key in zip(trials, keys, strict=True)]


def _one(function: Callable[..., Any], trial: Trial, key: Array) -> Result:
    started, before = time.perf_counter(), compilations()
    try:
        found = function(trial, key)
        result = found if isinstance(found, Result) else Result(found)
    except Exception as error:
        result = Result.failure(error)
    return _measured([result], started, before)[0]


class Vmapped(AbstractObjective):
    """An objective that trains all trials of one shape in one compiled, batched program.

        Vmapped(train, prepare, data)
        prepare(trial) -> (shape, arrays)          # shape decides the program; arrays are data to it
        train(shape, arrays, data, key) -> {"value": loss, ...}

    Trials of equal `shape` (hashable) are stacked along `arrays` (numbers and arrays) and trained under `vmap`, at most
    `size` at once; smaller groups are filled up, so that one program is compiled per shape. With widths and depths as
    data (`MaskedMLP`, `MaskedCNN`) there is one shape for all.

    The dictionary holds `value` and may hold any other entry of a `Result`. A program that fails to run makes its
    group's trials fail. The seconds of a group are shared evenly.

    **Example**

        >>> prepare = lambda trial: ("one shape", jnp.log(trial.params["lr"]))
        >>> train = lambda shape, log_lr, data, key: {"value": (log_lr - jnp.log(0.01)) ** 2}
        >>> state = hg.trials.search_trials(
        ...     hg.trials.Random(), space, hg.trials.Vmapped(train, prepare), key=key, num_trials=8, batch=4
        ... )
        >>> len(state.history)
        8
    """

    train: Callable[[Any, PyTree, PyTree, Array], dict[str, Any]] = field(
        function("train", "(shape, arrays, data, key) -> {'value': loss, ...}")
    )
    prepare: Callable[[Trial], tuple[Hashable, PyTree]] = field(function("prepare", "trial -> (shape, arrays)"))
    data: PyTree = None
    size: int = field(integer("size", least=1), 8)

    def __call__(self, trials: Sequence[Trial], keys: Sequence[Array]) -> list[Result]:
        """Trains the trials, those of one shape together."""
        results: dict[int, Result] = {}
        groups: dict[Hashable, list[tuple[int, PyTree]]] = {}
        for index, trial in enumerate(trials):
            try:
                shape, arrays = self.prepare(trial)
                groups.setdefault(shape, []).append((index, arrays))
            except Exception as error:
                results[index] = Result.failure(error)
        for shape, members in groups.items():
            for start in range(0, len(members), self.size):
                part = members[start : start + self.size]
                found = self._group(shape, [arrays for _, arrays in part], [keys[index] for index, _ in part])
                results |= dict(zip((index for index, _ in part), found, strict=True))
        return [results[index] for index in range(len(trials))]

    def _group(self, shape: Hashable, arrays: list[PyTree], keys: list[Array]) -> list[Result]:
        started, before = time.perf_counter(), compilations()
        room = self.size - len(arrays)
        stack = lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves])
        try:
            stacked = jax.tree.map(stack, *arrays, *[arrays[-1]] * room)
            every = jnp.stack([*keys, *[keys[-1]] * room])
            found = jax.tree.map(
                np.asarray, _train(self.train, read_outside(self.train), shape, stacked, self.data, every)
            )
            if not isinstance(found, dict) or not {"value"} <= set(found) <= RESULT_NAMES:
                got = list(found) if isinstance(found, dict) else shown(found)
                raise TypeError(f"train must return a dictionary with 'value' and other fields of a Result, got {got}")
            results = [Result(**jax.tree.map(lambda leaf: leaf[i], found)) for i in range(len(arrays))]  # noqa: B023
        except Exception as error:
            results = [Result.failure(error)] * len(arrays)
        return _measured(results, started, before)


@eqx.filter_jit
def _train(
    train: Callable[..., dict[str, Any]], outside: str, shape: Hashable, arrays: PyTree, data: PyTree, keys: Array
) -> dict[str, Any]:
    """Returns the results of all; where `train` reads other numbers from outside, its code runs again."""
    return jax.vmap(lambda one, key: train(shape, one, data, key))(arrays, keys)


def _measured(results: list[Result], started: float, before: Compilations) -> list[Result]:
    """Shares the time since `started` among the results; the programs compiled count for the first."""
    compiled, count = compilations().since(before), len(results)
    seconds = (time.perf_counter() - started) / count
    numbers = [compiled.number, *[0] * (count - 1)]
    return [
        revised(result, seconds=seconds, compilations=number, compile_seconds=compiled.seconds / count)
        for result, number in zip(results, numbers, strict=True)
    ]
