"""Trials and replicas that failed, among those that did not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ensembles as ens


def test_replicas_that_failed_do_not_widen_the_band():
    losses, ranking, of_replicas = [1.0, 1.1, 2.0], [3.0, 1.0, 0.0], np.array([[0.8, 1.2], [1, 1], [2, 2]])
    expected = ens.one_sigma(losses, ranking, sigma="replicas", replica_losses=of_replicas)
    failed = np.c_[of_replicas, [np.nan, 1, 2], [np.inf, 1, 2]]
    found = ens.one_sigma(losses, ranking, sigma="replicas", replica_losses=failed)
    assert found.sigma == expected.sigma and found.chosen.tolist() == expected.chosen.tolist() == [1, 0]
    with pytest.raises(ValueError, match="replica_losses of the best trial, 0, are not finite"):
        ens.one_sigma(losses, ranking, sigma="replicas", replica_losses=np.full((3, 2), np.nan))


@pytest.mark.parametrize("unit", [1e-200, 1.0, 1e200, 1e307])
def test_outliers_are_the_same_in_every_unit(unit):
    values = np.r_[np.linspace(0.9, 1.1, 30), 9.0, np.nan]
    np.testing.assert_array_equal(ens.outliers(unit * values), np.arange(32) >= 30)


def test_a_set_that_is_not_there_is_refused_and_inside_jit_has_nan():
    rates = jnp.arange(3.0)
    with pytest.raises(ValueError, match="sets must be indices from 0 to 2"):
        ens.take_sets(rates, jnp.array([0, 3]))
    np.testing.assert_array_equal(jax.jit(ens.take_sets)(rates, jnp.array([1, 3])), [1.0, np.nan])
