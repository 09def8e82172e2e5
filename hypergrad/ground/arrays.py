"""Arrays of NumPy, taken over as arrays of JAX."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ensembles.ground.axes import is_known, refuse_unfit
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
