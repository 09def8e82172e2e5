"""A sequence that grows without being copied."""

from collections.abc import Iterable, Sequence
from typing import Any, Generic, TypeVar, overload

Item = TypeVar("Item")


class Growing(Sequence[Item], Generic[Item]):
    """An immutable sequence that shares its items with those that it grew from: one more costs the same at any length.

    Slices are tuples. Equal to any sequence of equal items.
    """

    def __init__(self, items: Iterable[Item] = ()):
        self._items = list(items)
        self._length = len(self._items)

    def grown(self, item: Item) -> "Growing[Item]":
        """Returns the sequence with one more item; only the first to grow from one shares its items."""
        if len(self._items) > self._length:
            return Growing([*self, item])
        longer: Growing[Item] = object.__new__(Growing)
        self._items.append(item)
        longer._items, longer._length = self._items, self._length + 1
        return longer

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Item, ...]: ...
    def __getitem__(self, index: Any) -> Any:
        found = range(self._length)[index]
        return tuple(self._items[i] for i in found) if isinstance(found, range) else self._items[found]

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(_equal, self, other))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(self[:])


def _equal(one: Any, other: Any) -> bool:
    return bool(one is other or one == other)
