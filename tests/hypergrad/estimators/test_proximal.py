"""Hypergradients through proximal and projected inner problems: closed forms on known supports."""

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import pytest

import hypergrad as hg
from hypergrad.testing import laws

RNG = np.random.default_rng(3)
N, P = 12, 6
X, Z = RNG.normal(size=(N, P)), RNG.normal(size=(9, P))
TRUTH = np.array([1.5, 0.0, -2.0, 0.0, 0.6, 0.0])
Y, U = X @ TRUTH + 0.3 * RNG.normal(size=N), Z @ TRUTH + 0.3 * RNG.normal(size=9)
GRAM = X.T @ X / N
STEP = 1 / np.linalg.eigvalsh(GRAM)[-1]


def inner_loss(w, h, data, key):
    return jnp.mean((data["x"] @ w - data["y"]) ** 2) / 2


def outer_loss(w, h, data, key):
    return jnp.mean((data["x"] @ w - data["y"]) ** 2) / 2


PROBLEM = hg.BilevelProblem(inner_loss, outer_loss, {"x": X, "y": Y}, {"x": Z, "y": U})
lasso = lambda w, h, scaling: jaxopt.prox.prox_lasso(w, h, scaling)
elastic = lambda w, h, scaling: jaxopt.prox.prox_elastic_net(w, (h[0], h[1] / h[0]), scaling)
positive = lambda w, h: jnp.maximum(w, 0)


def support_solve(w, extra=0.0):
    """v = H_S⁻¹ ∇_S F on the support, zero elsewhere, with H = XᵀX/n + extra I."""
    on, v = w != 0, np.zeros(P)
    by_w = Z.T @ (Z @ w - U) / len(U)
    v[on] = np.linalg.solve((GRAM + extra * np.eye(P))[np.ix_(on, on)], by_w[on])
    return v


def by_lasso(w, h):
    return -np.sign(w) @ support_solve(w)


def by_weighted_lasso(w, h):
    return -np.sign(w) * support_solve(w)


def by_elastic_net(w, h):
    v = support_solve(w, extra=h[1])
    return np.array([-np.sign(w) @ v, -w @ v])


def by_box(w, h):
    """A bound that is active moves its entry one to one, and the free entries through the Hessian."""
    free, by_w = (w > h[0] + 1e-9) & (w < h[1] - 1e-9), Z.T @ (Z @ w - U) / len(U)
    found = []
    for bound in (0, 1):
        active = np.abs(w - h[bound]) < 1e-9
        dw = active.astype(float)
        dw[free] = -np.linalg.solve(GRAM[np.ix_(free, free)], GRAM[np.ix_(free, active)] @ dw[active])
        found.append(by_w @ dw)
    return np.array(found)


def proximal(prox, **options):
    return hg.JaxoptSolver(jaxopt.ProximalGradient, prox=prox, stepsize=STEP, maxiter=3000, tol=1e-14, **options)


BOX = lambda h: (jnp.full(P, h[0]), jnp.full(P, h[1]))
clipped = lambda w, h: jnp.clip(w, h[0], h[1])
PROBLEMS = {
    "lasso": (proximal(lasso), jnp.asarray(0.3), by_lasso),
    "lasso, plain gradient": (proximal(lasso, acceleration=False), jnp.asarray(0.3), by_lasso),
    "weighted lasso": (proximal(lasso), jnp.linspace(0.1, 0.5, P), by_weighted_lasso),
    "elastic net": (proximal(elastic), jnp.array([0.2, 0.4]), by_elastic_net),
    "box": (
        hg.JaxoptSolver(jaxopt.ProjectedGradient, projection=clipped, maxiter=3000, tol=1e-14, stepsize=STEP),
        jnp.array([-1.0, 1.2]),
        by_box,
    ),
    "box, quasi-Newton": (
        hg.JaxoptSolver(jaxopt.LBFGSB, bounds=BOX, maxiter=100, tol=1e-13),
        jnp.array([-1.0, 1.2]),
        by_box,
    ),
}
LINEAR = {
    "cg": hg.CG(20, rtol=1e-13),
    "minres": hg.MINRES(20, rtol=1e-13),
    "gmres": hg.GMRES(P, rtol=1e-13),
    "dense": hg.Dense(),
    "the fixed point's own iteration": hg.Neumann(3000, step_size=1.0, rtol=1e-13),
}


def estimate_of(estimator, hparams, problem=PROBLEM):
    state = estimator.init(problem, jnp.zeros(P), hparams)
    return estimator.step(problem, hparams, state, laws.KEY)[0]


@pytest.mark.variants(
    quick=["implicit-box", "implicit-lasso, plain gradient"],
    slow=["hoag-weighted lasso", "hoag-elastic net", "implicit-lasso", "implicit-box, quasi-Newton"],
)
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("make", ["implicit", "hoag"])
def test_closed_forms(name, make):
    inner, hparams, exact = PROBLEMS[name]
    solver = hg.CG(20, rtol=1e-13)
    estimator = hg.Implicit(inner, solver) if make == "implicit" else hg.HOAG(inner, solver, schedule=lambda k: 1e-13)
    found = estimate_of(estimator, hparams)
    expected = exact(np.asarray(found.params), np.asarray(hparams))
    assert np.linalg.norm(expected) > 1e-2
    np.testing.assert_allclose(found.hypergradient, expected, rtol=1e-8, atol=1e-10)
    assert hg.Status(int(found.stats.status)) == hg.Status.OK


@pytest.mark.variants(
    quick=["gmres-elastic net", "minres-box"], slow=["cg-elastic net", "gmres-box", "dense-elastic net"]
)
@pytest.mark.parametrize(
    ("name", "problem"), [*((name, "elastic net") for name in LINEAR), ("gmres", "box"), ("minres", "box")]
)
def test_every_linear_solver(name, problem):
    inner, hparams, exact = PROBLEMS[problem]
    found = estimate_of(hg.Implicit(inner, LINEAR[name]), hparams)
    np.testing.assert_allclose(found.hypergradient, exact(np.asarray(found.params), hparams), rtol=1e-8)
    assert found.stats.residual < 1e-10


@pytest.mark.slow
def test_batched_is_one_by_one():
    function = hg.value_and_hypergrad(PROBLEM, hg.Implicit(proximal(lasso)))
    penalties = jnp.array([0.1, 0.3, 0.7])
    together = jax.vmap(lambda h: function(h, jnp.zeros(P), laws.KEY)[1])(penalties)
    apart = jnp.stack([function(h, jnp.zeros(P), laws.KEY)[1] for h in penalties])
    np.testing.assert_allclose(together, apart, rtol=1e-9)


@pytest.mark.slow
def test_non_negative_least_squares():
    """A penalty per weight in the loss, and a projection: the Hessian restricted to the positive entries."""
    loss = lambda w, h, data, key: inner_loss(w, h, data, key) + jnp.sum(jnp.exp(h) * w**2) / 2
    problem = hg.BilevelProblem(loss, outer_loss, PROBLEM.train, PROBLEM.valid)
    inner = hg.JaxoptSolver(jaxopt.ProjectedGradient, projection=positive, maxiter=2000, tol=1e-14)
    h = jnp.linspace(-3.0, -1.0, P)
    found = estimate_of(hg.Implicit(inner, hg.CG(20, rtol=1e-13)), h, problem)
    w, on = np.asarray(found.params), np.asarray(found.params) > 0
    assert 0 < on.sum() < P
    v = np.zeros(P)
    v[on] = np.linalg.solve((GRAM + np.diag(np.exp(h)))[np.ix_(on, on)], (Z.T @ (Z @ w - U) / len(U))[on])
    np.testing.assert_allclose(found.hypergradient, -np.exp(h) * w * v, rtol=1e-8, atol=1e-10)


def group(w, h, scaling):
    return jax.vmap(lambda part: jaxopt.prox.prox_group_lasso(part, h, scaling))(w.reshape(3, 2)).ravel()


COUPLED = {
    "group lasso": (proximal(group), jnp.asarray(0.5)),
    "simplex": (
        hg.JaxoptSolver(
            jaxopt.ProjectedGradient,
            projection=lambda w, h: jaxopt.projection.projection_simplex(w, jnp.exp(h)),
            stepsize=STEP,
            maxiter=3000,
            tol=1e-14,
        ),
        jnp.asarray(0.3),
    ),
}


@pytest.mark.variants(quick=["group lasso"], slow=["simplex"])
@pytest.mark.parametrize("name", COUPLED)
def test_coupled_proximal_steps_agree_with_differences_and_have_no_kink_gap(name):
    inner, h = COUPLED[name]
    found = estimate_of(hg.Implicit(inner, hg.CG(20, rtol=1e-13)), h)
    at = lambda h: float(hg.evaluate(inner, PROBLEM, jnp.zeros(P), h, laws.KEY).value)
    np.testing.assert_allclose(found.hypergradient, (at(h + 1e-5) - at(h - 1e-5)) / 2e-5, rtol=1e-7)
    assert np.isnan(found.stats.diagnostics["kink_gap"])
    assert found.stats.residual < 1e-10


@pytest.mark.parametrize("make", [hg.Reverse, hg.Forward])
def test_trajectory_estimators_reach_the_same(make):
    """A trajectory of plain proximal steps long enough to solve the problem."""
    inner = hg.JaxoptSolver(jaxopt.ProximalGradient, prox=lasso, stepsize=STEP, maxiter=3000)
    h = jnp.asarray(0.3)
    found = estimate_of(make(inner), h)
    np.testing.assert_allclose(found.hypergradient, by_lasso(np.asarray(found.params), h), rtol=1e-8)


def test_one_step_is_the_first_term_of_the_fixed_points_iteration():
    inner = hg.JaxoptSolver(jaxopt.ProximalGradient, prox=lasso, stepsize=STEP, maxiter=3000, acceleration=False)
    one, series = hg.OneStep(inner, check=None), hg.Implicit(inner, hg.Neumann(1, step_size=1.0))
    h = jnp.asarray(0.3)
    np.testing.assert_allclose(estimate_of(one, h).hypergradient, estimate_of(series, h).hypergradient, rtol=1e-9)


def test_the_kink_gap_is_that_of_the_inactive_gradients():
    h = jnp.asarray(0.3)
    found = estimate_of(hg.Implicit(proximal(lasso)), h)
    w = np.asarray(found.params)
    gradient = X.T @ (X @ w - Y) / N
    assert 0 < np.sum(w == 0) < P
    expected = np.min(float(h) - np.abs(gradient[w == 0]))
    np.testing.assert_allclose(found.stats.diagnostics["kink_gap"], expected, rtol=1e-6)


def test_a_kink_is_flagged():
    """|∇_j f| is λ on an inactive entry, as inputs are orthogonal: the derivative from the left is another one."""
    train = {"x": np.eye(P) * np.sqrt(P), "y": np.array([3.0, 1.0, -2.0, 0.5, 0.0, 0.0]) * np.sqrt(P)}
    problem = hg.BilevelProblem(inner_loss, outer_loss, train, PROBLEM.valid)
    flag = lambda h: int(estimate_of(hg.Implicit(proximal(lasso)), jnp.asarray(h), problem).stats.status)
    assert flag(1.0) & hg.Status.INNER_UNCONVERGED
    assert flag(0.9) == hg.Status.OK


def test_an_asymmetric_map_in_the_place_of_a_proximal_step_is_flagged():
    turn = lambda w, h, scaling: jaxopt.prox.prox_lasso(w + 0.2 * scaling * jnp.roll(w, 1), h, scaling)
    found = estimate_of(hg.Implicit(proximal(turn, acceleration=False), hg.CG(50)), jnp.asarray(0.3))
    assert int(found.stats.status) & hg.Status.LINEAR_UNCONVERGED


def test_maid_refuses_proximal_steps_by_name():
    with pytest.raises(ValueError, match="ProximalGradient does not end at a zero of the inner gradient"):
        hg.MAID(proximal(lasso)).init(PROBLEM, jnp.zeros(P), jnp.asarray(0.3))


def test_bounds_are_asked_for():
    with pytest.raises(TypeError, match="LBFGSB needs the option bounds"):
        hg.JaxoptSolver(jaxopt.LBFGSB, maxiter=3)
