"""The norm and the direction of a tree whatever the size of its numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad.ground.gathering import SMALL
from hypergrad.ground.units import norm, unit


@pytest.mark.parametrize("kind", [jnp.float32, jnp.float64, jnp.complex64])
@pytest.mark.parametrize("exponent", [-120, 0, 120])
def test_the_norm_is_that_of_numpy_also_where_squares_leave_the_range(kind, exponent):
    draws = np.random.default_rng(0).normal(size=(2, 7))
    numbers = draws[0] + 1j * draws[1] if kind == jnp.complex64 else draws[0]
    tree = {"a": jnp.asarray(numbers[:3], kind) * 2.0**exponent, "b": [jnp.asarray(numbers[3:], kind) * 2.0**exponent]}
    found, (direction, size) = jax.jit(norm)(tree), jax.jit(unit)(tree)
    np.testing.assert_allclose(float(found) / 2.0**exponent, np.linalg.norm(numbers), rtol=1e-6)
    assert found == size
    np.testing.assert_allclose(direction["a"], numbers[:3] / np.linalg.norm(numbers), rtol=1e-6)


@pytest.mark.parametrize("tree", [(), jnp.zeros(0), jnp.zeros(3), {"a": None}])
def test_nothing_has_the_norm_zero(tree):
    assert norm(tree) == unit(tree)[1] == 0


def test_what_is_not_finite_has_no_norm():
    assert jnp.isnan(norm(jnp.array([1.0, jnp.nan]))) and jnp.isinf(norm(jnp.array([1.0, -jnp.inf])))


def lines(size, number):
    """Returns the lines of the program of the norm of so many arrays."""
    return jax.jit(norm).lower([jnp.ones(size)] * number).compile().as_text().count("\n")


def test_programs_grow_with_the_number_of_arrays_and_not_with_its_square():
    few, more, many = (lines(SMALL + 1, number) for number in (8, 16, 32))
    assert many - more < 2.5 * (more - few)


def test_small_arrays_make_no_loops_of_their_own(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    jax.clear_caches()
    few, many = (lines(SMALL, number) for number in (8, 32))
    assert many - few < 3 * (32 - 8)
