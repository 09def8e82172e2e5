"""A stream on the host: an iterable of batches, and the position in it."""

import base64
import dataclasses
import json
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from ensembles.ground.axes import refuse_no_numbers, refuse_unfit

from ..ground.identity import digest
from ..ground.tree import named_leaves

METHODS = (("get_state", "set_state"), ("state_dict", "load_state_dict"))


@dataclasses.dataclass(frozen=True)
class Position:
    """A position in a stream: the batches before it, the last of them, and the state of an iterator that has one."""

    batches: int = 0
    last: PyTree = None
    state: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the form that a checkpoint holds."""
        last = digest(self.last) if self.state is None and self.batches else None
        return {"batches": self.batches, "last": last, "state": self.state}


class Source:
    """Batches one after another, and the position in them.

    An iterable that can be iterated again begins anew when it ends. **Raises** `ValueError` naming a batch that is not
    like `like`, arrays without values, in structure, shape or type.
    """

    def __init__(self, stream: Any, like: PyTree):
        try:
            self._iterator: Iterator[Any] = iter(stream)
        except TypeError:
            raise TypeError(f"stream must be an iterable of batches, got {type(stream).__name__}") from None
        except Exception as error:  # of somebody's loader
            raise ValueError(f"stream cannot be iterated: {type(error).__name__}: {error}") from error
        self.stream, self.like = stream, like
        self._again = self._iterator is not stream
        self._fresh = True  # nothing has come from this pass
        self.position = Position()

    @property
    def _stateful(self) -> tuple[Any, Callable[[], Any], Callable[[Any], Any]] | None:
        """The iterator or the iterable, whichever has a state, and its functions to get and set it."""
        for thing in (self._iterator, self.stream):
            for names in METHODS:
                get, put = (getattr(thing, name, None) for name in names)
                if callable(get) and callable(put):
                    return thing, get, put
        return None

    def pull(self) -> list[np.ndarray]:
        """Returns the leaves of the next batch. **Raises** `StopIteration` at the end of the stream."""
        try:
            batch = next(self._iterator)
        except StopIteration:
            if self._fresh or not self._again:
                raise
            self._iterator, self._fresh = iter(self.stream), True
            return self.pull()
        self._fresh = False
        leaves = self._checked(batch)
        self.position = Position(self.position.batches + 1, leaves)
        return leaves

    def mark(self, last: PyTree = None) -> Position:
        """Returns the position; `last` is the last batch, which the iterator may overwrite."""
        found = self._stateful
        state = None if found is None else _to_json(found[1]())
        return Position(self.position.batches, last if state is None else None, state)

    def go_to(self, position: Position) -> None:
        """Sets the iterator to a position, if it has a state."""
        if (found := self._stateful) is None or position.state is None:
            return
        thing, _, put = found
        put(_from_json(position.state))
        if thing is not self._iterator:
            self._iterator = iter(self.stream)
        self.position, self._fresh = position, False

    def restore(self, saved: dict[str, Any]) -> None:
        """Goes to the position in a checkpoint: by its state, or past as many batches as were read.

        Warns where the batches that were passed are not those of the run that was saved.
        """
        if saved["state"] is not None and self._stateful is not None:
            self.go_to(Position(saved["batches"], None, saved["state"]))
            return
        for _ in range(saved["batches"]):
            try:
                self.pull()
            except StopIteration:
                raise ValueError(f"stream ends before batch {saved['batches']}, where the run goes on") from None
        if saved["batches"] and digest(self.position.last) != saved["last"]:
            warnings.warn(
                f"stream has no state to be saved, and gives other batches than in the run that is continued (after "
                f"{saved['batches']} batches): the result is not that of an uninterrupted run",
                RuntimeWarning,
                stacklevel=4,
            )

    def _checked(self, batch: Any) -> list[np.ndarray]:
        number = self.position.batches
        for path, leaf in named_leaves(batch, f"stream: batch {number}"):
            if isinstance(leaf, np.ma.MaskedArray | jax.Array):  # which may be hidden in part, or gone
                refuse_no_numbers(path, leaf)
        there, here = jax.tree.structure(self.like), jax.tree.structure(batch)
        if str(there) != str(here):
            raise ValueError(f"stream: batch {number} has the structure {here}, but problem.train has {there}")
        leaves = []
        for (path, wanted), leaf in zip(named_leaves(self.like, "train"), jax.tree.leaves(batch), strict=True):
            array = np.asarray(leaf)
            kind = array.dtype if array.dtype.kind in "OUSMm" else jax.dtypes.canonicalize_dtype(array.dtype)
            if array.shape != wanted.shape or kind != wanted.dtype:
                raise ValueError(
                    f"stream: batch {number} has {path} {array.dtype}{list(array.shape)}, but problem.train has "
                    f"{wanted.dtype}{list(wanted.shape)}: all batches must be alike (drop a last one that is shorter)"
                )
            refuse_unfit(f"stream: batch {number} {path}", array)
            leaves.append(array)
        return leaves


def _to_json(state: Any) -> str:
    """Returns the state of an iterator as text. **Raises** `TypeError` where JSON and bytes do not express it."""

    def other(part: Any) -> Any:
        if isinstance(part, bytes):
            return {"base64": base64.b64encode(part).decode()}
        if isinstance(part, np.generic):
            return part.item()
        raise TypeError(f"stream: its state holds a {type(part).__name__}, which a checkpoint cannot hold")

    return json.dumps(state, default=other)


def _from_json(text: str) -> Any:
    return json.loads(text, object_hook=lambda d: base64.b64decode(d["base64"]) if d.keys() == {"base64"} else d)
