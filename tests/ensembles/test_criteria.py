"""Criteria of predictions that do not fit the folds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ensembles as ens

DATA, KEY = jnp.arange(1.0, 5.0), jax.random.key(0)
FOLDS = ens.make_folds(np.array([[1, 1, 0, 0], [0, 0, 1, 1]]), DATA, np.eye(4))
PREDICTIONS = jnp.ones((2, 3, 4)) + jnp.arange(3.0)[:, None] / 10


def test_points_that_predictions_lack_are_refused_and_inside_jit_give_nan():
    with pytest.raises(ValueError, match="predictions have 3 points, and point 3 of folds is not among them"):
        ens.fold_chi2(PREDICTIONS[..., :3], FOLDS)
    found, expected = jax.jit(ens.fold_chi2)(PREDICTIONS[..., :3], FOLDS), ens.fold_chi2(PREDICTIONS, FOLDS)
    np.testing.assert_allclose(found, [expected[0], np.nan], rtol=1e-6)


def test_more_replicas_than_there_are_are_refused():
    loss = ens.outer_loss(ens.mean_loss, lambda model, hparams, inputs: model * inputs, num=10)
    with pytest.raises(ValueError, match="num must be from 1 to the 6 replicas there are, got 10"):
        loss(jnp.ones((6, 1)), None, (DATA, FOLDS), KEY)


@pytest.mark.parametrize("counted", [(True, True, True, True), (True, True, True, False)])
def test_a_point_in_units_of_zero_is_refused_where_it_counts(counted):
    factor, mask = jnp.eye(4), jnp.array(counted)
    measure = lambda scale: ens.negative_log_probability(PREDICTIONS[0], DATA, factor, mask, scale=scale)
    scale = jnp.array([1.0, 2.0, 3.0, 0.0])
    if counted[3]:
        with pytest.raises(ValueError, match="scale is 0 at a point"):
            measure(scale)
    else:
        np.testing.assert_array_equal(measure(scale), measure(scale.at[3].set(7.0)))


@pytest.mark.parametrize(
    ("covariance", "error", "message"),
    [(np.zeros((0, 0)), ValueError, "no points"), (jnp.eye(2, dtype=jnp.float16), TypeError, "float32 or float64")],
)
def test_a_covariance_that_cannot_be_factored_is_named(covariance, error, message):
    with pytest.raises(error, match=f"covariance .*{message}"):
        ens.cholesky(covariance)
