"""Stein's estimate of the risk: linear smoothers in closed form, the lasso by its support, and hypergradients."""

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import optax
import pytest

import hypergrad as hg
from ensembles import probed_targets, sure
from hypergrad.testing import laws

RNG = np.random.default_rng(0)
X = RNG.normal(size=(20, 4))
Y = X @ np.array([1.0, -2.0, 0.0, 0.5]) + 0.5 * RNG.normal(size=20)
VARIANCE = 0.25


def fit(w, h, data, key):
    """Both models, each on its targets."""
    return jnp.sum((w @ data["x"].T - data["y"]) ** 2) / 40


def risk(w, h, data, key):
    return sure(w @ data["x"].T, data["y"], VARIANCE)


def test_ridge_has_the_trace_of_its_smoother_and_its_hypergradient():
    targets = probed_targets(jax.random.key(1), jnp.asarray(Y), 0.1)
    ridge = lambda w, h, data, key: fit(w, h, data, key) + jnp.exp(h) * jnp.sum(w**2) / 2
    data = {"x": X, "y": targets}
    problem = hg.BilevelProblem(ridge, risk, data, data)
    estimator = hg.Implicit(hg.OptaxSolver(optax.sgd(0.5), 500), hg.Dense())
    h = jnp.asarray(-1.0)
    value, found = hg.value_and_hypergrad(problem, estimator)(h, jnp.zeros((2, 4)), laws.KEY)
    delta = (targets[1] - targets[0]) / 0.1

    def exact(h):
        smoother = X @ jnp.linalg.solve(X.T @ X / 20 + jnp.exp(h) * jnp.eye(4), X.T / 20)
        return jnp.mean((smoother @ Y - Y) ** 2) - VARIANCE + 2 * VARIANCE * delta @ smoother @ delta / 20

    np.testing.assert_allclose([value, found], jax.jit(jax.value_and_grad(exact))(h), rtol=1e-8)


def test_the_degrees_of_freedom_of_the_lasso_are_its_support_on_average():
    prox = lambda w, h, scaling: jaxopt.prox.prox_lasso(w, h, scaling)
    inner = hg.JaxoptSolver(jaxopt.ProximalGradient, prox=prox, stepsize=0.3, maxiter=2000)

    @jax.jit
    @jax.vmap
    def value(key):
        targets = probed_targets(key, jnp.asarray(Y), 1e-4)
        data = {"x": jnp.asarray(X), "y": targets}
        problem = hg.BilevelProblem(fit, risk, data, data)
        estimate = hg.evaluate(inner, problem, jnp.zeros((2, 4)), jnp.asarray(0.4), key)
        return estimate.value, estimate.params[0]

    values, weights = value(jax.random.split(jax.random.key(0), 200))
    w = np.asarray(weights[0])
    assert 0 < np.sum(w != 0) < 4
    expected = np.mean((X @ w - Y) ** 2) - VARIANCE + 2 * VARIANCE * np.sum(w != 0) / 20
    assert abs(np.mean(values) - expected) <= 5 * np.std(values) / np.sqrt(200)
    assert np.std(values) / np.sqrt(200) < 0.2 * 2 * VARIANCE / 20  # a wrong support by one would be seen


def test_arguments_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="predictions must have shape"):
        sure(jnp.ones((1, 3)), jnp.ones((2, 3)), 1.0)
    with pytest.raises(ValueError, match="step must be a finite number above 0"):
        probed_targets(jax.random.key(0), jnp.ones(3), 0.0)
    with pytest.raises(ValueError, match="step 1e-17 is lost in the rounding of targets"):
        probed_targets(jax.random.key(0), jnp.ones(3), 1e-17)
