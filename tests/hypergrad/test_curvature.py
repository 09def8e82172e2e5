"""Gauss-Newton products and preconditioners."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypergrad as hg
from hypergrad.ground.tree import PartitionedModel
from hypergrad.testing import assert_close, laws
from hypergrad.testing.problems import bce, logistic, logistic_inner, logistic_outer, ridge

MAKE = [hg.Implicit, functools.partial(hg.HOAG, schedule=hg.tolerances.exponential(1e-13))]
LONG = hg.OptaxSolver(optax.sgd(0.5, 0.9), 600)


def logits(w, h, data, key):
    return data["x"] @ w


def net_logits(w, h, data, key):
    return jnp.tanh(data["x"] * w[:3]).sum(1) * w[3]


def cross_entropy(z, h, data, key):
    return bce(z, data["y"])


def penalty(w, h, data, key):
    return jnp.sum(jnp.exp(h) * w[:3] ** 2) / 2


def in_parts(outputs):
    case = logistic()
    parts = hg.GaussNewton(outputs, cross_entropy, penalty)
    return case, hg.BilevelProblem(parts, logistic_outer, case.problem.train, case.problem.valid)


def test_the_parts_make_the_loss():
    case, problem = in_parts(logits)
    args = (jnp.array([0.3, -1.0, 0.5]), case.hparams, problem.train, laws.KEY)
    assert_close(problem.inner_loss(*args), logistic_inner(*args))


@pytest.mark.slow
def test_gauss_newton_is_the_hessian_of_a_linear_model():
    case, problem = in_parts(logits)
    for make in MAKE:
        estimator = make(LONG, hg.CG(5, rtol=1e-14), curvature=hg.curvature.gauss_newton)
        value = hg.value_and_hypergrad(problem, estimator)
        assert_close(value(case.hparams, case.params, laws.KEY)[1], case.exact(), "solved")


@pytest.mark.slow
def test_gauss_newton_of_a_network_is_its_formula_and_positive():
    case, problem = in_parts(net_logits)
    w, v = jnp.array([0.3, -1.0, 0.5, -2.0]), jnp.array([1.0, 2.0, -1.0, 0.5])
    args = (case.hparams, problem.train, laws.KEY)

    @jax.jit
    def by_hand(w):
        jacobian = jax.jacobian(net_logits)(w, *args)
        bend = jax.hessian(cross_entropy)(net_logits(w, *args), *args)
        return jacobian.T @ bend @ jacobian + jax.hessian(penalty)(w, *args)

    matrix = np.asarray(by_hand(w))
    product = lambda make: jax.jit(make(problem, case.hparams, PartitionedModel(w), laws.KEY))(v)
    assert_close(product(hg.curvature.gauss_newton), matrix @ v, "gradient")
    assert np.linalg.eigvalsh(matrix)[0] > 0
    assert np.linalg.norm(product(hg.curvature.hessian) - matrix @ v) > 1e-2


def test_a_loss_in_one_piece_has_no_gauss_newton_matrix():
    case = ridge()
    estimator = hg.Implicit(LONG, curvature=hg.curvature.gauss_newton)
    with pytest.raises(TypeError, match="GaussNewton"):
        estimator.step(case.problem, case.hparams, estimator.init(case.problem, case.params, case.hparams), laws.KEY)


@pytest.mark.variants(slow=["Implicit", "make1"])
@pytest.mark.parametrize("make", MAKE)
def test_the_prior_as_preconditioner(make):
    """Penalties over twelve orders of magnitude: plain CG stops far away, with their diagonal it is done at once."""
    case = ridge(num_features=8, num_rows=4)
    hparams = case.hparams | {"log_l2": jnp.linspace(0.0, 28.0, 8)}
    problem, inner = case.problem, hg.OptaxSolver(optax.sgd(1e-13), 1)
    prior = lambda h: jnp.exp(h["log_l2"])

    def found(**options):
        estimator = make(inner, hg.CG(5, rtol=1e-12), **options)
        state = estimator.init(problem, case.params, hparams)
        state = estimator.step(problem, hparams, state, laws.KEY)[0]
        return state.hypergradient["log_l2"], float(state.stats.residual)

    exact = make(inner, hg.Dense())
    state = exact.init(problem, case.params, hparams)
    right = exact.step(problem, hparams, state, laws.KEY)[0].hypergradient["log_l2"]
    plain, preconditioned = found(), found(preconditioner=prior)
    np.testing.assert_allclose(preconditioned[0], right, rtol=1e-6)
    assert preconditioned[1] < 1e-9
    assert jnp.linalg.norm(plain[0] - right) > 1e-3 * jnp.linalg.norm(right)
