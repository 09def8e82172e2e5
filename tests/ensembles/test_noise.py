"""Noise of posteriors is JAX's own, bit by bit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ensembles.ground.noise import BLOCK, normal


@functools.partial(jax.jit, static_argnums=(1, 2))
def both(keys, number, dtype):
    """Noise from each key, and JAX's."""
    ours, jaxs = lambda key: normal(key, number, dtype), lambda key: jax.random.normal(key, (number,), dtype)
    return jax.vmap(ours)(keys), jax.vmap(jaxs)(keys)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("number", [0, 1, 2, 3, 4810, *range(2 * BLOCK - 1, 2 * BLOCK + 2)])
def test_noise_is_that_of_jax(number, dtype):
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(number), np.arange(3))
    ours, jaxs = both(keys, number, dtype)
    assert ours.dtype == dtype and ours.shape == (3, number)
    np.testing.assert_array_equal(ours, jaxs)


@pytest.mark.parametrize("implementation", ["rbg", "unsafe_rbg"])
def test_noise_from_other_generators_is_theirs(implementation):
    key = jax.random.key(0, impl=implementation)
    np.testing.assert_array_equal(normal(key, 5, jnp.float32), jax.random.normal(key, (5,), jnp.float32))


def test_noise_is_that_of_jax_as_it_is_configured():
    with jax.threefry_partitionable(False):
        ours, jaxs = both(jax.random.split(jax.random.key(1), 2), 7, "float32")
    np.testing.assert_array_equal(ours, jaxs)
