"""Kronecker factors of the Laplace approximation: exact for linear layers, with exact derivatives everywhere."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypergrad as hg
from ensembles import evidence
from hypergrad.ground.jaxprs import held
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


def log_det(rows):
    return evidence.Kronecker().log_det(Held(rows))


class Held(eqx.Module):
    """Rows of one layer as a `Factor` would give them."""

    rows: jax.Array
    dense = lambda self: self.rows.reshape(len(self.rows), -1)
    weights = property(lambda self: self.dense()[0])
    shapes = property(lambda self: (self.rows.shape[1:],))


@pytest.mark.slow
def test_two_derivatives_of_the_determinant_are_those_of_the_whole_product():
    def whole(rows):
        left, right = jnp.einsum("rij,rkj->ik", rows, rows), jnp.einsum("rij,rik->jk", rows, rows)
        return jnp.linalg.slogdet(jnp.eye(6) + jnp.kron(left, right) / jnp.sum(rows**2))[1]

    rows = jnp.asarray(RNG.normal(size=(4, 3, 2)))
    for derivative in (lambda f: f, jax.grad, jax.hessian):
        assert relative_error(jax.jit(derivative(log_det))(rows), derivative(whole)(rows)) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("rows", ["no effect", "a dead unit", "an input twice"])
def test_derivatives_in_float32_are_those_in_float64(rows):
    random = np.random.default_rng(0)
    g, x = random.normal(size=(20, 3, 1)), random.normal(size=(20, 1, 4)) * np.logspace(0, -3, 4)
    g[:, 1:] *= rows != "a dead unit"
    x[:, :, 1:2] = x[:, :, :1] if rows == "an input twice" else x[:, :, 1:2]
    given = jnp.asarray(g * x * (rows != "no effect"), jnp.float32)
    expected = jax.grad(log_det)(given.astype(float))
    with jax.enable_x64(False):
        found = jax.grad(log_det)(given)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.max(np.abs(expected)))


def test_what_is_decomposed_has_the_size_of_the_layer():
    """The singular values of all rows take five times as long."""

    def sizes(jaxpr):
        inside = [size for equation in jaxpr.eqns for one in held(equation) for size in sizes(one)]
        return inside + [one.invars[0].aval.shape for one in jaxpr.eqns if one.primitive.name in ("svd", "qr", "eigh")]

    assert set(sizes(jax.make_jaxpr(jax.grad(log_det))(jnp.ones((50, 3, 2))))) == {(3, 3), (2, 2)}
