"""Saving a run while it goes on."""

import dataclasses
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import PyTree

from .checkpoint import load_checkpoint, refusing, save_checkpoint
from .files import Path, check_path, naming
from .identity import Identity
from .record_log import RecordLog


@dataclasses.dataclass
class Interval:
    """The seconds and the steps from one save to the next, whichever are over first; `None` leaves it to the other."""

    seconds: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        self.begin(0)

    def begin(self, num_steps: int) -> None:
        """Begins anew, after so many steps of the run."""
        self._begun, self._first = time.monotonic(), num_steps

    def is_over(self, num_steps: int) -> bool:
        """Returns whether the time, or the number of steps, to save has come."""
        late = self.seconds is not None and time.monotonic() - self._begun >= self.seconds
        return late or (self.steps is not None and num_steps - self._first >= self.steps)

    def steps_left(self, num_steps: int) -> int:
        """Returns the number of steps until it is over, at least 1."""
        return sys.maxsize if self.steps is None else max(self.steps - (num_steps - self._first), 1)


class Autosave:
    """A run's checkpoint and, next to it in `<checkpoint>.records`, its records; of a link, next to where it leads.

    Writing takes place in a thread: it holds the arrays of the state, which nobody changes, and no copy of them. While
    a write is under way no other begins.

    **Arguments**

    - `chunks`: the records of the run, to which it appends as it goes on.
    - `empty`: the records of no steps.
    - `interval`: how often to save.
    - `notes`: called at every save; its result, which JSON can hold, is saved too, and `loaded` after `load`.
    """

    def __init__(
        self,
        path: Path,
        identity: Identity,
        chunks: list[PyTree],
        empty: PyTree,
        interval: Interval,
        notes: Callable[[], dict[str, Any]] = dict,
    ):
        self.path = check_path(path, "checkpoint")
        self.identity, self.interval, self.chunks = identity, interval, chunks
        self.notes, self.loaded = notes, dict[str, Any]()
        row = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), empty)
        self.log = RecordLog(f"{os.path.realpath(self.path)}.records", row)
        self._num_appended = 0  # chunks that are in the log
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def load(self, state: PyTree) -> PyTree:
        """Returns the state of an earlier run with the same identity, and fills `chunks` with its records.

        Where there is none, returns `state`. **Raises** `CheckpointError` where the file is damaged or of another run.
        """
        if not os.path.lexists(self.path):
            return state
        state, self.identity, header = load_checkpoint(self.path, state, self.identity)
        with refusing(self.path):
            self.loaded = dict(header.get("notes", {}))
        self.chunks[:] = [self.log.read(header)]
        self._num_appended = 1
        return state

    def begin(self, state: PyTree, num_steps: int) -> None:
        """Saves the state before the first step: a folder that cannot be written and a full disk are noticed here.

        **Raises** `OSError`, or `CheckpointError` where another run saves to the same file.
        """
        with naming(self.path, "checkpoint"):
            self.log.open()
            try:
                self._write(jax.tree.leaves(state), len(self.chunks), self.notes())
            except BaseException:
                self.log.close()
                raise
        self.interval.begin(num_steps)

    def is_due(self, num_steps: int) -> bool:
        """Returns whether the interval is over, and no write is under way."""
        return self.interval.is_over(num_steps) and not (self._thread and self._thread.is_alive())

    def save(self, state: PyTree, num_steps: int) -> None:
        """Begins to save."""
        self.interval.begin(num_steps)
        self._start(state)

    def end(self, state: PyTree | None) -> None:
        """Saves what is not saved yet, unless the state is lost, and lets other processes in."""
        try:
            self._join()
            if state is not None and (self._num_appended < len(self.chunks) or self._error):
                self._start(state)
                self._join()
        finally:
            self.log.close()

    def _start(self, state: PyTree) -> None:
        self._join()
        args = jax.tree.leaves(state), len(self.chunks), self.notes()
        self._thread = threading.Thread(target=self._try, args=args, daemon=True)
        self._thread.start()

    def _join(self) -> None:
        """Waits for the write under way; one that failed is a warning, and the next makes up for it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            if self._error is not None:
                warnings.warn(f"{self.path} could not be saved: {self._error}", RuntimeWarning, stacklevel=4)

    def _try(self, leaves: list[Any], num_chunks: int, notes: dict[str, Any]) -> None:
        try:
            self._write(leaves, num_chunks, notes)
            self._error = None
        except Exception as error:  # whatever it is, the run is worth more than its file
            self._error = error

    def _write(self, leaves: list[Any], num_chunks: int, notes: dict[str, Any]) -> None:
        for chunk in self.chunks[self._num_appended : num_chunks]:
            self.log.append(chunk)
            self._num_appended += 1
        self.log.sync()
        save_checkpoint(self.path, leaves, self.identity, self.log.header | {"notes": notes})
