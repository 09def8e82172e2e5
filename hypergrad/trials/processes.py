"""An objective that trains trials in several processes."""

import math
import multiprocessing
import signal
import time
import traceback
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from ..ground.checks import field, function, integer, real
from .objective import AbstractObjective, PerTrial
from .trial import Result, Trial
from .uncopied import Uncopied, uncopied_field

SETTINGS = (  # of JAX, which a new process takes over
    *("jax_enable_x64", "jax_numpy_dtype_promotion", "jax_default_matmul_precision", "jax_platforms"),
    *("jax_threefry_partitionable", "jax_default_prng_impl", "jax_random_seed_offset"),
    *("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"),
)


READY = None  # the first message of a process


class _Workers(Uncopied, list["_Worker"]):
    """The processes of an objective."""


class Processes(AbstractObjective):
    """An objective that trains the trials of a batch in several processes at once.

        search_trials(searcher, space, Processes(train, workers=4, time_limit=600), key=key, num_trials=40, batch=4)

    `function(trial, key)` returns a `Result` or a loss; each process imports it, so that it has to stand at the top
    level of a module, and a script has to guard its search by `if __name__ == "__main__"`. Results are told in the
    order of the trials when all of a batch are there: a search is the same with any number of workers.

    - `workers`: processes; they are started at the first batch and keep their compiled programs.
    - `time_limit`: seconds after which a trial has failed, the start of its process not included; `None` for no limit.

    A process that dies, or whose trial exceeds the limit, fails that trial alone, and another takes its place. They end
    with the process that started them.

    **Raises** `TypeError` for a function that cannot be imported elsewhere.
    """

    function: Callable[[Trial, Array], Result | float] = field(
        function("function", "from a trial and its key to a loss or a Result")
    )
    workers: int = field(integer("workers", least=1), 2)
    time_limit: float | None = field(real("time_limit", above=0, optional=True), None)
    kept: _Workers = uncopied_field(_Workers)

    def __call__(self, trials: Sequence[Trial], keys: Sequence[Array]) -> list[Result]:
        """Trains the trials, as many at once as there are workers."""
        waiting, results = list(enumerate(trials)), dict[int, Result]()
        try:
            while len(results) < len(trials):
                for slot in range(min(self.workers, len(trials))):
                    worker = self._worker(slot)
                    if waiting and worker.index is None:
                        index, trial = waiting.pop(0)
                        worker.begin(index, trial, keys[index])
                for slot, worker in enumerate(self.kept):
                    number, result = worker.index, worker.result(self.time_limit)
                    if number is not None and result is not None:
                        results[number] = result
                        if not worker.process.is_alive():
                            self.kept[slot] = _Worker(self.function)
                busy = [worker.connection for worker in self.kept if worker.index is not None]
                if busy:
                    wait(busy, self._until_limit())
        except BaseException:
            for worker in self.kept:
                worker.stop()
            self.kept.clear()
            raise
        return [results[index] for index in range(len(trials))]

    def _worker(self, slot: int) -> "_Worker":
        """Returns the process of a slot, a new one where there is none, or where it ended since its last trial."""
        if len(self.kept) <= slot:
            self.kept.append(_Worker(self.function))
        elif self.kept[slot].index is None and not self.kept[slot].process.is_alive():
            self.kept[slot] = _Worker(self.function)
        return self.kept[slot]

    def _until_limit(self) -> float | None:
        """Returns the seconds until the first trial reaches its limit."""
        begun = min((worker.begun for worker in self.kept if worker.index is not None), default=0.0)
        if self.time_limit is None or begun == math.inf:
            return None
        return max(0.0, begun + self.time_limit - time.monotonic())


class _Worker:
    """A process, and the trial that it trains."""

    def __init__(self, function: Callable[[Trial, Array], Result | float]):
        context = multiprocessing.get_context("spawn")
        self.connection, there = context.Pipe()
        settings = {name: getattr(jax.config, name) for name in SETTINGS}
        self.process = context.Process(target=_work, args=(there, function, settings), daemon=True)
        try:
            ForkingPickler.dumps(function)
        except Exception as error:  # of a local function, of one that is not what its name leads to, of what it holds
            raise TypeError(f"function must be importable: {error}; define it at the top level of a module") from None
        self.process.start()
        there.close()
        self.index: int | None = None
        self.begun = math.inf  # not before the process is ready
        self.is_ready = False
        weakref.finalize(self, self.process.terminate)

    def begin(self, index: int, trial: Trial, key: Array) -> None:
        """Sends a trial to be trained."""
        self.index, self.begun = index, time.monotonic() if self.is_ready else math.inf
        plain = Trial(trial.number, trial.params, trial.fidelity, trial.meta)  # without its report
        with suppress(ConnectionError):  # a process that has just ended, which result finds
            self.connection.send((plain, np.asarray(jax.random.key_data(key)), str(jax.random.key_impl(key))))

    def result(self, time_limit: float | None) -> Result | None:
        """Returns the result of the trial, if there is one; a process that failed is stopped."""
        seconds = max(0.0, time.monotonic() - self.begun)
        if self.index is None:
            return None
        try:
            if self.connection.poll():
                message = self.connection.recv()
                if message is READY:
                    self.begun, self.is_ready = time.monotonic(), True
                    return None
                self.index, (result, trace) = None, message
                return result if trace is None else Result.failure(RuntimeError(trace), seconds=result.seconds)
        except (EOFError, ConnectionError):
            self.stop()
            error = RuntimeError(f"the process of the trial ended with exit code {self.process.exitcode}")
            return Result.failure(error, seconds=seconds)
        if time_limit is not None and seconds > time_limit:
            self.stop()
            return Result.failure(f"took longer than {time_limit:g} s", seconds=seconds)
        return None

    def stop(self) -> None:
        """Ends the process."""
        self.index = None
        self.process.kill()
        self.process.join()
        self.connection.close()


def _work(connection: Connection, function: Callable[[Trial, Array], Any], settings: dict[str, Any]) -> None:
    """Trains what comes until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one decides
    for name, value in settings.items():
        jax.config.update(name, value)
    objective = PerTrial(function)
    connection.send(READY)
    while True:
        try:
            trial, words, implementation = connection.recv()
        except EOFError:
            return
        (result,) = objective([trial], [jax.random.wrap_key_data(words, impl=implementation)])
        error, trace = result.exception, None
        if error is not None:
            trace = "".join(traceback.format_exception(error))
            result = Result.failure(str(result.error), seconds=result.seconds)
        connection.send((result, trace))
