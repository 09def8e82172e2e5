"""Paths of training: recorded, rounded to be kept, and interpolated between stored states."""

import functools

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, DTypeLike

from ...inner import InnerState
from ...training import Training


def stored(state: InnerState, storage: DTypeLike | None) -> InnerState:
    """Returns the state as it is kept: rounded to the type `storage`, if that is given."""
    return state if storage is None else optax.tree.cast(state, storage)


def restored(state: InnerState, like: InnerState) -> InnerState:
    """Returns a kept state in the types of `like`."""
    return jax.tree.map(lambda leaf, wanted: leaf.astype(wanted.dtype), state, like)


def check_storage(storage: DTypeLike | None) -> None:
    """Raises `TypeError` for a type that cannot hold a path."""
    if storage is not None and not jnp.issubdtype(storage, jnp.floating):
        raise TypeError(f"storage must be a floating type such as jnp.float16, got {storage!r}")


def record(
    training: Training, state: InnerState, steps: Array, storage: DTypeLike | None = None
) -> tuple[InnerState, InnerState]:
    """Returns the state after the given steps, and the states before each, stacked, rounded to the type `storage`."""
    return jax.lax.scan(lambda state, t: (training.step(state, t), stored(state, storage)), state, steps)


def interpolate(start: InnerState, end: InnerState, place: Array, length: Array) -> InnerState:
    """Returns the state `place` steps after `start` on the straight line to `end`, `length` steps away.

    Moments are interpolated like weights; counters, which grow evenly, stay integers; flags keep their first value.
    """

    def line(a, b):
        if jnp.issubdtype(a.dtype, jnp.inexact):
            return a + place.astype(a.dtype) / length.astype(a.dtype) * (b - a)
        if jnp.issubdtype(a.dtype, jnp.integer):
            whole, rest = jnp.divmod(b - a, length.astype(a.dtype))  # place * (b - a) could leave the integers
            return a + place.astype(a.dtype) * whole + place.astype(a.dtype) * rest // length.astype(a.dtype)
        return a

    return jax.tree.map(line, start, end)


def interpolate_cubic(
    points: tuple[InnerState, InnerState, InnerState, InnerState], place: Array, length: Array
) -> InnerState:
    """Returns the state `place` steps after the first of four, on the cubic through all.

    The four are the states at 0, 1, `length` and `length` + 1. Exact at both ends and after the first step. It stays
    within the range of the four, so that second moments stay positive.
    """

    def curve(*four):
        if not jnp.issubdtype(four[0].dtype, jnp.inexact):
            return interpolate(four[0], four[2], place, length)
        nodes = jnp.stack([jnp.zeros_like(length), jnp.ones_like(length), length, length + 1]).astype(four[0].dtype)
        gaps, distance = nodes[:, None] - nodes, place.astype(four[0].dtype) - nodes
        others = ~jnp.eye(4, dtype=bool)
        factors = jnp.where(others, distance / jnp.where(gaps == 0, 1, gaps), 1)
        at_node = jnp.arange(4) == jnp.argmin(jnp.abs(distance))  # the first, where two nodes are one
        weights = jnp.where(jnp.any(distance == 0), at_node, jnp.prod(factors, axis=1))
        value = sum(weight * point for weight, point in zip(weights.astype(four[0].dtype), four, strict=True))
        low, high = (functools.reduce(bound, four) for bound in (jnp.minimum, jnp.maximum))
        return jnp.clip(value, low, high)

    return jax.tree.map(curve, *points)
