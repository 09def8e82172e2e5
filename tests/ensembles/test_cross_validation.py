"""K-fold criteria: every row validates once, and the value is that of K separate trainings."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ensembles as ens
import hypergrad as hg
from hypergrad.testing.tolerances import relative_error

KEY = jax.random.key(0)


def inner_loss(w, hparams, data, key):
    return jnp.mean((data["x"] @ w - data["y"]) ** 2) / 2 + jnp.exp(hparams) * jnp.sum(w**2) / 2


def outer_loss(w, hparams, data, key):
    return jnp.mean((data["x"] @ w - data["y"]) ** 2) / 2


def rows(number):
    rng = np.random.default_rng(0)
    return {"x": rng.normal(size=(number, 3)), "y": rng.normal(size=number)}


@pytest.mark.parametrize("number", [20, 23])
def test_every_row_validates_once_and_trains_elsewhere(number):
    folds = ens.cross_validation(inner_loss, outer_loss, {"id": jnp.arange(number)}, 5, KEY)
    train, valid = folds.train["id"], folds.valid["id"]
    assert valid.shape == (5, 4) and train.shape == (5, number - 4)
    assert len(set(valid.ravel().tolist())) == 20
    for inside, outside in zip(train.tolist(), valid.tolist(), strict=True):
        assert sorted(inside + outside) == list(range(number))
    assert not np.array_equal(np.sort(valid.ravel()), valid.ravel())  # shuffled


def test_value_and_hypergradient_are_the_mean_of_ridge_regressions():
    data, log_l2 = rows(20), jnp.asarray(-1.0)
    folds = ens.cross_validation(inner_loss, outer_loss, data, 5, KEY)

    def closed(log_l2):
        def one(train, valid):
            gram = train["x"].T @ train["x"] / 16 + jnp.exp(log_l2) * jnp.eye(3)
            return outer_loss(jnp.linalg.solve(gram, train["x"].T @ train["y"] / 16), log_l2, valid, KEY)

        return jnp.mean(jax.vmap(one)(folds.train, folds.valid))

    estimator = hg.Reverse(hg.OptaxSolver(optax.sgd(0.3), 400))
    value, slope = hg.value_and_hypergrad(hg.BilevelProblem(*folds), estimator)(log_l2, jnp.zeros((5, 3)), KEY)
    expected = jax.jit(jax.value_and_grad(closed))(log_l2)
    assert relative_error(value, expected[0]) < 1e-9 and relative_error(slope, expected[1]) < 1e-6


@pytest.mark.parametrize(
    ("data", "num_folds", "error", "message"),
    [
        (rows(3), 4, ValueError, "num_folds is 4 but data has 3 rows"),
        (rows(3), 1, ValueError, "num_folds must be"),
        ({"x": np.ones((4, 2)), "y": np.ones(5)}, 2, ValueError, "data must have one leading axis"),
        ({}, 2, TypeError, "data must be arrays"),
    ],
)
def test_nonsense_is_refused(data, num_folds, error, message):
    with pytest.raises(error, match=message):
        ens.cross_validation(inner_loss, outer_loss, data, num_folds, KEY)
