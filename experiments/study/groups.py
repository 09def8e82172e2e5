"""Trees of log-variances that broadcast to the weights: few hyperparameters or many."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import PyTree


def per_weight(weights: PyTree) -> PyTree:
    """Returns one log-variance per weight."""
    return weights


def per_input(weights: PyTree) -> PyTree:
    """Returns one per input of a layer, and one per vector of biases: automatic relevance determination."""
    return jax.tree.map(lambda leaf: leaf[:1] if leaf.ndim > 1 else jnp.zeros((), leaf.dtype), weights)


def per_layer(weights: PyTree) -> PyTree:
    """Returns one per array of weights or biases."""
    return jax.tree.map(lambda leaf: jnp.zeros((), leaf.dtype), weights)


def one(weights: PyTree) -> PyTree:
    """Returns one for all weights."""
    return jnp.zeros((), jax.tree.leaves(weights)[0].dtype)


GROUPS: dict[str, Callable[[PyTree], PyTree]] = {
    "one": one,
    "layers": per_layer,
    "inputs": per_input,
    "weights": per_weight,
}
