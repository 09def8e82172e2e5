"""Numbers that can be had without this library."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from sklearn import datasets

import hypergrad as hg
from hypergrad.testing import assert_close, laws
from hypergrad.testing.problems import quadratic
from hypergrad.testing.strategies import seeds

LONG = hg.OptaxSolver(optax.sgd(0.3), 3000)
DENSE = hg.CG(30, rtol=1e-14)


@pytest.mark.row(2)
@given(seed=seeds)
def test_long_training_on_a_quadratic_has_its_closed_form(seed):
    laws.closed_form(hg.Reverse(LONG), quadratic(seed))


@pytest.mark.row(2)
@pytest.mark.parametrize("steps", [1, 5, 20])
def test_unrolled_gradient_descent_on_a_quadratic_has_its_closed_form(steps):
    """dw_T/dh = (I - (I - aA)^T) A⁻¹ B and w_T = w* + (I - aA)^T (w_0 - w*)."""
    case, rate = quadratic(2), 0.3
    data, target = case.problem.train, case.problem.valid
    solution = jnp.linalg.solve(data["A"], data["B"] @ case.hparams + data["c"])
    power = jnp.linalg.matrix_power(jnp.eye(4) - rate * data["A"], steps)
    end = solution + power @ (case.params - solution)
    jacobian = (jnp.eye(4) - power) @ jnp.linalg.solve(data["A"], data["B"])
    expected = jacobian.T @ target["P"] @ (end - target["t"]) + target["R"] @ case.hparams
    found = laws.answer(hg.Reverse(hg.OptaxSolver(optax.sgd(rate), steps)), case)[1]
    assert_close(found, expected, "gradient")


def scalar_quadratic(curvature):
    """½ c w², inside and outside."""
    loss = lambda w, hparams, data, key: data["c"] * w**2 / 2
    data = {"c": jnp.asarray(curvature)}
    return hg.BilevelProblem(loss, loss, data, data)


@pytest.mark.variants(quick=["1"], slow=["4", "25"])
@pytest.mark.row(2)
@pytest.mark.parametrize("steps", [1, 4, 25])
def test_the_hypergradient_of_a_learning_rate_has_its_closed_form(steps):
    """F = ½ c ((1 - ac)^T e)²  has  dF/da = -T c² (1 - ac)^{2T-1} e²."""
    c, a, e = 0.7, 0.2, 1.3
    inner = hg.OptaxSolver(lambda hparams: optax.sgd(hparams["lr"]), steps)
    for estimator in (hg.Reverse(inner), hg.DrMAD(inner, knots=steps), hg.Reverse(inner, checkpoints=2)):
        function = hg.value_and_hypergrad(scalar_quadratic(c), estimator)
        value, found = function({"lr": jnp.asarray(a)}, jnp.asarray(e), laws.KEY)
        assert_close(value, c / 2 * ((1 - a * c) ** steps * e) ** 2)
        assert_close(found["lr"], -steps * c**2 * (1 - a * c) ** (2 * steps - 1) * e**2, "gradient")


@pytest.mark.row(2)
def test_the_hypergradient_of_a_schedule_has_its_closed_form():
    """One rate per step: dF/da_t = -c² e_T² / (1 - a_t c)."""
    c, e, rates = 0.7, 1.3, jnp.array([0.1, 0.5, 0.3, 0.2])
    schedule = lambda hparams: optax.sgd(lambda count: hparams["rates"][count])
    function = hg.value_and_hypergrad(scalar_quadratic(c), hg.Reverse(hg.OptaxSolver(schedule, 4)))
    found = function({"rates": rates}, jnp.asarray(e), laws.KEY)[1]["rates"]
    end = jnp.prod(1 - rates * c) * e
    assert_close(found, -(c**2) * end**2 / (1 - rates * c), "gradient")


@pytest.mark.row(2)
def test_the_hypergradient_of_momentum_has_its_closed_form():
    """State (w, v): w_T is the first entry of M^T (w_0, 0) with M = [[1 - ac, -ag], [c, g]]; dM by both settings."""
    c, e, steps = 0.7, 1.3, 7

    def end(a, g):
        matrix = jnp.array([[1 - a * c, -a * g], [c, g]])
        return (jnp.linalg.matrix_power(matrix, steps) @ jnp.array([e, 0.0]))[0]

    loss = lambda a, g: c * end(a, g) ** 2 / 2
    expected = jax.grad(loss, argnums=(0, 1))(0.2, 0.8)
    optimiser = lambda hparams: optax.sgd(hparams["lr"], hparams["momentum"])
    function = hg.value_and_hypergrad(scalar_quadratic(c), hg.Reverse(hg.OptaxSolver(optimiser, steps)))
    hparams = {"lr": jnp.asarray(0.2), "momentum": jnp.asarray(0.8)}
    value, found = function(hparams, jnp.asarray(e), laws.KEY)
    assert_close(value, loss(0.2, 0.8))
    assert_close((found["lr"], found["momentum"]), expected, "gradient")


def per_feature_penalties():
    """500 training and 500 validation rows, 20 features, a penalty each (hypertorch, Grazzi et al. 2020)."""
    generator = np.random.RandomState(1)
    w, x = generator.randn(20), generator.randn(1000, 20)
    y = (x @ w + 0.1 * generator.randn(1000) > 0).astype(float)
    order = generator.permutation(1000)
    valid, train = ({"x": x[rows], "y": y[rows]} for rows in (order[:500], order[500:]))

    def fit(w, hparams, data, key):
        logits = data["x"] @ w
        return jnp.mean(jnp.logaddexp(0.0, logits) - data["y"] * logits)

    penalised = lambda w, h, data, key: fit(w, h, data, key) + jnp.sum(h * w**2) / 2
    return hg.BilevelProblem(penalised, fit, train, valid), jnp.zeros(20), jnp.ones(20)


PUBLISHED = {
    1: (0.00111039, 0.00018155, 0.00010465, 0.00037637),
    10: (0.00646365, 0.00108967, 0.00059797, 0.00224071),
    100: (0.00865926, 0.00151007, 0.00079046, 0.00307112),
    "implicit": (0.0086594, 0.00151014, 0.00079047, 0.00307121),
}


@pytest.mark.row(2)
@pytest.mark.variants(quick=["10", "implicit"], slow=["1", "100"])
@pytest.mark.parametrize("horizon", PUBLISHED)
def test_hypergradients_of_logistic_regression_are_the_published_ones(horizon):
    problem, params, hparams = per_feature_penalties()
    inner = hg.OptaxSolver(optax.sgd(0.1), 100)
    solved = hg.Implicit(hg.OptaxSolver(optax.sgd(0.1), 5000), DENSE)
    estimator = solved if horizon == "implicit" else hg.Reverse(inner, horizon=horizon)
    found = hg.value_and_hypergrad(problem, estimator)(hparams, params, laws.KEY)[1][:4]
    # the published numbers end after eight decimals
    np.testing.assert_allclose(found, PUBLISHED[horizon], rtol=1e-5, atol=5.1e-9)


@pytest.mark.slow
def test_validation_losses_of_logistic_regression_are_the_published_ones():
    problem, params, hparams = per_feature_penalties()
    estimator = hg.Reverse(hg.OptaxSolver(optax.sgd(0.1), 100), horizon=10)
    clip = lambda h: jnp.maximum(h, 1e-8)
    search = hg.GradientSearch(estimator, optax.sgd(1.0, 0.9), projection=clip)
    state = search.init(problem, params, hparams)
    _, history = hg.run(search, problem, state, key=laws.KEY, budget=100 * 201, chunk=67)
    published = {0: 0.574399, 10: 0.533768, 20: 0.361522, 50: 0.294467, 100: 0.285354, 200: 0.281670}
    np.testing.assert_allclose(history.value[list(published)], list(published.values()), atol=1e-5)


@pytest.mark.row(2)
def test_the_hypergradient_of_ridge_on_diabetes_is_the_published_one():
    """The example of jaxopt: F(1) = 28571.122030, dF/dθ = 325.762573 with penalty exp(θ)."""
    from sklearn import model_selection, preprocessing

    x, y = datasets.load_diabetes(return_X_y=True)
    x = preprocessing.normalize(x)
    parts = model_selection.train_test_split(x, y, test_size=0.33, random_state=0)
    train, valid = {"x": parts[0], "y": parts[2]}, {"x": parts[1], "y": parts[3]}
    fit = lambda w, h, data, key: jnp.mean((data["x"] @ w - data["y"]) ** 2)
    penalised = lambda w, h, data, key: fit(w, h, data, key) / 2 + jnp.exp(h) * jnp.sum(w**2) / 2
    problem = hg.BilevelProblem(penalised, fit, train, valid)
    estimator = hg.Implicit(hg.OptaxSolver(optax.sgd(0.3), 500), DENSE)
    value, found = hg.value_and_hypergrad(problem, estimator)(jnp.asarray(1.0), jnp.zeros(10), laws.KEY)
    np.testing.assert_allclose([value, found], [28571.122030, 325.762573], rtol=1e-6)
