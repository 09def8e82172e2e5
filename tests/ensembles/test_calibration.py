"""Coverage where there is hardly a spread, or none to speak of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ensembles as ens

LEVELS = jnp.array([0.5, 0.9])
PREDICTIONS = jnp.ones((3, 4)) + jnp.arange(3.0)[:, None] / 10


def test_a_prediction_without_spread_covers_its_own_datum_alone():
    found = ens.coverage(jnp.ones((3, 4)), jnp.array([1.0, 1.0, 1.0, 2.0]), LEVELS)
    np.testing.assert_array_equal(found, 0.75)


def test_a_prediction_that_is_not_finite_has_no_coverage_unless_it_does_not_count():
    broken = PREDICTIONS.at[0, 0].set(jnp.nan)
    data, mask, keep = jnp.ones(4), jnp.array([0, 1, 1, 1]), jnp.array([0, 1, 1])
    assert jnp.all(jnp.isnan(ens.coverage(broken, data, LEVELS))) and jnp.isnan(ens.calibration_error(broken, data))
    expected = ens.coverage(PREDICTIONS, data, LEVELS, mask=mask)
    np.testing.assert_array_equal(ens.coverage(broken, data, LEVELS, mask=mask), expected)
    assert jnp.all(jnp.isfinite(ens.coverage(broken, data, LEVELS, keep=keep)))


def test_one_replica_that_counts_has_no_coverage():
    keep = jnp.array([1, 0, 0])
    with pytest.raises(ValueError, match="keep leaves one replica"):
        ens.coverage(PREDICTIONS, jnp.ones(4), LEVELS, keep=keep)
    inside = jax.jit(lambda keep: ens.coverage(PREDICTIONS, jnp.ones(4), LEVELS, keep=keep))
    assert jnp.all(jnp.isnan(inside(keep)))


def test_bias_and_variance_in_the_unit_of_the_data_need_no_matrix():
    points = 10**6
    found = ens.bias_variance(jnp.ones((2, points)), jnp.zeros(points))
    assert (found.bias, found.variance) == (1, 0)
