"""Hypergradients through block coordinate descent: the closed forms of other proximal solvers, and what it refuses."""

import equinox as eqx
import jax.numpy as jnp
import jaxopt
import numpy as np
import pytest
from jaxopt.base import LinearOperator

import hypergrad as hg
from hypergrad.testing.laws import KEY

from tests.hypergrad.estimators import test_proximal as known

N, P = known.N, known.P


class Squares(jaxopt.objective.CompositeLinearFunction):
    """‖Xw - y‖²/2n."""

    def subfun(self, predictions, h, data, key):
        return jnp.sum((predictions - data["y"]) ** 2) / (2 * N)

    def make_linop(self, h, data, key):
        return LinearOperator(data["x"])

    def columnwise_lipschitz_const(self, h, data, key):
        return self.make_linop(h, data, key).column_l2_norms(squared=True) / N


class Ridge(Squares):
    """‖Xw - y‖²/2n + ½ Σ exp(h_j) w_j², the penalty as more rows of X: a linear map that depends on λ."""

    def subfun(self, predictions, h, data, key):
        return jnp.sum((predictions - jnp.append(data["y"], jnp.zeros(P))) ** 2) / (2 * N)

    def make_linop(self, h, data, key):
        return LinearOperator(jnp.concatenate([data["x"], np.sqrt(N) * jnp.diag(jnp.exp(h / 2))]))


class Tilted(Squares):
    """‖Xw‖²/2n - h y·Xw/n, with a linear term that λ scales."""

    def subfun(self, predictions, h, data, key):
        return jnp.sum(predictions**2) / (2 * N)

    def b(self, h, data, key):
        return -h * data["x"].T @ data["y"] / N


def problem_of(loss):
    return hg.BilevelProblem(loss, known.outer_loss, known.PROBLEM.train, known.PROBLEM.valid)


def blocks(prox, maxiter=1000, **options):
    return hg.JaxoptSolver(jaxopt.BlockCoordinateDescent, block_prox=prox, maxiter=maxiter, **options)


elastic = lambda w, h, scaling: jaxopt.prox.prox_elastic_net(w, (h[0], h[1] / h[0]), scaling)
box = lambda w, h, scaling: jnp.clip(w, h[0], h[1])
positive = lambda w, h, scaling: jnp.maximum(w, 0)


def by_positive_ridge(w, h):
    """-exp(h_j) w_j v_j with v the solution of the Hessian on the positive entries."""
    on, v = w > 0, np.zeros(P)
    assert 0 < on.sum() < P
    curvature = known.GRAM + np.diag(np.exp(h))
    v[on] = np.linalg.solve(curvature[np.ix_(on, on)], (known.Z.T @ (known.Z @ w - known.U) / len(known.U))[on])
    return -np.exp(h) * w * v


def by_tilt(w, h):
    """w is proportional to h on its support, so that dF/dh = ∇F·w/h."""
    assert 0 < np.sum(w > 0) < P
    return known.Z.T @ (known.Z @ w - known.U) / len(known.U) @ w / h


CASES = {
    "lasso": (Squares(), jaxopt.prox.prox_lasso, jnp.asarray(0.3), known.by_lasso),
    "elastic net": (Squares(), elastic, jnp.array([0.2, 0.4]), known.by_elastic_net),
    "box": (Squares(), box, jnp.array([-1.0, 1.2]), known.by_box),
    "non-negative, a penalty per weight": (Ridge(), positive, jnp.linspace(-3.0, -1.0, P), by_positive_ridge),
    "non-negative, linear term": (Tilted(), positive, jnp.asarray(0.8), by_tilt),
}
SOLVER = hg.CG(20, rtol=1e-13)


@pytest.mark.variants(
    slow=["implicit-lasso", "hoag-box", "hoag-elastic net", "implicit-non-negative*", "reverse-lasso"]
)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("make", ["implicit", "hoag", "reverse", "forward"])
def test_closed_forms(name, make):
    loss, prox, h, exact = CASES[name]
    estimator = {
        "implicit": lambda: hg.Implicit(blocks(prox, tol=1e-14), SOLVER),
        "hoag": lambda: hg.HOAG(blocks(prox), SOLVER, schedule=lambda k: 1e-13),
        "reverse": lambda: hg.Reverse(blocks(prox, 300), check=None),
        "forward": lambda: hg.Forward(blocks(prox, 300)),
    }[make]()
    found = known.estimate_of(estimator, h, problem_of(loss))
    expected = exact(np.asarray(found.params), np.asarray(h))
    assert np.linalg.norm(expected) > 1e-2
    np.testing.assert_allclose(found.hypergradient, expected, rtol=1e-8, atol=1e-10)
    assert hg.Status(int(found.stats.status)) == hg.Status.OK


@pytest.mark.slow
def test_one_step_is_the_derivative_of_the_last_epoch():
    """The epoch w_j <- prox(w_j - ∇_j f/L_j), j = 1 ... P, differentiated by hand at the solution."""
    h = jnp.asarray(0.3)
    found = known.estimate_of(hg.OneStep(blocks(jaxopt.prox.prox_lasso, 300), check=None), h, problem_of(Squares()))
    w, dw = np.asarray(found.params), np.zeros(P)
    for j in np.flatnonzero(w):  # others stay at zero
        dw[j] = (-np.sign(w[j]) - (known.GRAM[j] @ dw - known.GRAM[j, j] * dw[j])) / known.GRAM[j, j]
    by_w = known.Z.T @ (known.Z @ w - known.U) / len(known.U)
    np.testing.assert_allclose(found.hypergradient, by_w @ dw, rtol=1e-8)


def test_an_epoch_counts_as_one_gradient_and_tol_bounds_the_step_in_units_of_the_gradient():
    inner, problem, h = blocks(jaxopt.prox.prox_lasso), problem_of(Squares()), jnp.asarray(0.3)
    state, largest = inner.init(problem, jnp.zeros(P), h), np.max(np.diag(known.GRAM))
    end, spent = eqx.filter_jit(inner.solve)(problem, h, state, KEY, 1e-6)
    assert int(spent.gradients) == int(spent.iterations) + 1 < 100
    step = inner.step(problem, h, end, KEY).params - end.params
    assert 0 < largest * np.linalg.norm(step) < 1e-6
    before, _ = eqx.filter_jit(inner.with_num_steps(int(spent.iterations) - 1).solve)(problem, h, state, KEY, 0.0)
    assert largest * np.linalg.norm(end.params - before.params) < 1e-6
    assert float(before.solver.error) > 1e-6


BAD = {
    "plain loss": (known.inner_loss, known.PROBLEM.train, jnp.zeros(P), "CompositeLinearFunction"),
    "batches": (
        Squares(),
        hg.Batches(known.PROBLEM.train, 4, order="all"),
        jnp.zeros(P),
        "reads the training data whole",
    ),
    "two arrays": (Squares(), known.PROBLEM.train, [jnp.zeros(P)], "one array of weights"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_it_cannot_train_is_named(name):
    loss, train, params, message = BAD[name]
    outer = lambda w, h, data, key: jnp.sum(w[0]) + h
    at_list = type("OfList", (Squares,), {"__call__": lambda self, w, *args: Squares.__call__(self, w[0], *args)})
    loss = at_list() if isinstance(params, list) else loss
    problem = hg.BilevelProblem(loss, outer, train, known.PROBLEM.valid)
    with pytest.raises(TypeError, match=message):
        blocks(jaxopt.prox.prox_lasso).init(problem, params, jnp.asarray(0.3))


def test_the_proximal_step_is_asked_for():
    with pytest.raises(TypeError, match="BlockCoordinateDescent needs the option block_prox"):
        hg.JaxoptSolver(jaxopt.BlockCoordinateDescent, maxiter=3)
