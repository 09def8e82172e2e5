"""One replica of a hundred that diverges is dropped, with its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ensembles as ens
import hypergrad as hg

KEY, POINTS = jax.random.key(0), 12


def loss(w, hparams, data, key):
    return data[2] * jnp.mean((data[0] @ w - data[1]) ** 2) + jnp.exp(hparams) * jnp.sum(w**2)


# Of the module, so that problems of one form share their compiled code.
LOSSES = (
    ens.replicate_loss(loss, (None, 0, 0), drop_failed=True),
    ens.outer_loss(ens.mean_loss, lambda w, hparams, inputs: inputs @ w, drop_failed=True),
)
SGD = ens.replicate_optimiser(optax.sgd(0.1))


def hundred(num=100, factor=1.0, stops=False):
    """Returns a hundred linear models, of which number 17 has a loss so steep that its training diverges."""
    keys = jax.random.split(KEY, 2)
    x, targets = jax.random.normal(keys[0], (POINTS, 2)), jax.random.normal(keys[1], (100, POINTS))
    steep = jnp.ones(100).at[17].set(factor)
    rows = np.delete(np.arange(100), 17) if num == 99 else np.arange(100)
    folds = ens.make_folds(np.ones((1, POINTS), bool), np.full(POINTS, 0.1), np.eye(POINTS))
    problem = hg.BilevelProblem(*LOSSES, train=(x, targets[rows], steep[rows]), valid=(x, folds))
    errors = lambda w: jnp.mean((w @ x.T - targets[rows]) ** 2, 1)
    optimiser = ens.early_stopping(SGD, errors, 5) if stops else SGD
    return problem, hg.Reverse(hg.OptaxSolver(optimiser, 60)), jnp.zeros((num, 2)), rows


@pytest.mark.slow
@pytest.mark.row(20)
@pytest.mark.parametrize(("factor", "stops"), [(1e9, False), (15.0, False), (1e9, True)])
def test_one_of_a_hundred_that_diverges_does_not_stop_the_search(factor, stops):
    problem, estimator, start, _ = hundred(factor=factor, stops=stops)
    search = hg.GradientSearch(estimator, optax.sgd(0.1))
    state = search.init(problem, start, jnp.asarray(-1.0))
    state, history = hg.run(search, problem, state, key=KEY, budget=180)
    assert np.all(np.isfinite(history.value)) and np.all(np.diff(history.hparams) != 0) and len(history) == 3
    if stops:
        return
    healthy = hundred()[0]
    value = lambda problem, start: hg.value_and_hypergrad(problem, estimator)(jnp.asarray(-1.0), start, KEY)
    params = [hg.evaluate(estimator.inner, one, start, jnp.asarray(-1.0), KEY).params for one in (problem, healthy)]
    others = np.delete(np.arange(100), 17)
    np.testing.assert_array_equal(*(np.asarray(one)[others] for one in params))
    without, _, fewer, _ = hundred(99)
    for found, expected in zip(value(problem, start), value(without, fewer), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-10)
    sizes = jnp.max(jnp.abs(params[0]), 1)
    assert np.flatnonzero(ens.outliers(sizes)).tolist() == [17]
