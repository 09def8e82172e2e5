"""Numbers of 16 and 32 bits, and integers of 64: what is computed is what NumPy gives in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ensembles as ens
from ensembles import evidence

KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def single_precision():
    with jax.enable_x64(False):
        yield


@pytest.mark.parametrize("closeness", [1e-2, 1e-4, 1e-6, 1e-7])
def test_a_nearly_singular_covariance_of_numpy_keeps_its_digits(closeness):
    C, residuals = np.ones((3, 3)) + closeness * np.eye(3), np.array([1.0, -1.0, 0.5])
    found = ens.chi2(residuals, np.zeros(3), ens.cholesky(C))
    np.testing.assert_allclose(found, residuals @ np.linalg.solve(C, residuals) / 3, rtol=1e-4)


def test_digits_that_a_covariance_has_lost_are_a_warning():
    C = np.ones((3, 3)) + 1e-6 * np.eye(3)
    with pytest.warns(RuntimeWarning, match="nearly singular: in float32 what is divided by it errs by about 0.08"):
        ens.cholesky(jnp.asarray(C))
    scales = np.array([1e-9, 1.0, 1e9])  # units are no loss
    ens.cholesky(jnp.asarray((np.ones((3, 3)) + 0.1 * np.eye(3)) * scales * scales[:, None]))


@pytest.mark.parametrize("spread", [1e3, 1e5])
@pytest.mark.parametrize("replicas", [2, 5, 20])
def test_a_spread_far_above_the_errors_counts_as_an_error(spread, replicas):
    random = np.random.default_rng(0)
    root, data = random.normal(size=(6, 6)), random.normal(size=6)
    C = root @ root.T + 0.1 * np.eye(6)
    T = np.float32(data + spread * random.normal(size=(replicas, 6)))
    mean, factor = T.mean(0, dtype=float) - data, ens.cholesky(C)
    whole = C + np.cov(T, rowvar=False, dtype=float)
    expected = mean @ np.linalg.solve(whole, mean) / 6
    np.testing.assert_allclose(ens.ensemble_chi2(T, data, factor), expected, rtol=2e-3)
    expected = (np.log(2 * np.pi) + np.linalg.slogdet(whole)[1] / 6 + expected) / 2
    np.testing.assert_allclose(ens.negative_log_probability(T, data, factor), expected, rtol=2e-3)


@pytest.mark.parametrize("log_variance", [0.0, 10.0])
def test_predictions_under_a_wide_prior_keep_their_variance(log_variance):
    """More weights than outputs."""
    random = np.random.default_rng(1)
    x, w, y = random.normal(size=(4, 7)), random.normal(size=7), random.normal(size=4)
    inputs, weights = jnp.asarray(x), jnp.asarray(w)
    outputs = lambda w: inputs @ w
    found = evidence.Laplace().predict(outputs, outputs, weights, log_variance, evidence.Gaussian(y, -6.0))[1]
    precision = np.exp(6.0) * x.T @ x + np.exp(-log_variance) * np.eye(7)
    np.testing.assert_allclose(found.ravel(), np.diag(x @ np.linalg.solve(precision, x.T)), rtol=1e-3)


@pytest.mark.parametrize("structure", [evidence.Full(), evidence.Kronecker()], ids=["Full", "Kronecker"])
@pytest.mark.slow
@pytest.mark.parametrize("log_variance", [10.0, 30.0])
def test_evidence_in_float32_is_that_in_float64(structure, log_variance):
    """A network with more weights than outputs, and a linear layer with fewer, whose inputs differ in size."""
    random, laplace = np.random.default_rng(2), evidence.Laplace(structure)
    x, few = random.normal(size=(2, 9, 5)) * np.logspace(0, -3, 5), random.normal(size=(4, 5))
    wide = [random.normal(size=shape) for shape in ((8, 5), (8,), (2, 8))]
    network = lambda m, x: jnp.tanh(x @ m[0].T + m[1]) @ m[2].T
    line = lambda m, x: x @ m[0]

    def found(outputs, weights, rows):
        model, rows, new = [jnp.asarray(w) for w in weights], jnp.asarray(rows), jnp.asarray(x[1])
        likelihood = evidence.Gaussian(jnp.ones((len(rows), 2)), 0.0)
        arguments = (lambda m: outputs(m, rows)), model, log_variance, likelihood
        spread = laplace.predict(lambda m: outputs(m, new), *arguments)[1]
        return laplace.negative_log_evidence(*arguments), jnp.diagonal(spread, axis1=1, axis2=2)

    for case in ((network, wide, few), (line, [random.normal(size=(5, 2))], x[0])):
        with jax.enable_x64(True):
            expected = found(*case)
        value, spread = found(*case)
        np.testing.assert_allclose(value, expected[0], rtol=1e-5)
        np.testing.assert_allclose(spread, expected[1], rtol=2e-2)


def test_large_integers_are_themselves_or_refused():
    data, factor = np.array([3_000_000_000, 5]), np.diag([10.0, 10.0])
    assert ens.chi2(np.array([[3e9, 5.0]]), data, factor) == 0
    assert ens.monte_carlo(KEY, data, factor, 2)[0, 0] > 2.9e9
    assert evidence.Gaussian(data, 0.0).targets[0] == 3e9
    with pytest.raises(ValueError, match="labels must be an array of integers within the range of int32"):
        evidence.Categorical(data)
    with pytest.raises(ValueError, match=r"data\['id'\] holds 1 numbers out of the range of int32"):
        ens.cross_validation(max, max, {"id": data}, 2, KEY)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize(("fraction", "number"), [(0.7, 7), (0.35, 4), (0.95, 10), (0.1, 1)])
def test_a_share_of_ten_is_rounded_up_in_any_type(dtype, fraction, number):
    assert ens.mean_of_best(jnp.arange(1, 11, dtype=dtype), fraction) == (number + 1) / 2


@pytest.mark.parametrize("worst", [jnp.nan, jnp.inf])
def test_what_counts_and_is_not_finite_comes_before_what_does_not_count(worst):
    values, keep = jnp.array([1.0, 5.0, worst, 3.0]), jnp.array([False, False, True, True])
    assert not jnp.isfinite(ens.mean_of_best(values, 1.0, keep))
    assert ens.mean_of_best(values, 0.5, keep) == 3


def test_the_prior_of_tiny_and_huge_weights_is_finite():
    posterior = ens.MeanField(jnp.array([0.0, 1e-25, 1e25]), log_std=-60.0)
    found = ens.evidence_log_variance(posterior)
    np.testing.assert_allclose(found, [-120, 2 * np.log(1e-25), 2 * np.log(1e25)], rtol=1e-3)
    slope = jax.grad(lambda mean: jnp.sum(ens.evidence_log_variance(ens.MeanField(mean, log_std=0.0))))
    np.testing.assert_allclose(slope(jnp.array([0.0, 1.0])), [0, 1], atol=1e-6)


def test_labels_of_no_output_give_nan_inside_jit():
    outputs = lambda w: jnp.outer(jnp.ones(2), w)
    of = jax.jit(lambda labels: evidence.negative_log_joint(outputs, jnp.ones(2), 0.0, evidence.Categorical(labels)))
    assert jnp.isfinite(of(jnp.array([0, 1])))
    assert jnp.isnan(of(jnp.array([-1, 1]))) and jnp.isnan(of(jnp.array([2, 1])))
