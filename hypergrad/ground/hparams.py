"""Hyperparameters as floating arrays."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, PyTree

from ensembles.ground.axes import refuse_no_numbers

from .arrays import taken_over
from .tree import named_leaves, strong


def as_hparams(hparams: PyTree) -> PyTree:
    """Returns hyperparameters as floating JAX arrays.

    **Raises** what `as_floating` raises, and `ValueError` naming the path of one that is not finite.
    """
    for path, leaf in named_leaves(hparams := as_floating(hparams), "hparams"):
        if not isinstance(leaf, jax.core.Tracer) and num_not_finite(leaf):
            raise ValueError(f"{path} holds values that are NaN or infinite")
    return hparams


def as_floating(hparams: PyTree) -> PyTree:
    """Returns hyperparameters as floating JAX arrays, finite or not.

    **Raises** `ValueError` where there are none, or one is empty, `TypeError` where a leaf is not a floating number;
    each names the path.
    """
    leaves = named_leaves(hparams, "hparams")
    if not leaves:
        raise ValueError("hparams has no leaves: there is nothing to learn")
    for path, leaf in leaves:
        refuse_no_numbers(path, leaf)
        is_array = isinstance(leaf, np.ndarray | np.generic | jax.Array)
        if not (jnp.issubdtype(leaf.dtype, jnp.floating) if is_array else isinstance(leaf, float)):
            kind = leaf.dtype if is_array else type(leaf).__name__
            raise TypeError(f"{path} is of type {kind}; a hyperparameter learned by gradient must be a floating number")
        if np.size(leaf) == 0:
            raise ValueError(f"{path} is empty (shape {np.shape(leaf)})")
    return strong(jax.tree.map(jnp.asarray, taken_over(hparams, "hparams")))


def num_not_finite(leaf: ArrayLike) -> int:
    """Returns the number of entries that are NaN or infinite.

    They are counted on the host, so that nothing is compiled, also not inside somebody's `jit`. An array spread over
    several processes is searched where it lies in this one.
    """
    parts: list[ArrayLike] = [leaf]
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        parts = [shard.data for shard in leaf.addressable_shards]
    return sum(int(np.sum(~np.isfinite(np.asarray(part)))) for part in parts)
