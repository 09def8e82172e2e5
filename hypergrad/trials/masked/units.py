"""The active units of masked networks."""

import math
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from ensembles.ground import memory

from ...ground.checks import function, integer, random_key, real, shown

KINDS = {"widths": "an integer or an integer per layer", "depth": "an integer"}
SIZES = tuple(integer(name, least=1) for name in ("out_size", "max_width", "max_depth"))

START = (random_key(), function("activation", "of an array"), real("gain"))


def as_arrays(widths: ArrayLike, depth: ArrayLike, max_width: int, max_depth: int) -> tuple[Array, Array]:
    """Returns widths of shape (max_depth,) and the depth as int32 arrays.

    **Raises** `TypeError` or `ValueError` naming what is no integer from 1 to its maximum. Tracers pass.
    """
    return (
        jnp.broadcast_to(integers("widths", widths, max_width, ((), (max_depth,))), (max_depth,)),
        integers("depth", depth, max_depth, ((),)),
    )


def integers(name: str, value: ArrayLike, most: int, shapes: tuple[tuple[int, ...], ...] | None = None) -> Array:
    """Returns integers from 1 to `most`, of one of some shapes or of any with one axis, as int32."""
    if not isinstance(value, jax.core.Tracer):
        try:
            found = np.asarray(value)
            found = found.astype(float) if jnp.issubdtype(found.dtype, jnp.floating) else found
        except Exception:  # of an object that says it is an array
            found = np.asarray(None)
        if found.dtype.kind == "f" and np.all(np.isfinite(found)) and np.array_equal(found, np.round(found)):
            value = found = found.astype(int)
        wanted = f"{KINDS[name]} from 1 to {most} (max_{name.removesuffix('s')})"
        if found.dtype.kind not in "iu":
            raise TypeError(f"{name} must be {wanted}, got {shown(value)}")
        fits = found.ndim == 1 if shapes is None else found.shape in shapes
        if not fits or found.size == 0 or found.min() < 1 or found.max() > most:
            raise ValueError(f"{name} must be {wanted}, got {shown(value)}")
    return jnp.asarray(value, jnp.int32)


def refuse_too_large(shapes: Sequence[tuple[int, ...]], **sizes: int) -> None:
    """Raises `MemoryError` naming the largest of the sizes where weights of these shapes need more than there is.

    Drawing them takes three times their own memory.
    """
    needed = 4 * 3 * sum(map(math.prod, shapes))
    memory.refuse_too_large(needed, max(sizes, key=lambda name: sizes[name]), "drawing the weights")


def masks(widths: Array, depth: Array, max_width: int) -> Array:
    """Returns the active units, of shape (max_depth, max_width)."""
    layers = jnp.arange(widths.shape[0])
    return (jnp.arange(max_width) < widths[:, None]) & (layers < depth)[:, None]


def fans(inputs: int, widths: Array) -> Array:
    """Returns the units before each layer, of shape (max_depth,)."""
    return jnp.concatenate([jnp.full(1, inputs, widths.dtype), widths[:-1]])


def flagged(model: Any, flags: tuple[ArrayLike, ...]) -> Any:
    """Returns a tree like the floating arrays of a masked model that holds the flags, broadcast to their shapes."""
    arrays = lambda model: (model.first, model.hidden, model.biases, model.last, model.last_bias)
    wide = [jnp.broadcast_to(flag, like.shape) for flag, like in zip(flags, arrays(model), strict=True)]
    return eqx.tree_at(arrays, eqx.filter(model, eqx.is_inexact_array), wide)
