"""Small arrays of a pytree in one vector: apart each is a loop of its own, compiled for longer than it runs."""

from collections import defaultdict
from collections.abc import Callable, Hashable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

SMALL = 4096  # entries of an array up to which a copy of it costs less than a loop over it
LANES = 64  # of the rows into which sums are cut, so that the CPU backend vectorises them


def gathered(*trees: PyTree) -> list[tuple[Array, ...]]:
    """Returns the leaves of trees of one form side by side, to be summed over: the small ones in rows, then zeros."""
    rows = _rows(*trees)
    return [
        tuple(map(_folded, columns)) if len(columns[0]) > 1 else tuple(leaf for (leaf,) in columns)
        for columns in (list(zip(*(rows[number] for number in group), strict=True)) for group in _groups(rows))
    ]


def packing(like: PyTree) -> tuple[Callable[[PyTree], list[Array]], Callable[[list[Array]], PyTree]]:
    """Returns the function that joins the small leaves of a tree like this one to vectors, and its inverse."""
    rows, structure = _rows(like), jax.tree.structure(like)
    groups, shapes = _groups(rows), [leaf.shape for (leaf,) in rows]

    def pack(tree: PyTree) -> list[Array]:
        leaves = jax.tree.leaves(tree)
        return [
            jnp.concatenate([jnp.ravel(leaves[number]) for number in group]) if len(group) > 1 else leaves[group[0]]
            for group in groups
        ]

    def unpack(packed: list[Array]) -> PyTree:
        leaves: dict[int, Array] = {}
        for group, joined in zip(groups, packed, strict=True):
            if len(group) == 1:
                leaves[group[0]] = joined
                continue
            stop = 0
            for number in group:
                start, stop = stop, stop + rows[number][0].size
                leaves[number] = jax.lax.slice_in_dim(joined, start, stop).reshape(shapes[number])
        return jax.tree.unflatten(structure, [leaves[number] for number in range(len(rows))])

    return pack, unpack


def _rows(*trees: PyTree) -> list[tuple[Array, ...]]:
    return list(zip(*map(jax.tree.leaves, trees), strict=True))


def _groups(rows: list[tuple[Array, ...]]) -> list[list[int]]:
    """Returns the numbers of the leaves that belong together, those of large ones alone."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        groups[tuple(leaf.dtype for leaf in row) if row[0].size <= SMALL else number].append(number)
    return list(groups.values())


def _folded(leaves: tuple[Array, ...]) -> Array:
    """Returns the entries of small arrays of one type in rows of `LANES`, the last filled with zeros."""
    size = sum(leaf.size for leaf in leaves)
    return jnp.concatenate([*map(jnp.ravel, leaves), jnp.zeros(-size % LANES, leaves[0].dtype)]).reshape(-1, LANES)
