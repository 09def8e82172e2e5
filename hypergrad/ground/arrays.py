"""Arrays of NumPy, taken over as arrays of JAX."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ensembles.ground.axes import is_known
from ensembles.ground.leaves import named_leaves


def taken_over(tree: PyTree, name: str) -> PyTree:
    """Returns a tree with arrays of NumPy as arrays of JAX, and all else as it is.

    The copy is complete before this returns: JAX copies in the background, or not at all, and what the caller writes
    into his array later would be read.

    **Raises** what `refuse_unfit` raises.
    """
    return jax.tree.unflatten(jax.tree.structure(tree), [_taken(path, leaf) for path, leaf in named_leaves(tree, name)])


def _taken(path: str, leaf: Any) -> Any:
    if isinstance(leaf, np.ma.MaskedArray) or not (isinstance(leaf, np.ndarray | np.generic) and is_known(leaf.dtype)):
        return leaf
    refuse_unfit(path, leaf)
    return jax.block_until_ready(jnp.array(leaf)) if isinstance(leaf, np.ndarray) else leaf


def refuse_unfit(path: str, leaf: np.ndarray | np.generic) -> None:
    """Raises `ValueError` naming the path of numbers that become others in the type in which JAX takes them.

    These are integers out of range, which JAX wraps, and floating numbers of which some would be infinite or all zero.
    """
    dtype = jax.dtypes.canonicalize_dtype(leaf.dtype)
    if dtype == leaf.dtype:
        return
    with np.errstate(all="ignore"):
        taken = leaf.astype(dtype)
    if jnp.issubdtype(dtype, jnp.inexact):
        lost = np.isfinite(leaf) & ~np.isfinite(taken) | (leaf != 0) & ~np.any(taken)
    else:
        lost = taken != leaf
    if number := int(np.sum(lost)):
        raise ValueError(
            f"{path} holds {number} numbers out of the range of {dtype}, in which JAX takes {leaf.dtype}: rescale or "
            "renumber them, or set jax_enable_x64"
        )
