"""The active units of masked networks."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike


def check_sizes(**sizes: int) -> None:
    """Raises `ValueError` naming the first size that is no positive integer."""
    for name, value in sizes.items():
        if isinstance(value, bool) or not (isinstance(value, int) and value >= 1):
            raise ValueError(f"{name} must be a positive integer, got {value!r}")


def as_arrays(widths: ArrayLike, depth: ArrayLike, max_depth: int) -> tuple[Array, Array]:
    """Returns widths of shape (max_depth,) and the depth as int32 arrays."""
    return jnp.broadcast_to(jnp.asarray(widths, jnp.int32), (max_depth,)), jnp.asarray(depth, jnp.int32)


def masks(widths: Array, depth: Array, max_width: int) -> Array:
    """Returns the active units, of shape (max_depth, max_width)."""
    layers = jnp.arange(widths.shape[0])
    return (jnp.arange(max_width) < widths[:, None]) & (layers < depth)[:, None]


def fans(inputs: int, widths: Array) -> Array:
    """Returns the units before each layer, of shape (max_depth,)."""
    return jnp.concatenate([jnp.full(1, inputs, widths.dtype), widths[:-1]])


def spread(model: Any, flags: tuple[ArrayLike, ...]) -> Any:
    """Returns a tree like the floating arrays of a masked model that holds the flags, broadcast to their shapes."""
    arrays = lambda model: (model.first, model.hidden, model.biases, model.last, model.last_bias)
    wide = [jnp.broadcast_to(flag, like.shape) for flag, like in zip(flags, arrays(model), strict=True)]
    return eqx.tree_at(arrays, eqx.filter(model, eqx.is_inexact_array), wide)
