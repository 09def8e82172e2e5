"""A stream on its way to the device: the next stretch is fetched while this one is computed with."""

import queue
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .draws import num_rows
from .sampler import refuse_sampler
from .source import Position, Source
from .stretch import Stretch

Fetched = tuple[PyTree, list[Position]]  # batches, and the position after each step of the search that they are for


class Stream:
    """Stretches of `chunk` · `num_steps` batches, fetched by a thread.

    At most three are in memory at a time: one that is computed with, one that waits, one on its way.
    """

    def __init__(self, stream: Any, train: PyTree, num_steps: int, chunk: int):
        refuse_sampler(train, "train", "with a stream it must be one of its batches")
        num_rows(train, "train")
        self.source = Source(stream, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), train))
        self.train, self.num_steps, self.chunk = train, num_steps, chunk
        self.position = self.source.mark()  # of what has been computed with
        self._marks: list[Position] = []
        self._queue: queue.Queue[Fetched | BaseException] = queue.Queue(1)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def probe(self) -> Stretch:
        """Returns zeros in place of the batches of one step of the search."""
        zeros = lambda leaf: jnp.zeros((self.num_steps, *leaf.shape), leaf.dtype)
        return Stretch.of(jax.tree.map(zeros, self.train), self.num_steps, jnp.int32(0))

    def restore(self, saved: dict[str, Any]) -> None:
        """Goes to the position in a checkpoint; see `Source.restore`."""
        self.source.restore(saved)
        self.position = self.source.mark()

    def next(self, step: Array) -> tuple[Stretch, int]:
        """Returns the stretch that begins with a step of the search, and the number of steps that it is for.

        The number is below `chunk` at the end of the stream. **Raises** what the iterator raises.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._fetch, daemon=True)
            self._thread.start()
        found = self._queue.get()
        if isinstance(found, BaseException):
            raise found
        data, self._marks = found
        return Stretch.of(data, self.num_steps, step), len(self._marks)

    def used(self, steps: int) -> None:
        """Notes that so many steps of the search have been done with the last stretch."""
        if steps:
            self.position = self._marks[steps - 1]

    def close(self) -> None:
        """Ends the thread. An iterator with a state returns to the last batch that was used."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self.source.go_to(self.position)

    def _fetch(self) -> None:
        try:
            while not self._stop.is_set():
                data, marks = self._gather()
                self._put((data, marks))
                if len(marks) < self.chunk:
                    self._put((data, []))  # the end: no further step of the search
                    return
        except BaseException as error:  # whatever the iterator raises belongs to the run
            error.add_note(f"raised by stream, after batch {self.source.position.batches}")
            self._put(error)

    def _gather(self) -> Fetched:
        """Returns the next stretch on the device, with zeros beyond the end of the stream."""
        number = self.chunk * self.num_steps
        empty = lambda leaf: np.zeros((number, *leaf.shape), leaf.dtype)
        rooms, marks = [empty(leaf) for leaf in jax.tree.leaves(self.train)], []
        for index in range(number):
            try:
                leaves = self.source.pull()
            except StopIteration:
                break
            for room, leaf in zip(rooms, leaves, strict=True):
                room[index] = leaf
            if (index + 1) % self.num_steps == 0:
                marks.append(self.source.mark([room[index] for room in rooms]))
            if self._stop.is_set():
                break
        placed = [_placed(room, leaf) for room, leaf in zip(rooms, jax.tree.leaves(self.train), strict=True)]
        return jax.tree.unflatten(jax.tree.structure(self.train), placed), marks

    def _put(self, fetched: Fetched | BaseException) -> None:
        while not self._stop.is_set():
            try:
                return self._queue.put(fetched, timeout=0.1)
            except queue.Full:
                continue


def _placed(room: np.ndarray, like: Array) -> Array:
    """Returns batches on the device, or spread over the devices, as one batch is."""
    sharding = like.sharding
    if isinstance(sharding, jax.sharding.NamedSharding):
        spec = jax.sharding.PartitionSpec(None, *sharding.spec)
        return jax.device_put(room, jax.sharding.NamedSharding(sharding.mesh, spec))
    return jax.device_put(room, sharding if like.committed else None)
