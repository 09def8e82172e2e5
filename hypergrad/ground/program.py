"""The compiled steps of a run, called with flat lists of arrays: taking pytrees apart costs more than a short step."""

import collections
import copy
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
WORDS = {  # as which numbers of other types travel, bit for bit
    jnp.dtype(kind): jnp.dtype(word)
    for word, kinds in {"uint32": ("float32", "int32"), "uint64": ("float64", "int64")}.items()
    for kind in kinds
}
LARGE = 2**24  # bytes of a state from which its memory is worth more than what a call that fails leaves of it

Advance = Callable[[PyTree, PyTree, PyTree, Array], tuple[PyTree, "Records", Array]]


class Slot(NamedTuple):
    """The place of an array: a table, the columns there, `None` for all of it; shape without common axes, and type."""

    table: int
    columns: tuple[int, int] | None
    shape: tuple[int, ...]
    dtype: Any


@dataclasses.dataclass(frozen=True)
class Layout:
    """The way in which a pytree of arrays, whose first `axes` axes are common to all, is packed into few tables.

    Arrays with at most `small` entries each are the columns of one table, where their types have as many bits. Others
    are tables of their own.
    """

    structure: Any
    slots: tuple[Slot, ...]
    axes: int

    @classmethod
    def of(cls, tree: PyTree, axes: int = 1, small: int = SMALL) -> "Layout":
        """Returns the layout of such a tree."""
        leaves, structure = jax.tree.flatten(tree)
        sizes = [math.prod(leaf.shape[axes:]) for leaf in leaves]
        kinds = [None if _is_alone(leaf, size, small) else leaf.dtype for leaf, size in zip(leaves, sizes, strict=True)]
        columns = _first_columns(kinds, sizes)
        numbers, tables, slots = itertools.count(), dict[Any, int](), []
        for leaf, kind, size in zip(leaves, kinds, sizes, strict=True):
            if kind is None:
                slots.append(Slot(next(numbers), None, leaf.shape[axes:], leaf.dtype))
                continue
            if _word(kind) not in tables:
                tables[_word(kind)] = next(numbers)
            place = columns[kind], columns[kind] + size
            slots.append(Slot(tables[_word(kind)], place, leaf.shape[axes:], kind))
            columns[kind] += size
        return cls(structure, tuple(slots), axes)

    def pack(self, tree: PyTree, module: Any = jnp) -> list[Any]:
        """Returns the tables; `module` is that of the shared ones, `numpy` or `jax.numpy`."""
        tables: dict[int, Any] = {}
        for slot, leaf in zip(self.slots, jax.tree.leaves(tree), strict=True):
            if slot.columns is None:
                tables[slot.table] = leaf
                continue
            leaf = module.asarray(leaf)
            part = leaf.reshape((*leaf.shape[: self.axes], -1))
            tables.setdefault(slot.table, {}).setdefault(slot.dtype, []).append(part)
        join = lambda parts: parts[0] if len(parts) == 1 else module.concatenate(parts, axis=self.axes)
        # Those of one type first: a program then takes all of their bits at once.
        shared = lambda parts: join([_as_bits(join(found), _word(kind)) for kind, found in parts.items()])
        return [shared(found) if isinstance(found, dict) else found for _, found in sorted(tables.items())]

    def unpack(self, tables: Sequence[Any]) -> PyTree:
        """Returns the tree, as views of the tables where these can be."""
        return jax.tree.unflatten(self.structure, [self.leaf(tables, slot) for slot in self.slots])

    def leaf(self, tables: Any, slot: Slot) -> Any:
        """Returns the array in one slot of tables by number."""
        table = tables[slot.table]
        if slot.columns is None:
            return table
        start, stop = slot.columns
        return _as_bits(table[..., start:stop].reshape((*table.shape[: self.axes], *slot.shape)), slot.dtype)

    def last(self, tables: Sequence[Any], number: int) -> list[Any]:
        """Returns so many of the last arrays."""
        return [self.leaf(tables, slot) for slot in self.slots[len(self.slots) - number :]]


def _is_alone(leaf: Any, size: int, small: int) -> bool:
    return size > small or jnp.issubdtype(leaf.dtype, jax.dtypes.extended) or leaf.dtype in NEVER


def _first_columns(kinds: Sequence[Any], sizes: Sequence[int]) -> dict[Any, int]:
    """Returns where the arrays of each type begin in their table: those of one type stand side by side."""
    widths, ends = collections.Counter[Any](), collections.Counter[Any]()
    for kind, size in zip(kinds, sizes, strict=True):
        widths[kind] += size
    columns = {}
    for kind, width in widths.items():
        columns[kind] = ends[_word(kind)]
        ends[_word(kind)] += width
    return columns


def _word(dtype: Any) -> Any:
    """Returns the type as which numbers of another travel."""
    return WORDS.get(dtype, dtype)


def _as_bits(array: Any, dtype: Any) -> Any:
    """Returns an array of NumPy or JAX, its bits taken for numbers of another type as wide."""
    if array.dtype == dtype:
        return array
    return array.view(dtype) if isinstance(array, np.ndarray) else jax.lax.bitcast_convert_type(array, dtype)


class Records(NamedTuple):
    """The room for what is kept of some steps, in tables of which every step writes a row."""

    layout: Layout
    tables: list[Array]

    @classmethod
    def of(cls, step: PyTree, number: int) -> "Records":
        """Returns the room for so many; `step` has the form of one."""
        layout = Layout.of(step, 0)
        rows = jax.eval_shape(layout.pack, step)
        tables = [jnp.zeros((number, *row.shape), row.dtype) for row in rows]
        return cls(dataclasses.replace(layout, axes=1), tables)

    def written(self, index: Array, step: PyTree) -> list[Array]:
        """Returns the tables with a step in one row."""
        rows = dataclasses.replace(self.layout, axes=0).pack(step)
        put = lambda table, row: jax.lax.dynamic_update_index_in_dim(table, row, index, 0)
        return [put(table, row) for table, row in zip(self.tables, rows, strict=True)]


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

    def at(self, plan: PyTree) -> "Program":
        """Returns the same program with the arrays of another plan of the same structure."""
        program = copy.copy(self)
        program.replace(plan)
        return program

    def pack(self, state: PyTree) -> list[Array]:
        """Returns the tables of a state. Its large arrays are themselves tables."""
        tables = self.packing.pack(state, np)
        return [jax.device_put(t, self._device) if n in self._shared else t for n, t in enumerate(tables)]

    def unpack(self, tables: list[Array]) -> PyTree:
        """Returns the state. Tables of their own are its arrays; the others are copied."""
        small = iter(_small_leaves(self.packing)({n: tables[n] for n in self._shared}) if self._shared else ())
        leaves = [tables[slot.table] if slot.columns is None else next(small) for slot in self.packing.slots]
        return jax.tree.unflatten(self.packing.structure, leaves)

    def own(self, tables: list[Array]) -> list[Array]:
        """Returns copies of the tables that somebody else holds, the large arrays of a state."""
        return [table if number in self._shared else jnp.copy(table) for number, table in enumerate(tables)]

    def entry(self, tables: list[Array], choose: Callable[[PyTree], Any]) -> np.ndarray:
        """Returns one small array of the state on the host: `choose` finds it in a tree of that form."""
        slot = choose(self._slots)
        return self.packing.leaf({slot.table: np.asarray(tables[slot.table])}, slot)

    @functools.cached_property
    def _slots(self) -> PyTree:
        return jax.tree.unflatten(self.packing.structure, self.packing.slots)

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
def _small_leaves(packing: Layout) -> Callable[[dict[int, Any]], list[Array]]:
    """Returns the function from shared tables to the arrays in them, one call of the device for all."""
    slots = [slot for slot in packing.slots if slot.columns is not None]
    return jax.jit(lambda tables: [packing.leaf(tables, slot) for slot in slots])


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
        made["layout"] = records.layout
        return packing.pack(after), records.tables, number

    return jax.jit(call, donate_argnums=(1,) if donate else ()), made
