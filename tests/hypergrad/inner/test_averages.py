"""The outer loss at averaged weights: its derivatives, its state, and the noise floor that it takes away."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypergrad as hg
from hypergrad.ground.units import norm
from hypergrad.testing import assert_close, laws
from hypergrad.testing.problems import OPTIMISERS, ridge, tuned
from hypergrad.testing.solver_laws import derivative_from_any_state

BETA, STEPS = 0.8, 4
INNER = hg.OptaxSolver(OPTIMISERS["momentum"], STEPS, average=BETA)
EXACT = {
    "reverse, sqrt": hg.Reverse(INNER, checkpoints="sqrt", warm_start=True),
    "forward": hg.Forward(INNER),
    "drmad, every knot": hg.DrMAD(INNER, knots=STEPS, warm_start=True),
    "greedy, one step": hg.Greedy(INNER.with_num_steps(1)),
}


@pytest.mark.slow
def test_training_stays_at_the_weights_and_the_outer_loss_sees_the_average():
    case, plain = ridge(), hg.OptaxSolver(OPTIMISERS["momentum"], STEPS)
    estimate, state = laws.first_step(hg.Reverse(INNER, warm_start=True), case)
    _, alone = laws.first_step(hg.Reverse(plain, warm_start=True), case)
    assert_close(state.inner.partitioned.arrays, alone.inner.partitioned.arrays)
    training, w = plain.init(case.problem, case.params, case.hparams), case.params
    for t in range(STEPS):
        training = plain.step(case.problem, case.hparams, training, jax.random.fold_in(laws.KEY, t))
        w = BETA * w + (1 - BETA) * training.params
    evaluated = hg.evaluate(INNER, case.problem, case.params, case.hparams, laws.KEY)
    for found in (estimate.params, state.params, evaluated.params):
        assert_close(found, w)
    key = jax.random.fold_in(laws.KEY, STEPS)
    assert_close(estimate.value, case.problem.outer_loss(w, case.hparams, case.problem.valid, key))


@pytest.mark.parametrize("estimator", EXACT.values(), ids=EXACT)
def test_hypergradients_at_averages_are_derivatives_of_their_values(estimator):
    derivative_from_any_state(estimator, ridge())


def test_an_injected_rate_at_averaged_weights():
    rate = lambda h: optax.inject_hyperparams(optax.sgd)(learning_rate=jnp.exp(h["log_rate"]), momentum=0.9)
    derivative_from_any_state(hg.Reverse(hg.OptaxSolver(rate, 3, average=BETA), warm_start=True), tuned())


def test_a_short_horizon_sees_the_average_through_its_last_steps():
    case = ridge()
    exact, short = (laws.answer(hg.Reverse(INNER, horizon=h, check=None), case)[1]["log_l2"] for h in (STEPS, 2))
    assert not np.allclose(exact, short)
    assert_close(laws.answer(hg.Reverse(INNER, horizon=STEPS), case)[1]["log_l2"], exact, "gradient")


def test_growth_is_measured_although_the_outer_loss_sees_no_weights():
    wild = hg.OptaxSolver(optax.sgd(30.0), 20, average=BETA)
    estimate, _ = laws.first_step(hg.DrMAD(wild, check=None), ridge())
    assert estimate.stats.status & hg.Status.ADJOINT_GROWTH


@pytest.mark.slow
def test_an_implicit_estimator_takes_the_average_for_the_solution():
    case = ridge()
    slow = hg.OptaxSolver(optax.sgd(0.3), 60, average=0.99)
    estimate, _ = laws.first_step(hg.Implicit(slow, hg.CG(6, rtol=1e-13)), case)
    assert estimate.stats.status & hg.Status.INNER_UNCONVERGED  # the last weights are solved, the average is not yet
    solved = hg.OptaxSolver(optax.sgd(0.3), 2000, average=0.9)
    for estimator in (hg.Implicit(solved, hg.CG(6, rtol=1e-13)), hg.HOAG(solved, hg.CG(6, rtol=1e-13))):
        estimate, _ = laws.first_step(estimator, case)
        gradient = jax.grad(case.problem.inner_loss)(estimate.params, case.hparams, case.problem.train, laws.KEY)
        assert (norm(gradient) < 1e-6) == (not estimate.stats.status & hg.Status.INNER_UNCONVERGED)


@pytest.mark.slow
def test_searches_and_checkpoints_carry_the_average(tmp_path):
    case, path = ridge(), tmp_path / "search.eqx"
    search = hg.GradientSearch(hg.Reverse(INNER, warm_start=True), optax.adam(0.1))
    run = lambda budget, state, **more: hg.run(search, case.problem, state, key=laws.KEY, budget=budget, **more)[0]
    start = search.init(case.problem, case.params, case.hparams)
    whole = run(6 * STEPS, start)
    run(3 * STEPS, start, checkpoint=str(path))
    resumed = run(6 * STEPS, search.init(case.problem, case.params, case.hparams), checkpoint=str(path))
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(one, other)
    found = case.problem.outer_loss(whole.best.params, whole.best.hparams, case.problem.valid, laws.KEY)
    assert_close(found, whole.best.value)


@pytest.mark.slow
def test_maid_bounds_its_error_at_the_average():
    case = ridge()
    search = hg.MAID(hg.OptaxSolver(optax.sgd(0.3), 50, average=0.9), hg.CG(10), strong_convexity=0.1)
    state, history = hg.run(
        search, case.problem, search.init(case.problem, case.params, case.hparams), key=laws.KEY, budget=800
    )
    exact = hg.Implicit(hg.OptaxSolver(optax.sgd(0.3), 4000), hg.CG(10, rtol=1e-14))
    solved = laws.answer(exact, case.replace(hparams=state.best.hparams))
    assert abs(solved[0] - state.best.value) <= 1e-2
    assert np.all(np.asarray(history.stats.diagnostics["value_error"])[1:] < np.inf)


def test_half_precision_is_averaged_in_float32():
    """Steps of an average below the spacing of bfloat16 would all be lost."""
    problem = hg.BilevelProblem(lambda w, h, d, key: h * jnp.sum(w), lambda w, h, d, key: h * jnp.sum(w), 1.0, 1.0)
    inner = hg.OptaxSolver(optax.sgd(1.0), 1, average=0.999)
    _, state = hg.Reverse(inner, warm_start=True, check=None).step(
        problem,
        jnp.float32(1),
        hg.Reverse(inner).init(problem, jnp.full(3, 64, jnp.bfloat16), jnp.float32(1)),
        laws.KEY,
    )
    assert state.inner.average.dtype == jnp.float32 and state.params.dtype == jnp.bfloat16
    np.testing.assert_allclose(state.inner.average, 63.999, rtol=1e-6)


def noisy(size):
    """½ w² and a gradient with noise of variance 1, in many coordinates at once; the outer loss is the mean of ½ w²."""
    inner = lambda w, h, d, key: jnp.sum(w**2) / 2 + w @ jax.random.normal(key, w.shape)
    return hg.BilevelProblem(inner, lambda w, h, d, key: jnp.mean(w**2) / 2, 0.0, 0.0), jnp.zeros(size)


def floor(log_rate, average):
    """½ Var of the averaged weights once training has forgotten its start; see docs/training-state.md."""
    rate = jnp.exp(log_rate)
    rho = 1 - rate
    return rate / (2 - rate) * (1 - average) / (1 + average) * (1 + average * rho) / (1 - average * rho) / 2


@pytest.mark.variants(quick=["0.95"], slow=["0.0"])
@pytest.mark.parametrize("average", [0.0, 0.95])
def test_the_noise_floor_of_a_quadratic_in_closed_form(average):
    problem, params = noisy(8192)
    inner = hg.OptaxSolver(lambda h: optax.sgd(jnp.exp(h)), 150, average=average)
    log_rate = jnp.log(0.5)
    value, slope = hg.value_and_hypergrad(problem, hg.Reverse(inner))(log_rate, params, laws.KEY)
    expected, expected_slope = jax.value_and_grad(floor)(log_rate, average)
    np.testing.assert_allclose(value, expected, rtol=0.08)  # five standard errors
    np.testing.assert_allclose(slope, expected_slope, rtol=0.1, atol=0.1 * expected)
    if average:
        assert abs(slope) < 0.05 * jax.grad(floor)(log_rate, 0.0)


@pytest.mark.parametrize("average", [1.0, -0.1, "half", float("nan")])
def test_what_is_no_average_is_refused_by_name(average):
    with pytest.raises((TypeError, ValueError), match="average must be"):
        hg.OptaxSolver(optax.sgd(0.1), 3, average=average)


def test_training_run_backwards_refuses_an_average():
    with pytest.raises(ValueError, match="average"):
        hg.Reversible(hg.OptaxSolver(hg.MomentumSGD(0.1), 3, average=BETA))


def test_a_solver_without_an_average_carries_none():
    case = ridge()
    state = hg.OptaxSolver(optax.sgd(0.1), 3).init(case.problem, case.params, case.hparams)
    assert state.average is None and eqx.tree_equal(state.judged, state.partitioned)
    assert hg.OptaxSolver(optax.sgd(0.1), 3, average=0.5).with_num_steps(7).average == 0.5
