"""Minibatches drawn inside a loss, and the rows of a pytree of arrays."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ensembles.ground.axes import leading_axis
from ensembles.ground.memory import refuse_too_large

from ..ground.checks import checked, integer, random_key, shown
from ..ground.tree import named_leaves
from .order import epoch_rows, new_order


@checked(random_key(), integer("size", least=1))
def minibatch(key: Array, data: PyTree, size: int) -> PyTree:
    """Draws `size` rows independently and uniformly, with replacement.

    The mean of a loss over the batch is an unbiased estimate of its mean over `data`. Every array of `data` has the
    same leading axis. *Cost*: one gather, whatever the size of the data.

    **Raises** `ValueError` where `size` is not positive or the leading axes differ.

    **Example**

        >>> inputs, targets = hg.minibatch(key, (x, y), 5)
        >>> inputs.shape, targets.shape
        ((5, 3), (5,))
    """
    rows = num_rows(data)
    refuse_large_batch(data, size)
    return take(data, jax.random.randint(key, (size,), 0, rows))


@checked(random_key(), integer("t", least=0, traced=True), integer("size", least=1))
def epoch_batch(key: Array, t: Array | int, data: PyTree, size: int) -> PyTree:
    """Returns rows `t * size ... (t + 1) * size - 1` of an endless stream in which every row comes once per epoch.

    Every epoch has an order of its own, drawn from `key`; a batch may straddle two epochs. `key` is the same for all
    `t`, which is below 2³¹. *Cost*: one gather and O(`size`) integer operations, whatever the size of the data.

    **Raises** `ValueError` where `size` is not positive or larger than the data, or the leading axes differ.

    **Example**

        >>> sorted(int(row) for t in range(2) for row in hg.epoch_batch(key, t, jnp.arange(6), 3))
        [0, 1, 2, 3, 4, 5]
    """
    rows = num_rows(data)
    refuse_large_batch(data, size)
    if size > rows:
        raise ValueError(f"size is {size} but the data have {rows} rows: an epoch cannot fill a batch")
    return take(data, epoch_rows(new_order(key), jnp.asarray(t, jnp.uint32), size, rows))


def take(data: PyTree, rows: Array) -> PyTree:
    """Returns rows of all arrays, by indices within their leading axis."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf).at[rows].get(mode="promise_in_bounds"), data)


def num_rows(data: PyTree, name: str = "data") -> int:
    """Returns the length of the leading axis that all arrays share. Raises where they do not, or it is 0."""
    leaves = named_leaves(data, name)
    for path, leaf in leaves:
        if not isinstance(leaf, np.ndarray | jax.Array):
            raise TypeError(f"{path} must be an array, got {shown(leaf)}")
    return leading_axis(leaves, name, "row")


def refuse_large_batch(data: PyTree, size: int) -> None:
    """Raises `MemoryError` naming `size` where so many rows need more memory than there is."""
    row = sum(leaf.size // len(leaf) * leaf.dtype.itemsize for leaf in jax.tree.leaves(data))
    refuse_too_large(size * row, "size", f"a batch of {size} rows")
