"""Paths of training: recorded, rounded to be kept, and interpolated between stored states."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, PyTree

from ...ground.tree import differentiable, join, map_moving, split, without_buffers
from ...inner import InnerState
from ...training import Training


def stored(state: InnerState, storage: DTypeLike | None) -> InnerState:
    """Returns the state as it is kept: its arrays of real numbers rounded to the type `storage`, if that is given.

    Single numbers, integers, flags and keys stay as they are: they cost nothing and cannot be rounded. What no step
    changes is left out.
    """
    state = without_buffers(state)
    if storage is None:
        return state
    rounds = lambda leaf: leaf.ndim > 0 and jnp.issubdtype(leaf.dtype, jnp.floating)
    return jax.tree.map(lambda leaf: leaf.astype(storage) if rounds(leaf) else leaf, state)


def restored(state: InnerState, like: InnerState) -> InnerState:
    """Returns a kept state in the types of `like`, with what no step changes."""
    return map_moving(lambda wanted, leaf: leaf.astype(wanted.dtype), like, state)


def record(
    training: Training, state: InnerState, steps: Array, storage: DTypeLike | None = None
) -> tuple[InnerState, InnerState]:
    """Returns the state after the given steps, and the states before each, stacked, rounded to the type `storage`."""
    return jax.lax.scan(lambda state, t: (training.step(state, t), stored(state, storage)), state, steps)


def discrete(state: InnerState) -> PyTree:
    """Returns the integers, flags and keys in the states of solver and layers, which cannot be interpolated."""
    return split((state.solver, state.partitioned.layer_state))[1]


def with_discrete(state: InnerState, leaves: PyTree) -> InnerState:
    """Returns the state with other integers, flags and keys."""
    solver, layer_state = join(differentiable((state.solver, state.partitioned.layer_state)), leaves)
    partitioned = state.partitioned.moved(state.partitioned.arrays, layer_state)
    return dataclasses.replace(state, partitioned=partitioned, solver=solver)


def interpolate(start: InnerState, end: InnerState, offset: Array, length: Array) -> InnerState:
    """Returns the state `offset` steps after `start` on the straight line to `end`, `length` steps away.

    Moments are interpolated like weights. What is discrete keeps its first value, and so does what is infinite at one
    of the ends, as the best loss before the first one is.
    """

    def line(a: Array, b: Array) -> Array:
        if not jnp.issubdtype(a.dtype, jnp.inexact):
            return a
        way = b - a
        return jnp.where(jnp.isfinite(way), a + offset.astype(a.dtype) / length.astype(a.dtype) * way, a)

    return map_moving(line, start, end)


def interpolate_cubic(
    points: tuple[InnerState, InnerState, InnerState, InnerState], offset: Array, length: Array
) -> InnerState:
    """Returns the state `offset` steps after the first of four, on the cubic through all.

    The four are the states at 0, 1, `length` and `length` + 1. Exact at both ends and after the first step. It stays
    within the range of the four, so that second moments stay positive.
    """

    def curve(*four: Array) -> Array:
        if jnp.issubdtype(four[0].dtype, jnp.complexfloating):
            return jax.lax.complex(real_curve(*map(jnp.real, four)), real_curve(*map(jnp.imag, four)))
        return real_curve(*four) if jnp.issubdtype(four[0].dtype, jnp.floating) else four[0]

    def real_curve(*four: Array) -> Array:
        nodes = jnp.stack([jnp.zeros_like(length), jnp.ones_like(length), length, length + 1]).astype(four[0].dtype)
        gaps, distance = nodes[:, None] - nodes, offset.astype(four[0].dtype) - nodes
        others = ~jnp.eye(4, dtype=bool)
        factors = jnp.where(others, distance / jnp.where(gaps == 0, 1, gaps), 1)
        at_node = jnp.arange(4) == jnp.argmin(jnp.abs(distance))  # the first, where two nodes are one
        weights = jnp.where(jnp.any(distance == 0), at_node, jnp.prod(factors, axis=1))
        value = sum(weight * point for weight, point in zip(weights.astype(four[0].dtype), four, strict=True))
        low, high = (functools.reduce(bound, four) for bound in (jnp.minimum, jnp.maximum))
        return jnp.where(jnp.isfinite(high - low), jnp.clip(value, low, high), four[0])

    return map_moving(curve, *points)
