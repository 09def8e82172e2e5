"""Proximal steps, projections and bounds of inner solvers, as one map."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

PROXIMAL = ("hyperparams_prox", "hyperparams_proj", "bounds")  # what the updates of such solvers take after the state

Prox = Callable[[PyTree, PyTree, Array | float], PyTree]  # (arrays, hparams, scaling) -> arrays


def prox_of(options: Mapping[str, Any]) -> Prox:
    """Returns (v, λ, γ) -> argmin_w ½‖w - v‖² + γ g(w, λ), with g the penalty or constraint that the options name."""
    if "bounds" in options:
        return lambda v, hparams, scaling: jax.tree.map(jnp.clip, v, *bounds_of(options, hparams))
    if "projection" in options:
        return lambda v, hparams, scaling: options["projection"](v, hparams)
    if "block_prox" in options:
        blocks = jax.vmap(options["block_prox"], in_axes=(0, None, None))
        return lambda v, hparams, scaling: blocks(v, hparams, scaling)
    return options.get("prox", lambda v, hparams, scaling: v)


def bounds_of(options: Mapping[str, Any], hparams: PyTree) -> PyTree:
    """Returns the pair (lower, upper), each like the weights."""
    bounds = options["bounds"]
    return bounds(hparams) if callable(bounds) else bounds
