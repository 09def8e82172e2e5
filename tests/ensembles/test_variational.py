"""Mean-field posteriors against the closed forms of a Bayesian linear model."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hypergrad as hg
from ensembles import MeanField, evidence_log_variance, gaussian_kl, negative_elbo, predictive_log_probs
from hypergrad.testing.tolerances import relative_error

NOISE_PRECISION = 2.0


@functools.partial(jax.jit, static_argnames=("rows", "features"))
def linear_model(seed, rows=30, features=4):
    """X, y, and log-variances h of the prior."""
    keys = jax.random.split(jax.random.key(seed), 3)
    x = jax.random.normal(keys[0], (rows, features))
    y = x @ jnp.arange(1.0, features + 1) + jax.random.normal(keys[1], (rows,))
    return x, y, jax.random.uniform(keys[2], (features,), minval=-1.0, maxval=1.0)


@jax.jit
def best_posterior(x, y, log_variance):
    """The exact mean-field optimum: m the full posterior mean, s² = 1/(α + b c)."""
    precision, b = jnp.exp(-log_variance), NOISE_PRECISION
    mean = jnp.linalg.solve(jnp.diag(precision) + b * x.T @ x, b * x.T @ y)
    variance = 1 / (precision + b * jnp.sum(x**2, 0))
    return eqx.tree_at(lambda q: q.log_std, MeanField(mean), jnp.log(variance) / 2)


def expected_log_likelihood(posterior, x, y):
    spread = jnp.sum(x**2 @ jnp.exp(2 * posterior.log_std))
    squares = jnp.sum((y - x @ posterior.mean) ** 2) + spread
    return len(y) / 2 * jnp.log(NOISE_PRECISION / (2 * jnp.pi)) - NOISE_PRECISION / 2 * squares


@jax.jit
def exact_elbo(posterior, log_variance, x, y):
    return expected_log_likelihood(posterior, x, y) - gaussian_kl(posterior, log_variance)


def log_likelihood(x, y):
    normal = lambda model: -NOISE_PRECISION / 2 * (y - x @ model) ** 2 + jnp.log(NOISE_PRECISION / (2 * jnp.pi)) / 2
    return normal


@given(seed=st.integers(0, 2**16))
def test_kl_is_the_textbook_formula(seed):
    keys = jax.random.split(jax.random.key(seed), 3)
    mean, log_std, h = (jax.random.normal(key, (5,)) for key in keys)
    posterior = eqx.tree_at(lambda q: q.log_std, MeanField(mean), log_std)
    alpha, var = np.exp(-np.asarray(h)), np.exp(2 * np.asarray(log_std))
    by_trace = 0.5 * (np.trace(np.diag(alpha * var)) + mean @ np.diag(alpha) @ mean - 5)
    by_trace += 0.5 * (np.log(np.prod(1 / alpha)) - np.log(np.prod(var)))
    np.testing.assert_allclose(gaussian_kl(posterior, h), by_trace, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.row(17)
@given(seed=st.integers(0, 2**16))
def test_the_best_elbo_is_the_evidence(seed):
    """log p(y) - max ELBO = ½ [Σ log(α + b c) - log det(D + b XᵀX)] >= 0."""
    x, y, h = linear_model(seed)
    alpha, b = jnp.exp(-h), NOISE_PRECISION
    covariance = jnp.eye(len(y)) / b + x @ jnp.diag(1 / alpha) @ x.T
    evidence = -0.5 * (
        len(y) * jnp.log(2 * jnp.pi) + jnp.linalg.slogdet(covariance)[1] + y @ jnp.linalg.solve(covariance, y)
    )
    precision = jnp.diag(alpha) + b * x.T @ x
    gap = 0.5 * (jnp.sum(jnp.log(jnp.diag(precision))) - jnp.linalg.slogdet(precision)[1])
    elbo = exact_elbo(best_posterior(x, y, h), h, x, y)
    np.testing.assert_allclose(evidence - elbo, gap, rtol=1e-8)
    assert gap >= 0


@pytest.mark.row(17)
@pytest.mark.variants(quick=["implicit"], slow=["reverse", "greedy", "drmad"])
@pytest.mark.parametrize("estimator", ["implicit", "reverse", "greedy", "drmad"])
def test_the_elbo_hypergradient_is_that_of_the_evidence(estimator):
    """The derivative dELBO/dh_i is ½ [(m_i² + s_i²) exp(-h_i) - 1] at the optimum, for every estimator."""
    x, y, h = linear_model(3)
    loss = lambda posterior, h, data, key: -exact_elbo(posterior, h, *data)
    problem = hg.BilevelProblem(loss, loss, (x, y), (x, y))
    inner = hg.OptaxSolver(optax.sgd(1e-3, 0.5), 20)
    chosen = {
        "implicit": hg.Implicit(inner, hg.CG(20, rtol=1e-12)),
        "reverse": hg.Reverse(inner),
        "greedy": hg.Greedy(inner),
        "drmad": hg.DrMAD(inner),
    }[estimator]
    optimum = best_posterior(x, y, h)
    value, hypergradient = hg.value_and_hypergrad(problem, chosen)(h, optimum, jax.random.key(0))
    envelope = -0.5 * ((optimum.mean**2 + jnp.exp(2 * optimum.log_std)) * jnp.exp(-h) - 1)
    np.testing.assert_allclose(hypergradient, envelope, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(value, -exact_elbo(optimum, h, x, y), rtol=1e-12)


@pytest.mark.parametrize("shape", [(), (3, 4)])
def test_likelihoods_that_are_not_one_per_row_are_refused(shape):
    posterior = MeanField(jnp.zeros(2))
    with pytest.raises(ValueError, match=r"log_likelihood fails .*must have shape \(any\)"):
        negative_elbo(posterior, 0.0, lambda w: jnp.sum(w) * jnp.ones(shape), jax.random.key(0), 3)


def test_sampled_elbo_and_gradient_agree_in_expectation():
    x, y, h = linear_model(5)
    posterior = MeanField(jnp.ones(4), log_std=-1.0)
    sampled = lambda q, key: negative_elbo(q, h, log_likelihood(x, y), key, len(y), num_samples=4)
    exact = lambda q: -exact_elbo(q, h, x, y) / len(y)
    draw = jax.jit(jax.vmap(lambda key: jax.value_and_grad(sampled)(posterior, key)))
    values, gradients = draw(jax.random.split(jax.random.key(1), 4000))
    draws = jnp.concatenate([values[:, None], gradients.mean, gradients.log_std], axis=1)
    truth = jax.jit(jax.grad(exact))(posterior)
    expected = jnp.concatenate([exact(posterior)[None], truth.mean, truth.log_std])
    errors = (draws.mean(0) - expected) / (draws.std(0) / jnp.sqrt(4000))
    assert jnp.all(jnp.abs(errors) < 4), errors


def test_em_step_is_a_fixed_point_and_never_lowers_the_elbo():
    x, y, h = linear_model(7)
    elbos = []
    for _ in range(200):
        posterior = best_posterior(x, y, h)
        elbos.append(float(exact_elbo(posterior, h, x, y)))
        h = evidence_log_variance(posterior).reshape(h.shape)
    assert np.all(np.diff(elbos) >= -1e-9)
    posterior = best_posterior(x, y, h)
    by_h = jax.jit(jax.grad(lambda h: exact_elbo(posterior, h, x, y)))(h)
    np.testing.assert_allclose(by_h, 0, atol=1e-6)


def test_samples_have_the_moments_of_the_posterior():
    posterior = MeanField(jnp.array([1.0, -2.0]), log_std=-0.5)
    draws = jax.jit(jax.vmap(posterior.sample))(jax.random.split(jax.random.key(0), 20_000))
    std = np.exp(-0.5)
    assert np.all(np.abs(draws.mean(0) - posterior.mean) < 4 * std / np.sqrt(20_000))
    np.testing.assert_allclose(draws.std(0), std, rtol=0.03)


def test_a_prior_may_be_any_prefix_of_the_weights():
    model = eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0))
    posterior = MeanField(model)
    full = jax.tree.map(lambda weight: jnp.full_like(weight, 0.3), posterior.weights)
    per_layer = eqx.tree_at(lambda tree: tree.layers, full, tuple(jnp.array(0.3) for _ in model.layers))
    divergence = eqx.filter_jit(gaussian_kl)
    expected = divergence(posterior, full)
    np.testing.assert_allclose(divergence(posterior, jnp.array(0.3)), expected, rtol=1e-12)
    np.testing.assert_allclose(divergence(posterior, per_layer), expected, rtol=1e-12)


def test_prediction_averages_probabilities():
    model = eqx.nn.MLP(3, 4, 8, 1, key=jax.random.key(0))
    posterior = MeanField(model, log_std=-1.0)
    x, key = jax.random.normal(jax.random.key(1), (6, 3)), jax.random.key(2)
    log_probs = lambda model: jax.nn.log_softmax(jax.vmap(model)(x))
    averaged = eqx.filter_jit(predictive_log_probs)(posterior, log_probs, key, 16)
    draw = jax.jit(lambda key: jnp.exp(log_probs(posterior.sample(key))))
    replicas = [draw(k) for k in jax.random.split(key, 16)]
    np.testing.assert_allclose(jnp.exp(averaged), sum(replicas) / 16, rtol=1e-12)


def test_a_model_without_weights_is_refused():
    with pytest.raises(ValueError, match="model"):
        MeanField({"activation": jax.nn.relu})


@pytest.mark.slow
def test_inactive_weights_have_no_distribution():
    """A masked network inside a mean-field family is the smaller network: the same divergence, nothing drawn."""
    masked = hg.trials.MaskedMLP(5, 2, 16, 3, widths=[4, 3, 9], depth=2, key=jax.random.key(0))
    prior = jnp.asarray(0.3)
    for wrap in (lambda model: model, lambda model: {"net": model, "bias": jnp.ones(2)}):
        whole, narrow = MeanField(wrap(masked)), MeanField(wrap(masked.narrow()))
        assert relative_error(gaussian_kl(whole, prior), gaussian_kl(narrow, prior)) < 1e-12
    drawn = MeanField(masked, log_std=0.0).sample(jax.random.key(1))
    leaves = map(jax.tree.leaves, (eqx.filter(drawn, eqx.is_inexact_array), masked.active_weights))
    for leaf, active in zip(*leaves, strict=True):
        assert not jnp.any(jnp.where(active, 0, leaf)) and jnp.any(jnp.where(active, leaf, 0) != 0)
    assert int(sum(jnp.sum(leaf) for leaf in jax.tree.leaves(masked.active_weights))) == int(masked.num_params)
