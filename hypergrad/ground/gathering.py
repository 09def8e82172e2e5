"""Small arrays of a pytree in one, to be summed: apart each is a loop of its own, compiled for longer than it runs."""

from collections import defaultdict
from collections.abc import Hashable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

SMALL = 4096  # entries of an array up to which a copy of it costs less than a loop over it
LANES = 64  # of the rows into which sums are cut, so that the CPU backend vectorises them


def gathered(*trees: PyTree) -> list[tuple[Array, ...]]:
    """Returns the leaves of trees of one form side by side, to be summed over: the small ones in rows, then zeros.

    On several devices, between which joined arrays would move, they stay apart.
    """
    rows = list(zip(*map(jax.tree.leaves, trees), strict=True))
    if jax.device_count() > 1:
        return rows
    groups: dict[Hashable, list[tuple[Array, ...]]] = defaultdict(list)
    for number, row in enumerate(rows):
        groups[tuple(leaf.dtype for leaf in row) if row[0].size <= SMALL else number].append(row)
    return [tuple(map(_folded, zip(*group, strict=True))) if len(group) > 1 else group[0] for group in groups.values()]


def _folded(leaves: tuple[Array, ...]) -> Array:
    """Returns the entries of small arrays of one type in rows of `LANES`, the last filled with zeros."""
    size = sum(leaf.size for leaf in leaves)
    return jnp.concatenate([*map(jnp.ravel, leaves), jnp.zeros(-size % LANES, leaves[0].dtype)]).reshape(-1, LANES)
