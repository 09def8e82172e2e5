"""Minibatches drawn inside a loss."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .ground.checks import checked, integer, random_key, shown
from .ground.memory import refuse_too_large
from .ground.tree import named_leaves


@checked(random_key("key"), integer("size", least=1))
def minibatch(key: Array, data: PyTree, size: int) -> PyTree:
    """Draws `size` rows independently and uniformly, with replacement.

    The mean of a loss over the batch is an unbiased estimate of its mean over `data`. Every array of `data` has the
    same leading axis. *Cost*: one gather, whatever the size of the data.

    **Raises** `ValueError` where `size` is not positive or the leading axes differ.
    """
    rows = _num_rows(data, size)
    index = jax.random.randint(key, (size,), 0, rows)
    return jax.tree.map(lambda leaf: leaf[index], data)


@checked(random_key("key"), integer("size", least=1))
def epoch_batch(key: Array, t: Array | int, data: PyTree, size: int) -> PyTree:
    """Returns rows `t * size ... (t + 1) * size - 1` of an endless stream in which every row comes once per epoch.

    Epoch e is the permutation of all rows drawn from `fold_in(key, e)`; a batch may straddle two epochs. `key` is the
    same for all `t`. *Cost*: two permutations of all rows per call.

    **Raises** `ValueError` where `size` is not positive or larger than the data, or the leading axes differ.
    """
    rows = _num_rows(data, size)
    if size > rows:
        raise ValueError(f"size is {size} but the data have {rows} rows: an epoch cannot fill a batch")
    turns, t = jnp.divmod(jnp.asarray(t, jnp.int32), rows)  # t * size would overflow int32 on a long run
    position = t * size + jnp.arange(size, dtype=jnp.int32)
    epoch, row = position // rows, position % rows
    orders = [jax.random.permutation(jax.random.fold_in(key, turns * size + e), rows) for e in (epoch[0], epoch[-1])]
    index = jnp.where(epoch == epoch[0], orders[0][row], orders[1][row])
    return jax.tree.map(lambda leaf: leaf[index], data)


def _num_rows(data: PyTree, size: int) -> int:
    """Returns the length of the leading axis that all arrays share. Raises where `size` rows cannot be drawn."""
    for path, leaf in named_leaves(data, "data"):
        if not isinstance(leaf, np.ndarray | jax.Array):
            raise TypeError(f"{path} must be an array, got {shown(leaf)}")
    rows = {path: jnp.shape(leaf)[:1] for path, leaf in named_leaves(data, "data")}
    if len(set(rows.values())) != 1 or () in rows.values():
        raise ValueError(f"all arrays of data must have the same leading axis, got {rows}")
    (found,) = next(iter(rows.values()))
    if found == 0:
        raise ValueError("data has no rows")
    row = sum(leaf.size // found * leaf.dtype.itemsize for leaf in jax.tree.leaves(data))
    refuse_too_large(size * row, "size", f"a batch of {size} rows")
    return found
