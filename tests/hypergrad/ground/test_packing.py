"""Trees whose small leaves are joined."""

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad.ground.packing import SMALL, gathered, packing
from hypergrad.ground.tree import form

TREE = {
    "large": jnp.arange(SMALL + 1.0, dtype=jnp.float32),
    "small": [jnp.arange(6, dtype=jnp.float32).reshape(2, 3), jnp.float32(7.0), jnp.zeros((0, 2), jnp.float32)],
    "short": [jnp.ones(3, jnp.float16), jnp.ones((1, 2), jnp.float16)],
}


def test_unpacking_undoes_packing():
    pack, unpack = packing(TREE)
    packed, back = pack(TREE), unpack(pack(TREE))
    assert len(packed) == 3
    jax.tree.map(np.testing.assert_array_equal, back, TREE)
    assert form(back) == form(TREE)


def test_nothing_is_lost_and_only_zeros_are_added_where_leaves_are_gathered():
    found = gathered(TREE, jax.tree.map(lambda leaf: 2 * leaf, TREE))
    entries = np.concatenate([np.ravel(one) for one, _ in found])
    expected = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(TREE)])
    np.testing.assert_array_equal(np.sort(entries[entries != 0]), np.sort(expected[expected != 0]))
    for one, other in found:
        np.testing.assert_array_equal(2 * one, other)
