"""Lengths of pytrees, in units of a power of two: no square leaves the range of its type."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from .tree import cast_like, in_single, vdot


def norm(tree: PyTree) -> Array:
    """Returns the Euclidean norm over all leaves, also where squares are too small or too large for their type."""
    _, size, power = _measured(tree)
    return jnp.ldexp(size, power)


def unit(tree: PyTree) -> tuple[PyTree, Array]:
    """Returns the tree at length 1, zero where it is zero, and its norm."""
    scaled, size, power = _measured(tree)
    direction = optax.tree.scale(1 / jnp.where(size > 0, size, 1), scaled)
    return cast_like(direction, tree), jnp.ldexp(size, power)


def _measured(tree: PyTree) -> tuple[PyTree, Array, Array]:
    """Returns the tree over 2^k in at least single precision, the norm of that, and k."""
    tree = in_single(tree)
    power = exponent(tree)
    scaled = shifted(tree, -power)
    return scaled, jnp.sqrt(jnp.real(vdot(scaled, scaled))), power


def exponent(tree: PyTree) -> Array:
    """Returns k with the largest part of a number in [2^(k-1), 2^k); 0 where all are zero, or one is not finite."""
    parts = jax.tree.map(lambda leaf: (leaf.real, leaf.imag) if jnp.iscomplexobj(leaf) else leaf, tree)
    largest = optax.tree.max(jax.tree.map(lambda leaf: jnp.max(jnp.abs(leaf), initial=0), parts))
    return jnp.where(jnp.isfinite(largest), jnp.frexp(largest)[1], 0)


def shifted(tree: PyTree, power: Array) -> PyTree:
    """Returns the tree times 2^power, to the last digit."""
    whole = lambda leaf: jax.lax.complex(jnp.ldexp(leaf.real, power), jnp.ldexp(leaf.imag, power))
    return jax.tree.map(lambda leaf: whole(leaf) if jnp.iscomplexobj(leaf) else jnp.ldexp(leaf, power), tree)
