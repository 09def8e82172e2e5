"""The ensemble as a population: unbiased for the smoothed criterion, with the standard error that it says."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ensembles as ens
import hypergrad as hg
from hypergrad.testing.laws import KEY

SIGMA, REPLICAS = 0.3, 8
H = {"a": jnp.array([0.4, -0.7]), "b": jnp.asarray(1.1)}
CURVED = jnp.array([[1.0, 0.3], [0.3, 2.0]])


def quadratic(h, own):
    return h["a"] @ CURVED @ h["a"] / 2 + h["b"] * h["a"][0] + own * h["b"] ** 2


def estimate(key, keep=None):
    """Replicas differ by the weight of h_b², and by an offset each."""
    own = jnp.linspace(0.5, 1.5, REPLICAS)
    stacked = ens.perturbed_hparams(key, H, SIGMA, REPLICAS)
    losses = jax.vmap(quadratic)(stacked, own) + 0.2 * jnp.sin(5.0 * jnp.arange(REPLICAS))
    return ens.population_gradient(losses, stacked, SIGMA, keep)


@pytest.mark.slow
def test_the_mean_over_draws_is_the_gradient_and_its_spread_the_standard_error():
    """A quadratic has the same gradient smoothed or not."""
    found = jax.jit(jax.vmap(estimate))(jax.random.split(KEY, 40_000))
    exact = jax.grad(lambda h: quadratic(h, 1.0))(H)
    for name in H:
        mean, spread = np.mean(found.gradient[name], 0), np.std(found.gradient[name], 0)
        np.testing.assert_array_less(np.abs(mean - exact[name]), 4 * spread / np.sqrt(40_000))
        said = np.sqrt(np.mean(np.asarray(found.standard_error[name]) ** 2, 0))
        np.testing.assert_allclose(said, spread, rtol=0.05)


def test_a_pair_counts_if_both_of_its_replicas_do():
    keep = jnp.ones(REPLICAS, bool).at[2].set(False).at[REPLICAS // 2].set(False)
    stacked = ens.perturbed_hparams(KEY, H, SIGMA, REPLICAS)
    losses = jax.vmap(quadratic)(stacked, jnp.ones(REPLICAS)).at[2].set(jnp.nan)
    whole = [1, 3, 1 + REPLICAS // 2, 3 + REPLICAS // 2]  # pairs 0 and 2 are gone
    gradient = jax.jit(ens.population_gradient)
    found = gradient(losses, stacked, SIGMA, keep)
    part = jax.tree.map(lambda leaf: leaf[np.array(whole)], stacked)
    expected = gradient(losses[np.array(whole)], part, SIGMA)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-12), found, expected)


@pytest.mark.slow
def test_one_training_of_an_ensemble_gives_the_hypergradient_of_its_criterion():
    """Ridge regression of replicas with their own targets, against exact reverse mode; the draw is 4,000 replicas."""
    rng = np.random.default_rng(2)
    x, truth, replicas = rng.normal(size=(12, 3)), np.array([1.0, -2.0, 0.5]), 4_000
    targets = x @ truth + 0.3 * rng.normal(size=(replicas, 12))
    inner = lambda w, h, data, key: jnp.mean((x @ w - data) ** 2) / 2 + jnp.sum(jnp.exp(h) * w**2) / 2
    outer = lambda w, h, data, key: jnp.sum((w - truth) ** 2)
    solver, h, sigma = hg.OptaxSolver(optax.sgd(0.2), 30), jnp.array([-1.0, -0.5, 0.0]), 0.05
    start = jnp.zeros((replicas, 3))
    problem = lambda axes: hg.BilevelProblem(
        ens.replicate_loss(inner, 0, axes), ens.replicate_loss(outer, 0, axes), targets, targets
    )
    stacked = ens.perturbed_hparams(KEY, h, sigma, replicas)
    trained = hg.evaluate(solver, problem(0), start, stacked, KEY).params
    losses = jax.vmap(lambda w: outer(w, None, None, None))(trained)
    found = ens.population_gradient(losses, stacked, sigma)
    _, exact = hg.value_and_hypergrad(problem(None), hg.Reverse(solver, check=None))(h, start, KEY)
    error = np.abs(found.gradient - exact / replicas)
    assert np.linalg.norm(found.standard_error) < 0.3 * np.linalg.norm(exact / replicas)
    np.testing.assert_array_less(error, 4 * found.standard_error)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ens.perturbed_hparams(KEY, H, SIGMA, 5), "num must be an even integer of at least 4"),
        (lambda: ens.perturbed_hparams(KEY, H, 0.0, 4), "sigma"),
        (lambda: ens.population_gradient(jnp.ones(3), {"a": jnp.ones((4, 2))}, SIGMA), "losses must have shape"),
        (lambda: ens.population_gradient(jnp.ones(5), jnp.ones((5, 2)), SIGMA), "perturbed must hold pairs"),
    ],
)
def test_arguments_that_do_not_fit_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
