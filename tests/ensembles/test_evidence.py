"""The Laplace evidence against closed forms of linear models, value and hypergradients."""

import functools
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypergrad as hg
from ensembles import evidence
from hypergrad.testing import laws
from hypergrad.testing.tolerances import relative_error

SHAPES = {"more rows": (14, 5), "more weights": (4, 7)}
LAPLACE = evidence.Laplace()


def linear_model(shape):
    rows, weights = SHAPES[shape]
    rng = np.random.default_rng(rows)
    x = rng.normal(size=(rows, weights))
    return {"x": x, "y": x @ rng.normal(size=weights) + 0.5 * rng.normal(size=rows)}


def hparams_of(prior, weights):
    h = {
        "per weight": [jnp.linspace(-1.0, 0.5, 2), jnp.linspace(0.3, -0.8, weights - 2)],
        "per layer": [jnp.asarray(-0.7), jnp.asarray(0.4)],
        "one": jnp.asarray(0.2),
    }[prior]
    return {"prior": h, "noise": jnp.asarray(-1.2)}


def outputs(data):
    return lambda w: data["x"] @ jnp.concatenate(w)


def joint(w, h, data, key):
    return evidence.negative_log_joint(outputs(data), w, h["prior"], evidence.Gaussian(data["y"], h["noise"]))


def laplace(w, h, data, key):
    likelihood = evidence.Gaussian(data["y"], h["noise"])
    return LAPLACE.negative_log_evidence(outputs(data), w, h["prior"], likelihood)


def exact(h, data, weights):
    """-log N(y; 0, σ²I + X diag(exp h) Xᵀ)."""
    like = [jnp.zeros(2), jnp.zeros(weights - 2)]
    variances = jnp.concatenate(
        jax.tree.map(lambda w, h: jnp.broadcast_to(jnp.exp(h), w.shape), like, jax.tree.broadcast(h["prior"], like))
    )
    covariance = jnp.exp(h["noise"]) * jnp.eye(len(data["y"])) + (data["x"] * variances) @ data["x"].T
    zero = jnp.zeros(len(data["y"]))
    return -jax.scipy.stats.multivariate_normal.logpdf(data["y"], zero, covariance)


def exact_and_slope(h, data, weights):
    return jax.jit(jax.value_and_grad(lambda h: exact(h, data, weights)))(h)


@pytest.mark.variants(slow=["more weights-one", "more weights-per layer", "more rows-per weight"])
@pytest.mark.parametrize(
    ("shape", "prior"), [("more rows", "per weight"), ("more weights", "per layer"), ("more weights", "one")]
)
def test_the_evidence_of_linear_models_is_exact_with_its_hypergradients(shape, prior):
    data, weights = linear_model(shape), SHAPES[shape][1]
    h = hparams_of(prior, weights)
    problem = hg.BilevelProblem(joint, laplace, data, data)
    inner = hg.OptaxSolver(optax.sgd(0.01), 4000)
    estimator = hg.Implicit(inner, hg.Dense())
    value, found = hg.value_and_hypergrad(problem, estimator)(h, [jnp.zeros(2), jnp.zeros(weights - 2)], laws.KEY)
    expected_value, expected = exact_and_slope(h, data, weights)
    np.testing.assert_allclose(value, expected_value, rtol=1e-8)
    assert relative_error(found, expected) < 1e-8


def test_reverse_mode_through_training_finds_the_same():
    data, weights = linear_model("more rows"), 5
    h = hparams_of("per layer", weights)
    problem = hg.BilevelProblem(joint, laplace, data, data)
    estimator = hg.Reverse(hg.OptaxSolver(optax.sgd(0.01), 2000))
    _, found = hg.value_and_hypergrad(problem, estimator)(h, [jnp.zeros(2), jnp.zeros(3)], laws.KEY)
    assert relative_error(found, exact_and_slope(h, data, weights)[1]) < 1e-8


def classifier(rows=12, features=3, classes=3, hidden=None):
    rng = np.random.default_rng(1)
    x, labels = rng.normal(size=(rows, features)), jnp.asarray(rng.integers(0, classes, rows))
    if hidden is None:
        return x, labels, jnp.asarray(rng.normal(size=(features, classes)))
    return x, labels, eqx.nn.MLP(features, classes, hidden, 1, activation=jnp.tanh, key=jax.random.key(0))


def by_hessian(cross_entropy, weights, h):
    """Laplace's formula with the Hessian, which is the Gauss-Newton matrix where outputs are linear in the weights."""
    flat, precision = jnp.ravel(weights), jnp.exp(-h)
    hessian = jax.hessian(lambda flat: cross_entropy(flat.reshape(weights.shape)))(flat)
    _, log_det = jnp.linalg.slogdet(hessian + precision * jnp.eye(flat.size))
    prior = precision * flat @ flat / 2 + flat.size * h / 2
    return cross_entropy(weights) + prior + log_det / 2


def test_classes_have_the_evidence_of_the_hessian_where_outputs_are_linear():
    x, labels, w = classifier()
    h, likelihood = jnp.asarray(-0.4), evidence.Categorical(labels)
    found = lambda w, h: LAPLACE.negative_log_evidence(lambda w: x @ w, w, h, likelihood)
    cross_entropy = lambda w: jnp.sum(optax.softmax_cross_entropy_with_integer_labels(x @ w, labels))
    both = (found, lambda w, h: by_hessian(cross_entropy, w, h))
    one, other = (jax.jit(jax.value_and_grad(f, (0, 1)))(w, h) for f in both)
    np.testing.assert_allclose(one[0], other[0], rtol=1e-10)
    assert relative_error(one[1], other[1]) < 1e-9


def test_the_last_layer_alone():
    x, labels, model = classifier(hidden=4)
    h, last = jnp.asarray(0.3), lambda model: model.layers[-1].weight
    run = lambda model: jax.vmap(model)(x)
    laplace = evidence.Laplace(where=last)
    found = eqx.filter_jit(laplace.negative_log_evidence)(run, model, h, evidence.Categorical(labels))
    at = lambda w: jax.vmap(eqx.tree_at(last, model, w))(x)
    cross_entropy = lambda w: jnp.sum(optax.softmax_cross_entropy_with_integer_labels(at(w), labels))
    expected = jax.jit(lambda w: by_hessian(cross_entropy, w, h))(last(model))
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_the_diagonal_bounds_the_evidence_and_is_exact_for_orthogonal_inputs():
    data, h = linear_model("more rows"), jnp.asarray(0.2)
    likelihood = evidence.Gaussian(data["y"], -1.0)

    def of(x, structure):
        found = lambda x: evidence.Laplace(structure).negative_log_evidence(lambda w: x @ w, jnp.ones(5), h, likelihood)
        return jax.jit(found)(x)

    assert of(data["x"], evidence.Diagonal()) > of(data["x"], evidence.Full()) + 1e-3
    basis, _ = np.linalg.qr(data["x"])
    np.testing.assert_allclose(of(basis, evidence.Diagonal()), of(basis, evidence.Full()), rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_lanczos_quadrature_comes_near_the_whole_with_its_derivatives(shape):
    """The quadrature is exact with as many steps as weights; only the probes are random."""
    data, weights = linear_model(shape), SHAPES[shape][1]
    h = jnp.linspace(-1.0, 0.5, weights)

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1))
    def lanczos(h, scale):
        outputs = lambda w: jnp.tanh(data["x"] @ (scale * w))
        likelihood = evidence.Gaussian(data["y"], -1.0)
        structure = evidence.Lanczos(num_probes=2000, num_steps=weights)
        return evidence.Laplace(structure).negative_log_evidence(outputs, jnp.ones(weights) / 4, h, likelihood)

    @functools.partial(jax.value_and_grad, argnums=(0, 1))
    def full(h, scale):
        outputs = lambda w: jnp.tanh(data["x"] @ (scale * w))
        return LAPLACE.negative_log_evidence(outputs, jnp.ones(weights) / 4, h, evidence.Gaussian(data["y"], -1.0))

    found, expected = lanczos(h, jnp.asarray(1.0)), full(h, jnp.asarray(1.0))
    np.testing.assert_allclose(found[0], expected[0], rtol=2e-2)
    assert relative_error(found[1], expected[1]) < 5e-2


def test_signs_from_a_key_differ_and_have_the_whole_as_their_mean():
    data, h = linear_model("more weights"), jnp.linspace(-1.0, 0.5, 7)
    likelihood = evidence.Gaussian(data["y"], -1.0)
    of = lambda structure: (
        lambda h: evidence.Laplace(structure).negative_log_evidence(
            lambda w: data["x"] @ w, jnp.ones(7) / 4, h, likelihood
        )
    )
    drawn = lambda key: jax.value_and_grad(of(evidence.Lanczos(1, 7, key)))(h)
    values, slopes = jax.jit(jax.vmap(drawn))(jax.random.split(laws.KEY, 400))
    whole, slope = jax.jit(jax.value_and_grad(of(evidence.Full())))(h)
    assert np.std(values) > 0.1
    assert abs(np.mean(values) - whole) < 4 * np.std(values) / 20
    np.testing.assert_array_less(np.abs(np.mean(slopes, 0) - slope), 4 * np.std(slopes, 0) / 20 + 1e-12)


def test_lanczos_takes_eigenvalues_of_one_matrix_at_a_time():
    """Two programs at the same time that take those of several may wait for each other's threads for ever."""
    data = linear_model("more weights")
    structure = evidence.Lanczos(num_probes=3, num_steps=4)
    likelihood = lambda h: evidence.Gaussian(data["y"], h["noise"])
    value = lambda h: evidence.Laplace(structure).negative_log_evidence(
        outputs(data), [jnp.zeros(2), jnp.zeros(5)], h["prior"], likelihood(h)
    )
    jaxpr = str(jax.make_jaxpr(jax.value_and_grad(value))(hparams_of("per weight", 7)))
    shapes = re.findall(r"(\S+) \S+ = eigh", jaxpr)
    assert shapes and all(shape.endswith("[4,4]") for shape in shapes), shapes


def test_lanczos_and_the_whole_predict_the_same():
    data, h = linear_model("more rows"), jnp.asarray(0.3)
    new = np.random.default_rng(9).normal(size=(3, 5))
    arguments = (lambda w: new @ w, lambda w: data["x"] @ w, jnp.ones(5), h, evidence.Gaussian(data["y"], -1.2))
    predict = lambda kind: jax.jit(lambda: evidence.Laplace(kind).predict(*arguments)[1])()
    np.testing.assert_allclose(predict(evidence.Lanczos()), predict(evidence.Full()), rtol=1e-6)


def test_lanczos_predicts_where_more_products_are_needed_than_steps():
    sizes, new = jnp.logspace(-2, 2, 60), np.random.default_rng(9).normal(size=(3, 60))
    x = sizes * np.random.default_rng(3).normal(size=(80, 60))
    arguments = (lambda w: new @ (sizes * w), lambda w: x @ w, jnp.zeros(60), 0.0, evidence.Gaussian(x[:, 0], 0.0))
    predict = lambda kind: jax.jit(lambda: evidence.Laplace(kind).predict(*arguments)[1])()
    np.testing.assert_allclose(predict(evidence.Lanczos()), predict(evidence.Full()), rtol=1e-3)


@pytest.mark.slow
def test_a_prediction_that_overflows_is_right_or_nan_and_not_certain():
    row = lambda w: jnp.ones((1, 3), w.dtype) @ w
    targets, wide = evidence.Gaussian(jnp.ones(1, jnp.float32), 0.0), 88.0
    for structure in (evidence.Full(), evidence.Lanczos(), evidence.Kronecker()):
        found = evidence.Laplace(structure).predict(row, row, jnp.zeros(3, jnp.float32), wide, targets)[1]
        assert jnp.all(jnp.isnan(found) | jnp.isclose(found, 1.0))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_predictive_of_linear_models_is_that_of_the_gaussian_process(shape):
    data, weights = linear_model(shape), SHAPES[shape][1]
    new = np.random.default_rng(9).normal(size=(3, weights))
    h = jnp.linspace(-1.0, 1.0, weights)
    prior, noise = np.diag(np.exp(h)), np.exp(-1.2)
    gain = new @ prior @ data["x"].T @ np.linalg.inv(noise * np.eye(len(data["y"])) + data["x"] @ prior @ data["x"].T)
    expected = new @ prior @ new.T - gain @ data["x"] @ prior @ new.T
    posterior = np.linalg.solve(data["x"].T @ data["x"] / noise + np.diag(np.exp(-h)), data["x"].T @ data["y"] / noise)
    likelihood = evidence.Gaussian(data["y"], -1.2)
    predict = lambda w: LAPLACE.predict(lambda w: new @ w, lambda w: data["x"] @ w, w, h, likelihood)
    mean, covariance = jax.jit(predict)(jnp.asarray(posterior))
    np.testing.assert_allclose(mean[:, 0], gain @ data["y"], rtol=1e-8)
    np.testing.assert_allclose(covariance[:, 0, 0], np.diag(expected), rtol=1e-8)


def test_uncertain_outputs_have_probabilities_nearer_to_each_other():
    mean = jnp.array([[2.0, 0.0, -1.0]])
    sure, unsure = (evidence.probit_probabilities(mean, s * jnp.eye(3)[None]) for s in (0.0, 10.0))
    np.testing.assert_allclose(sure, jax.nn.softmax(mean))
    np.testing.assert_allclose(jnp.sum(unsure), 1.0)
    assert jnp.max(unsure) < jnp.max(sure)


BAD = {
    "no weights": (
        lambda: evidence.negative_log_joint(lambda w: jnp.ones(3), {"n": 3}, 0.0, evidence.Gaussian(jnp.ones(3), 0.0)),
        "no floating-point",
    ),
    "prior": (
        lambda: evidence.negative_log_joint(lambda w: w, jnp.ones(3), jnp.ones(2), evidence.Gaussian(jnp.ones(3), 0.0)),
        "log_variance must be a tree like the weights or a prefix",
    ),
    "dates": (
        lambda: evidence.negative_log_joint(
            lambda w: w, jnp.ones(1), np.array(["2020"], "datetime64[D]"), evidence.Gaussian(jnp.ones(1), 0.0)
        ),
        "log_variance must be an array of numbers",
    ),
    "outputs": (
        lambda: evidence.negative_log_joint(
            lambda w: w[:, None, None], jnp.ones(3), 0.0, evidence.Gaussian(jnp.ones(3), 0.0)
        ),
        r"outputs must have shape \(rows,\)",
    ),
    "half precision": (
        lambda: evidence.Laplace().negative_log_evidence(
            lambda w: w, jnp.ones(2, jnp.float16), 0.0, evidence.Gaussian(jnp.ones(2), 0.0)
        ),
        "model has weights in float16",
    ),
    "targets turned round": (
        lambda: evidence.negative_log_joint(
            lambda w: jnp.outer(jnp.ones(3), w), jnp.ones(2), 0.0, evidence.Gaussian(jnp.ones((2, 3)), 0.0)
        ),
        r"targets must have shape \(3, 2\) to fit the outputs, got \(2, 3\)",
    ),
    "a class without an output": (
        lambda: evidence.negative_log_joint(
            lambda w: jnp.outer(jnp.ones(3), w), jnp.ones(2), 0.0, evidence.Categorical(jnp.array([0, 1, 2]))
        ),
        "labels must be below the number of outputs, 2, got 2",
    ),
    "one label for all rows": (
        lambda: evidence.negative_log_joint(
            lambda w: jnp.outer(jnp.ones(3), w), jnp.ones(2), 0.0, evidence.Categorical(jnp.array([1]))
        ),
        r"labels must have shape \(3\) to fit the outputs, got \(1,\)",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_arguments_that_do_not_fit_are_named(name):
    call, message = BAD[name]
    with pytest.raises((ValueError, TypeError), match=message):
        call()
