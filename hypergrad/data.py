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
    epoch, first = _divmod_of_product(jnp.asarray(t, jnp.uint32), size, rows)
    row = first + jnp.arange(size, dtype=jnp.uint32)
    here, after = (jax.random.permutation(jax.random.fold_in(key, epoch + later), rows) for later in (0, 1))
    index = jnp.where(row < rows, here[row % rows], after[row % rows])
    return jax.tree.map(lambda leaf: leaf[index], data)


def _divmod_of_product(t: Array, size: int, rows: int) -> tuple[Array, Array]:
    """Returns `divmod(t * size, rows)` for t below 2³¹ and `size` <= `rows`, where the product may leave 32 bits.

    Bit by bit of t, the highest first: neither the quotient nor twice the remainder leaves 32 bits.
    """
    quotient = remainder = jnp.zeros_like(t)
    for bit in reversed(range(31)):
        quotient, remainder = _carry(2 * quotient, 2 * remainder, rows)
        quotient, remainder = _carry(quotient, remainder + (t >> bit & 1) * jnp.uint32(size), rows)
    return quotient, remainder


def _carry(quotient: Array, remainder: Array, rows: int) -> tuple[Array, Array]:
    over = remainder >= rows
    return quotient + over, jnp.where(over, remainder - jnp.uint32(rows), remainder)


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
