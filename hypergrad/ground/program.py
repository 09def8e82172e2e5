"""The compiled steps of a run, called with flat lists of arrays: taking pytrees apart costs more than a short step."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

SMALL = 1024  # entries up to which an array of a record travels together with others

Advance = Callable[[PyTree, PyTree, PyTree, Array], tuple[PyTree, PyTree, Array]]


class Slot(NamedTuple):
    """The place of an array of a record: a table, the columns there, and the shape of the array."""

    table: int
    start: int
    stop: int
    shape: tuple[int, ...]


@dataclasses.dataclass
class Layout:
    """The way in which records, a pytree of arrays with a leading axis of steps, are packed into few tables.

    Small arrays of one type are the columns of one table. A larger array is a table of its own.
    """

    structure: Any
    slots: list[Slot]

    @classmethod
    def of(cls, records: PyTree) -> "Layout":
        """Returns the layout of such records."""
        leaves, structure = jax.tree.flatten(records)
        shared: dict[Any, tuple[int, int]] = {}  # of each type, its table and how many columns that has
        numbers, slots = itertools.count(), []
        for leaf in leaves:
            shape = leaf.shape[1:]
            size = int(np.prod(shape))
            if size > SMALL:
                slots.append(Slot(next(numbers), 0, size, shape))
                continue
            table, start = shared[leaf.dtype] if leaf.dtype in shared else (next(numbers), 0)
            shared[leaf.dtype] = table, start + size
            slots.append(Slot(table, start, start + size, shape))
        return cls(structure, slots)

    def pack(self, records: PyTree) -> list[Array]:
        """Returns the tables, one row per step."""
        tables: dict[int, list[Array]] = {}
        for slot, leaf in zip(self.slots, jax.tree.leaves(records), strict=True):
            tables.setdefault(slot.table, []).append(leaf.reshape(len(leaf), -1))
        return [jnp.concatenate(tables[number], axis=1) for number in sorted(tables)]

    def unpack(self, tables: Sequence[np.ndarray]) -> PyTree:
        """Returns the records, as views of the tables where these can be."""
        return jax.tree.unflatten(self.structure, self.last(tables, len(self.slots)))

    def last(self, tables: Sequence[np.ndarray], number: int) -> list[np.ndarray]:
        """Returns so many of the last arrays of the records."""
        slots = self.slots[len(self.slots) - number :]
        cut = lambda slot: tables[slot.table][:, slot.start : slot.stop]
        return [cut(slot).reshape(len(tables[slot.table]), *slot.shape) for slot in slots]


class Program:
    """A function of pytrees, `(plan, state, limit, until) -> (state, records, number)`, compiled for flat lists.

    Programs of equal plans share their compiled code, also in later runs.
    """

    def __init__(self, advance: Advance, plan: PyTree, state: PyTree):
        self.arrays, static, self._structure = _parted(plan)
        self.state_structure = jax.tree.structure(state)
        kinds = tuple(map(type, static))  # because 1 == 1.0 == True
        self._call, self._made = _compiled(advance, (static, kinds, self._structure), self.state_structure)

    def replace(self, plan: PyTree) -> None:
        """Takes the arrays of another plan of the same structure."""
        self.arrays = _parted(plan)[0]

    def __call__(self, state: list[Array], limit: PyTree, until: int) -> tuple[list[Array], list[np.ndarray]]:
        """Returns the state after a chunk of steps, and the tables of their records, copied to the host."""
        state, tables, number = self._call(self.arrays, state, limit, np.int32(until))
        done = int(number)
        return state, [np.array(table[:done] if done < len(table) else table) for table in map(np.asarray, tables)]

    @property
    def layout(self) -> Layout:
        """The layout of the tables, known after the first call."""
        return self._made["layout"]


def _parted(plan: PyTree) -> tuple[list[Array], tuple[Any, ...], Any]:
    """Returns the arrays of a pytree, its other leaves with `None` in place of arrays, and its structure."""
    leaves, structure = jax.tree.flatten(plan)
    arrays = [leaf for leaf in leaves if eqx.is_array(leaf)]
    return arrays, tuple(_ARRAY if eqx.is_array(leaf) else leaf for leaf in leaves), structure


class _Array:
    """The place of an array."""


_ARRAY = _Array()


@functools.lru_cache(maxsize=128)
def _compiled(
    advance: Advance, plan: tuple[Any, ...], state_structure: Any
) -> tuple[Callable[..., Any], dict[str, Layout]]:
    """Returns the compiled function, and what is known once it is traced."""
    static, _, structure = plan
    made: dict[str, Layout] = {}

    def call(arrays: list[Array], state: list[Array], limit: PyTree, until: Array) -> Any:
        rest = iter(arrays)
        whole = jax.tree.unflatten(structure, [next(rest) if leaf is _ARRAY else leaf for leaf in static])
        after, records, number = advance(whole, jax.tree.unflatten(state_structure, state), limit, until)
        made["layout"] = Layout.of(records)
        return jax.tree.leaves(after), made["layout"].pack(records), number

    return jax.jit(call), made
