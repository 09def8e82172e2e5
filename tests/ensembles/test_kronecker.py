"""Kronecker factors of the Laplace approximation: exact for linear layers, with exact derivatives everywhere."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypergrad as hg
from ensembles import evidence
from hypergrad.testing import laws
from hypergrad.testing.problems import Case
from hypergrad.testing.tolerances import relative_error

ROWS, INPUTS, OUTPUTS = 9, 3, 2
RNG = np.random.default_rng(5)
X, Y = RNG.normal(size=(ROWS, INPUTS)), RNG.normal(size=(ROWS, OUTPUTS))
W = jnp.asarray(RNG.normal(size=(OUTPUTS, INPUTS)))
NOISE = evidence.Gaussian(Y, -0.7)
FULL, KRONECKER = evidence.Laplace(), evidence.Laplace(evidence.Kronecker())
PRIORS = {
    "one": jnp.asarray(0.3),
    "per input": jnp.array([0.3, -0.5, 1.0]),
    "per output": jnp.array([[0.3], [-0.5]]),
    "of an input and an output": (jnp.array([[0.3], [-0.5]]), jnp.array([0.1, 0.4, -1.0])),
}


@pytest.mark.parametrize("prior", PRIORS)
def test_a_linear_layer_with_gaussian_noise_has_its_exact_evidence_and_predictions(prior):
    outputs, h = lambda w: X @ w.T, PRIORS[prior]
    whole = lambda h: h[0] + h[1] if isinstance(h, tuple) else h
    of = lambda kind: lambda h: kind.negative_log_evidence(outputs, W, whole(h), NOISE)
    one, other = (jax.jit(jax.value_and_grad(of(kind)))(h) for kind in (KRONECKER, FULL))
    np.testing.assert_allclose(one[0], other[0], rtol=1e-10)
    assert relative_error(one[1], other[1]) < 1e-8
    new = lambda w: X[:4] @ w.T + w[:, 0]
    predict = lambda kind: lambda h: kind.predict(new, outputs, W, whole(h), NOISE)[1]
    one, other = (jax.jit(predict(kind))(h) for kind in (KRONECKER, FULL))
    np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_every_block_of_a_network_has_the_partial_traces_of_the_gauss_newton_matrix():
    model = eqx.nn.MLP(INPUTS, OUTPUTS, 4, 1, activation=jnp.tanh, key=jax.random.key(0))
    tiny = jnp.asarray(-16.0)  # log det (I + K) is the trace of K where K is small
    of = lambda kind: eqx.filter_jit(kind.negative_log_evidence)(lambda m: jax.vmap(m)(X), model, tiny, NOISE)
    base = (
        NOISE.negative_log(jax.vmap(model)(X))
        + np.exp(16.0) * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))) / 2
    )
    assert abs(of(FULL) - base) > 1e-6
    np.testing.assert_allclose(of(KRONECKER) - base, of(FULL) - base, rtol=1e-3)


def test_a_bias_has_its_whole_block():
    h, outputs = jnp.asarray(0.2), lambda b: jnp.tanh(X @ W.T + b)
    of = lambda kind: jax.jit(lambda w: kind.negative_log_evidence(outputs, w, h, NOISE))
    values = [of(kind)(jnp.ones(OUTPUTS)) for kind in (KRONECKER, FULL)]
    np.testing.assert_allclose(*values, rtol=1e-12)


@pytest.mark.slow
def test_hypergradients_through_training_are_those_of_differences():
    """One log-variance for each of two layers, and that of the noise."""
    split = lambda model: [model.layers[0], model.layers[1]]
    run = lambda data: lambda model: jax.vmap(model)(data["x"])
    prior = lambda model, h: eqx.tree_at(split, eqx.filter(model, eqx.is_inexact_array), [h["prior"][0], h["prior"][1]])

    def joint(model, h, data, key):
        likelihood = evidence.Gaussian(data["y"], h["noise"])
        return evidence.negative_log_joint(run(data), model, prior(model, h), likelihood) / ROWS

    def laplace(model, h, data, key):
        likelihood = evidence.Gaussian(data["y"], h["noise"])
        return KRONECKER.negative_log_evidence(run(data), model, prior(model, h), likelihood) / ROWS

    data = {"x": X, "y": Y}
    model = eqx.nn.MLP(INPUTS, OUTPUTS, 4, 1, activation=jnp.tanh, key=jax.random.key(0))
    h = {"prior": jnp.array([-0.3, 0.4]), "noise": jnp.asarray(-0.5)}
    case = Case(hg.BilevelProblem(joint, laplace, data, data), model, h)
    laws.finite_differences(hg.Reverse(hg.OptaxSolver(optax.sgd(0.1), 20), check=None), case)
