"""Lengths of pytrees, in units of a power of two: no square leaves the range of its type."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from .gathering import gathered
from .tree import cast_like, in_single, vdot


def norm(tree: PyTree) -> Array:
    """Returns the Euclidean norm over all leaves, also where squares are too small or too large for their type."""
    _, size, power = _measured(gathered(in_single(tree)))
    return shifted(size, power)


def unit(tree: PyTree) -> tuple[PyTree, Array]:
    """Returns the tree at length 1, zero where it is zero, and its norm."""
    scaled, size, power = _measured(tree)
    direction = optax.tree.scale(1 / jnp.where(size > 0, size, 1), scaled)
    return cast_like(direction, tree), shifted(size, power)


def _measured(tree: PyTree) -> tuple[PyTree, Array, Array]:
    """Returns the tree over 2^k in at least single precision, the norm of that, and k."""
    tree = in_single(tree)
    power = exponent(tree)
    scaled = shifted(tree, -power)
    return scaled, jnp.sqrt(jnp.real(vdot(scaled, scaled))), power


def exponent(tree: PyTree) -> Array:
    """Returns k with the largest part of a number in [2^(k-1), 2^k); 0 where all are zero, or one is not finite."""
    parts = jax.tree.map(lambda leaf: (leaf.real, leaf.imag) if jnp.iscomplexobj(leaf) else leaf, tree)
    largest = optax.tree.max([jnp.max(jnp.abs(leaf), initial=0) for (leaf,) in gathered(parts)])
    power = jnp.where(jnp.isfinite(largest), jnp.frexp(largest)[1], 0)
    # A product, which XLA computes once, see `all_finite`: else all leaves are searched anew for each that is shifted.
    return jnp.dot(
        jnp.stack([power, power]).astype(jnp.float32), jnp.full(2, 0.5, jnp.float32), precision="highest"
    ).astype(jnp.int32)


def shifted(tree: PyTree, power: Array) -> PyTree:
    """Returns the tree times 2^power, to the last digit, by two factors that are both normal numbers."""
    half = power >> 1
    kinds = {jnp.finfo(leaf.dtype).dtype for leaf in jax.tree.leaves(tree)}  # of the parts of complex numbers
    factors = {kind: (_power_of_two(half, kind), _power_of_two(power - half, kind)) for kind in kinds}

    def times(leaf: Array) -> Array:
        if jnp.iscomplexobj(leaf):
            return jax.lax.complex(times(leaf.real), times(leaf.imag))
        one, other = factors[leaf.dtype]
        return leaf * one * other

    return jax.tree.map(times, tree)


def _power_of_two(power: Array, kind: jnp.dtype) -> Array:
    """Returns 2^power, or 0 or infinity, made of its bits; `jnp.ldexp` is forty operations."""
    numbers = jnp.finfo(kind)
    above = jnp.clip(power + (numbers.maxexp - 1), 0, 2 * numbers.maxexp - 1).astype(f"int{numbers.bits}")
    return jax.lax.bitcast_convert_type(above << numbers.nmant, kind)
