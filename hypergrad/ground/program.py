"""The compiled steps of a run, called with flat lists of arrays: taking pytrees apart costs more than a short step."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

SMALL = 1024  # entries up to which an array travels together with others
NEVER = (jnp.int2, jnp.uint2)  # which XLA cannot bring together on a CPU: it ends the process
LARGE = 2**24  # bytes of a state from which its memory is worth more than what a call that fails leaves of it

Advance = Callable[[PyTree, PyTree, PyTree, Array], tuple[PyTree, PyTree, Array]]


class Slot(NamedTuple):
    """The place of an array: a table, the columns there, `None` for all of it, and the shape without common axes."""

    table: int
    columns: tuple[int, int] | None
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
    """The way in which a pytree of arrays, whose first `axes` axes are common to all, is packed into few tables.

    Arrays of one type with at most `small` entries each are the columns of one table. Others are tables of their own.
    """

    structure: Any
    slots: tuple[Slot, ...]
    axes: int

    @classmethod
    def of(cls, tree: PyTree, axes: int = 1, small: int = SMALL) -> "Layout":
        """Returns the layout of such a tree."""
        leaves, structure = jax.tree.flatten(tree)
        shared: dict[Any, tuple[int, int]] = {}  # of each type, its table and how many columns that has
        numbers, slots = itertools.count(), []
        for leaf in leaves:
            shape = leaf.shape[axes:]
            size = math.prod(shape)
            if size > small or jnp.issubdtype(leaf.dtype, jax.dtypes.extended) or leaf.dtype in NEVER:
                slots.append(Slot(next(numbers), None, shape))
                continue
            table, start = shared[leaf.dtype] if leaf.dtype in shared else (next(numbers), 0)
            shared[leaf.dtype] = table, start + size
            slots.append(Slot(table, (start, start + size), shape))
        return cls(structure, tuple(slots), axes)

    def pack(self, tree: PyTree, module: Any = jnp) -> list[Any]:
        """Returns the tables; `module` is that of the shared ones, `numpy` or `jax.numpy`."""
        tables: dict[int, list[Any]] = {}
        for slot, leaf in zip(self.slots, jax.tree.leaves(tree), strict=True):
            if slot.columns is not None:
                leaf = module.asarray(leaf)
                leaf = leaf.reshape((*leaf.shape[: self.axes], -1))
            tables.setdefault(slot.table, []).append(leaf)
        alone = {slot.table for slot in self.slots if slot.columns is None}
        join = lambda number, parts: parts[0] if number in alone else module.concatenate(parts, axis=self.axes)
        return [join(number, parts) for number, parts in sorted(tables.items())]

    def unpack(self, tables: Sequence[Any]) -> PyTree:
        """Returns the tree, as views of the tables where these can be."""
        return jax.tree.unflatten(self.structure, [self.leaf(tables, slot) for slot in self.slots])

    def leaf(self, tables: Any, slot: Slot) -> Any:
        """Returns the array in one slot of tables by number."""
        table = tables[slot.table]
        if slot.columns is None:
            return table
        start, stop = slot.columns
        return table[..., start:stop].reshape((*table.shape[: self.axes], *slot.shape))

    def last(self, tables: Sequence[Any], number: int) -> list[Any]:
        """Returns so many of the last arrays."""
        return [self.leaf(tables, slot) for slot in self.slots[len(self.slots) - number :]]


class Program:
    """A function of pytrees, `(plan, state, limit, take) -> (state, records, number)`, compiled for flat lists.

    Programs of equal plans share their compiled code, also in later runs. A `packed` program takes small arrays of the
    state together. It takes a large state as donated, whose memory is written over.
    """

    def __init__(self, advance: Advance, plan: PyTree, state: PyTree, packed: bool = False):
        self.arrays, static, self._structure = _parted(plan)
        leaves = jax.tree.leaves(state)
        # Arrays on several devices are not to be brought together.
        together = packed and all(len(leaf.devices()) == 1 for leaf in leaves)
        self.packing = Layout.of(state, 0, SMALL if together else -1)
        self.donates = packed and sum(leaf.nbytes for leaf in leaves) >= LARGE
        self._device = next((leaf.device for leaf in leaves if together and leaf.committed), None)
        kinds = tuple(map(type, static))  # because 1 == 1.0 == True
        self._call, self._made = _compiled(advance, (static, kinds, self._structure), self.packing, self.donates)
        self._takes: dict[int, Array] = {}

    def replace(self, plan: PyTree) -> None:
        """Takes the arrays of another plan of the same structure."""
        self.arrays = _parted(plan)[0]

    def pack(self, state: PyTree) -> list[Array]:
        """Returns the tables of a state. Its large arrays are themselves tables."""
        tables = self.packing.pack(state, np)
        return [jax.device_put(t, self._device) if n in self._shared else t for n, t in enumerate(tables)]

    def unpack(self, tables: list[Array]) -> PyTree:
        """Returns the state. Tables of their own are its arrays; the others are copied."""
        host = [np.array(table) if number in self._shared else table for number, table in enumerate(tables)]
        leaves = [self.packing.leaf(host, slot) for slot in self.packing.slots]
        small = [index for index, slot in enumerate(self.packing.slots) if slot.columns is not None]
        for index, leaf in zip(small, jax.device_put([leaves[index] for index in small], self._device), strict=True):
            leaves[index] = leaf
        return jax.tree.unflatten(self.packing.structure, leaves)

    def own(self, tables: list[Array]) -> list[Array]:
        """Returns copies of the tables that somebody else holds, the large arrays of a state."""
        return [table if number in self._shared else jnp.copy(table) for number, table in enumerate(tables)]

    def entry(self, tables: list[Array], choose: Callable[[PyTree], Any]) -> np.ndarray:
        """Returns one small array of the state on the host: `choose` finds it in a tree of that form."""
        slot = choose(jax.tree.unflatten(self.packing.structure, self.packing.slots))
        return self.packing.leaf({slot.table: np.asarray(tables[slot.table])}, slot)

    @functools.cached_property
    def _shared(self) -> set[int]:
        return {slot.table for slot in self.packing.slots if slot.columns is not None}

    def __call__(self, tables: list[Array], limit: PyTree, take: int, into: list[Any]) -> None:
        """Appends to `into` the state, the tables of records and the number of a call of at most `take` steps.

        No interrupt comes between the call and the list.
        """
        if take not in self._takes:
            self._takes[take] = jnp.int32(take)
        into.extend(map(self._call, (self.arrays,), (tables,), (limit,), (self._takes[take],)))

    @property
    def layout(self) -> Layout:
        """The layout of the records, known after the first call."""
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
    advance: Advance, plan: tuple[Any, ...], packing: Layout, donate: bool
) -> tuple[Callable[..., Any], dict[str, Layout]]:
    """Returns the compiled function, and what is known once it is traced."""
    static, _, structure = plan
    made: dict[str, Layout] = {}

    def call(arrays: list[Array], tables: list[Array], limit: PyTree, take: Array) -> Any:
        rest = iter(arrays)
        whole = jax.tree.unflatten(structure, [next(rest) if leaf is _ARRAY else leaf for leaf in static])
        after, records, number = advance(whole, packing.unpack(tables), limit, take)
        made["layout"] = Layout.of(records)
        return packing.pack(after), made["layout"].pack(records), number

    return jax.jit(call, donate_argnums=(1,) if donate else ()), made
