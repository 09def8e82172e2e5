"""Arrays that a program makes for itself, placed like those that a user has spread over devices."""

from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from ensembles.ground.leaves import named_leaves


def placed_with(tree: PyTree, weights: PyTree, data: PyTree) -> PyTree:
    """Returns the tree with its arrays on the devices of weights and data, so that no later step moves them.

    Arrays of a shape in which all weights are spread alike, such as their moments, are spread so; others that nobody
    has placed are on every device. Without this the first step would place them, and the second be compiled anew. All
    stay where nothing is spread, or is spread over several processes.
    """
    spread = [leaf for leaf in jax.tree.leaves((weights, data)) if _is_spread(leaf)]
    if not spread:
        return tree
    everywhere = NamedSharding(spread[0].sharding.mesh, PartitionSpec())
    arrays = [leaf for leaf in jax.tree.leaves(weights) if isinstance(leaf, jax.Array)]
    like = {leaf.shape: leaf.sharding for leaf in arrays if _is_spread(leaf)}
    for leaf in arrays:
        if leaf.shape in like and not leaf.sharding.is_equivalent_to(like[leaf.shape], leaf.ndim):
            del like[leaf.shape]

    def place(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or isinstance(leaf, jax.core.Tracer):
            return leaf
        if leaf.shape in like and leaf.sharding.is_fully_replicated:
            return jax.device_put(leaf, like[leaf.shape])
        return leaf if leaf.committed else jax.device_put(leaf, everywhere)

    return jax.tree.map(place, tree)


def refuse_explicit(**arguments: PyTree) -> None:
    """Raises `ValueError` naming an array on explicit axes of a mesh, outside of `jax.set_mesh`.

    What a program makes for itself is then of no mesh, and JAX joins nothing of the two.
    """
    if not jax.sharding.get_abstract_mesh().empty:
        return
    for name, tree in arguments.items():
        for path, leaf in named_leaves(tree, name):
            if _is_spread(leaf) and AxisType.Explicit in leaf.sharding.mesh.axis_types:
                raise ValueError(
                    f"{path} lies on a mesh with explicit axes, as jax.make_mesh makes them: make it with axis_types="
                    "(jax.sharding.AxisType.Auto,) for every axis, or call this inside jax.set_mesh(mesh)"
                )


def _is_spread(leaf: Any) -> bool:
    if not isinstance(leaf, jax.Array) or isinstance(leaf, jax.core.Tracer):
        return False
    sharding = leaf.sharding
    return isinstance(sharding, NamedSharding) and len(sharding.device_set) > 1 and sharding.is_fully_addressable
