"""The records of a run in one file that is only appended to: what a save costs does not grow with the steps before it.

    hypergrad-jax records 1\\n
    one row per step: the bytes of its arrays, one after another

All rows have one length. Number and SHA-256 of the rows that count stand in the checkpoint; what lies behind them was
written by a process that was killed before it could replace the checkpoint, and is overwritten.
"""

import contextlib
import hashlib
import os
from typing import Any, BinaryIO

import jax
import numpy as np
from jaxtyping import PyTree

from .checkpoint import CheckpointError, kind, num_bytes, open_regular, refusing
from .files import Path
from .identity import to_bytes
from .lock import locked

MAGIC = b"hypergrad-jax records 1\n"
BLOCK = 2**22  # bytes read at a time


class RecordLog:
    """An append-only file of records with the structure of `row`, the shapes of one step."""

    def __init__(self, path: Path, row: PyTree):
        self.path, self.row = os.path.realpath(path), row
        self.leaves = jax.tree.leaves(row)
        self.width = sum(num_bytes(leaf) for leaf in self.leaves)
        self.steps, self.total = 0, hashlib.sha256()
        self._file: Any = None
        self._held = contextlib.ExitStack()  # the open file and its lock

    @property
    def header(self) -> dict[str, Any]:
        """Number, kind and SHA-256 of the rows, as they stand in a checkpoint."""
        kinds = [kind(leaf) for leaf in self.leaves]
        return {"steps": self.steps, "arrays": kinds, "sha256": self.total.hexdigest()}

    def read(self, header: dict[str, Any]) -> PyTree:
        """Returns the rows that `header` counts, stacked. **Raises** `CheckpointError` where they are not there."""
        with refusing(self.path), open_regular(self.path) as file:
            steps, size = header["steps"], os.fstat(file.fileno()).st_size
            if header["arrays"] != self.header["arrays"]:
                raise CheckpointError(f"{self.path} holds other records than this run would write")
            if file.readline(len(MAGIC)) != MAGIC:
                raise CheckpointError(f"{self.path} is not a file of records of this version")
            if not (isinstance(steps, int) and 0 <= steps * self.width <= size - len(MAGIC)):
                raise CheckpointError(f"{self.path} is damaged: it holds fewer than {steps} records")
            columns = [np.empty((steps, *leaf.shape), leaf.dtype) for leaf in self.leaves]
            self._fill(file, columns, steps)
            if self.total.hexdigest() != header["sha256"]:
                raise CheckpointError(f"{self.path} is damaged: its SHA-256 does not match")
        self.steps = steps
        return jax.tree.unflatten(jax.tree.structure(self.row), columns)

    def _fill(self, file: BinaryIO, columns: list[np.ndarray], steps: int) -> None:
        self.total = hashlib.sha256()
        size = max(BLOCK // max(self.width, 1), 1)
        for start in range(0, steps if self.width else 0, size):
            rows = np.frombuffer(file.read(min(size, steps - start) * self.width), np.uint8).reshape(-1, self.width)
            self.total.update(rows.data)
            for column, part in zip(columns, self._parts(rows), strict=True):
                to_bytes(column[start : start + len(rows)]).reshape(part.shape)[:] = part

    def _parts(self, rows: np.ndarray) -> list[np.ndarray]:
        """Returns the bytes of every leaf in a table of rows."""
        ends = np.cumsum([num_bytes(leaf) for leaf in self.leaves], dtype=int)
        return np.split(rows, ends, axis=1)[:-1]

    def open(self) -> None:
        """Opens the file for appending and keeps other processes out until `close`.

        **Raises** `CheckpointError` naming the process that has it open, or where it is no file of records.
        """
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(open(self.path, "a+b", buffering=0))
            stack.enter_context(locked(file, self.path))
            file.seek(0)
            if file.read(len(MAGIC)) not in (MAGIC, b""):
                raise CheckpointError(f"{self.path} is not a file of records: move it away, or choose another name")
            file.truncate(len(MAGIC) + self.steps * self.width if self.steps else 0)
            if not self.steps:
                file.write(MAGIC)
            self._held = stack.pop_all()
        self._file = file

    def append(self, records: PyTree) -> None:
        """Writes the rows of `records`, stacked, behind those that count. *Memory*: one copy of `records`."""
        leaves = jax.tree.leaves(records)
        rows = np.empty((len(leaves[0]) if leaves else 0, self.width), np.uint8)
        for part, leaf in zip(self._parts(rows), leaves, strict=True):
            part[:] = to_bytes(np.asarray(leaf)).reshape(part.shape)
        self._file.truncate(len(MAGIC) + self.steps * self.width)
        left = to_bytes(rows).data
        while left:
            left = left[self._file.write(left) :]
        self.total.update(rows.data)
        self.steps += len(rows)

    def sync(self) -> None:
        """Puts what was appended on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Lets other processes in."""
        self._held.close()
        self._file = None
