"""Leaves of a tree, each with the path that a user would write."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import PyTree


def named_leaves(tree: PyTree, name: str, is_leaf: Callable[[Any], bool] | None = None) -> list[tuple[str, Any]]:
    """Returns `(path, leaf)` pairs, each path as a user would write it: `hparams['l2'][0]`.

    **Raises** `ValueError` naming a tree that JAX cannot take apart, such as a dictionary with keys of several types.
    """
    try:
        leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    except Exception as error:  # of somebody's class, too
        raise ValueError(f"{name} is no tree that JAX can take apart: {error}") from error
    return [(name + jax.tree_util.keystr(path), leaf) for path, leaf in leaves]
