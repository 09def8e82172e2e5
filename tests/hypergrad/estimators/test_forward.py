"""Forward mode and one-step differentiation."""

import jax.numpy as jnp
import jaxopt
import optax
import pytest

import hypergrad as hg
from hypergrad.testing import assert_close, laws
from hypergrad.testing.problems import OPTIMISERS, net, ridge

LBFGS = hg.JaxoptSolver(jaxopt.LBFGS, maxiter=3, linesearch="backtracking", history_size=3)


@pytest.mark.variants(quick=["inner0", "inner1", "inner2"], slow=["inner3"])
@pytest.mark.parametrize("inner", [*(hg.OptaxSolver(o, 6) for o in OPTIMISERS.values()), LBFGS])
def test_forward_is_reverse(inner):
    laws.agree(hg.Forward(inner), hg.Reverse(inner), ridge())


@pytest.mark.slow
def test_forward_is_reverse_on_a_network():
    inner = hg.OptaxSolver(OPTIMISERS["adam"], 4)
    laws.agree(hg.Forward(inner), hg.Reverse(inner), net())


@pytest.mark.slow
def test_tangents_carried_on_see_the_whole_past():
    """Three real-time steps at rest are one long step; without the tangents only the last stretch counts."""
    case, optimiser = ridge(), OPTIMISERS["momentum"]
    estimator = hg.Forward(hg.OptaxSolver(optimiser, 4), warm_start=True)
    state = estimator.init(case.problem, case.params, case.hparams)
    for _ in range(3):
        estimate, state = estimator.step(case.problem, case.hparams, state, laws.KEY)
    right = laws.answer(hg.Reverse(hg.OptaxSolver(optimiser, 12)), case)[1]
    assert_close(estimate.hypergradient, right, "gradient")
    short = laws.answer(hg.Reverse(hg.OptaxSolver(optimiser, 12), horizon=4), case)[1]
    assert jnp.linalg.norm(short["log_l2"] - right["log_l2"]) > 1e-3


def test_real_time_hypergradients_move_hyperparameters():
    case = ridge()
    search = hg.GradientSearch(hg.Forward(hg.OptaxSolver(OPTIMISERS["momentum"], 1), warm_start=True), optax.adam(0.05))
    state = search.init(case.problem, case.params, case.hparams)
    state, history = hg.run(search, case.problem, state, key=laws.KEY, budget=300, chunk=50)
    assert history.value[-1] < history.value[30]
    assert history.stats.counts.hvps[0] == 4


def test_forward_sees_learning_rates():
    case = ridge()
    case = case.replace(hparams=case.hparams | {"log_lr": jnp.asarray(-2.0)})
    inner = hg.OptaxSolver(lambda h: optax.sgd(jnp.exp(h["log_lr"]), 0.9), 9)
    laws.agree(hg.Forward(inner), hg.Reverse(inner), case)
    laws.finite_differences(hg.Forward(inner), case)


@pytest.mark.slow
def test_one_step_is_exact_after_a_newton_step():
    """gradient descent with the inverse Hessian as its rate is Newton's method on a quadratic loss in one variable."""
    case = ridge(num_features=1)
    curvature = jnp.mean(case.problem.train["x"] ** 2) + jnp.exp(case.hparams["log_l2"][0])
    newton, slow = (hg.OptaxSolver(optax.sgd(rate), 3) for rate in (1 / curvature, 0.3 / curvature))
    laws.closed_form(hg.OneStep(newton), case)
    right, far = case.exact()["log_l2"], laws.answer(hg.OneStep(slow), case)[1]["log_l2"]
    assert jnp.abs(far - right)[0] > 0.05 * jnp.abs(right)[0]
