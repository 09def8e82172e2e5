"""The small leaves of a tree, joined to be summed."""

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad.ground.gathering import SMALL, gathered

TREE = {
    "large": jnp.arange(SMALL + 1.0, dtype=jnp.float32),
    "small": [jnp.arange(6, dtype=jnp.float32).reshape(2, 3), jnp.float32(7.0), jnp.zeros((0, 2), jnp.float32)],
    "short": [jnp.ones(3, jnp.float16), jnp.ones((1, 2), jnp.float16)],
}


def test_nothing_is_lost_and_only_zeros_are_added_where_leaves_are_gathered(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    found = gathered(TREE, jax.tree.map(lambda leaf: 2 * leaf, TREE))
    entries = np.concatenate([np.ravel(one) for one, _ in found])
    expected = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(TREE)])
    np.testing.assert_array_equal(np.sort(entries[entries != 0]), np.sort(expected[expected != 0]))
    assert len(found) == 3
    for one, other in found:
        np.testing.assert_array_equal(2 * one, other)


def test_on_several_devices_all_leaves_stay_apart():
    assert jax.device_count() > 1 and len(gathered(TREE)) == len(jax.tree.leaves(TREE))
