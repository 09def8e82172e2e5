"""Evolution strategies on problems with known smoothed derivatives, from stable to chaotic."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypergrad as hg
from hypergrad.testing import Claim, check_estimator, laws, problems

SGD = hg.OptaxSolver(optax.sgd(0.1), 6)
SMALL = 1e-2


def dynamics(advance):
    """An optimiser that replaces the weights w by advance(w, λ)."""

    def optimiser(hparams):
        update = lambda updates, state, params: (optax.tree.sub(advance(params, hparams), params), state)
        return optax.GradientTransformation(lambda params: optax.EmptyState(), update)

    return optimiser


def system(outer_loss):
    nothing = lambda w, h, data, key: 0 * sum(map(jnp.sum, jax.tree.leaves(w)))
    data = {"none": jnp.zeros(1)}
    return hg.BilevelProblem(nothing, outer_loss, data, data)


MAKE = {
    "es": lambda inner: hg.ES(inner, 2, sigma=SMALL, batch_size=2),
    "nres": lambda inner: hg.NRES(inner, inner.num_steps, 2, sigma=SMALL),
    "combined": lambda inner: hg.Combined(hg.Reverse(inner), hg.ES(inner, 4, sigma=SMALL)),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "es" else pytest.mark.sweep) for name in MAKE]
)
def test_all_laws(name):
    check_estimator(MAKE[name], claim=Claim.UNBIASED, examples=1, shrink=0)


@pytest.mark.slow
def test_the_mean_is_exact_on_smooth_problems_and_the_work_is_counted():
    check_estimator(
        MAKE["es"], claim=Claim.UNBIASED, shrink=0, only=(laws.is_reverse_on_average, laws.steps_are_counted)
    )


def mean_of(estimator, problem, params, hparams, draws):
    """Mean and standard error of the hypergradients of many keys."""
    one = hg.value_and_hypergrad(problem, estimator)
    found = jax.vmap(lambda key: one(hparams, params, key)[1])(jax.random.split(laws.KEY, draws))
    return np.mean(found, 0), np.std(found, 0) / np.sqrt(draws)


def test_the_smoothed_gradient_of_a_quadratic_is_the_exact_one_whatever_sigma():
    """F(λ) = ½ λᵀAλ + bᵀλ after one step that copies λ; one σ per hyperparameter."""
    A, b = problems.positive(np.random.default_rng(0), 3), np.array([1.0, -2.0, 0.5])
    problem = system(lambda w, h, data, key: w @ A @ w / 2 + b @ w)
    inner = hg.OptaxSolver(dynamics(lambda w, h: h), 1)
    h = jnp.array([0.3, -1.0, 2.0])
    estimator = hg.ES(inner, 8, sigma=jnp.array([0.1, 3.0, 0.5]))
    mean, error = mean_of(estimator, problem, jnp.zeros(3), h, 4000)
    exact = A @ h + b
    assert np.all(np.abs(mean - exact) <= 5 * error) and np.all(error < 0.2 * np.linalg.norm(exact))


def test_a_discrete_outer_loss_has_the_gradient_of_its_smoothed_form():
    """F = 1 where λ > 0: the smoothed loss is the normal distribution function, its derivative the density."""
    problem = system(lambda w, h, data, key: jnp.where(w > 0, 1.0, 0.0))
    inner = hg.OptaxSolver(dynamics(lambda w, h: h), 1)
    mean, error = mean_of(hg.ES(inner, 64, sigma=0.5), problem, jnp.zeros(()), jnp.asarray(0.2), 4000)
    density = np.exp(-0.5 * (0.2 / 0.5) ** 2) / (0.5 * np.sqrt(2 * np.pi))
    assert abs(mean - density) <= 5 * error < 0.05 * density


def test_the_combination_does_not_believe_derivatives_that_are_all_zero():
    problem = system(lambda w, h, data, key: jnp.where(w > 0, 1.0, 0.0))
    inner, w, h = hg.OptaxSolver(dynamics(lambda w, h: h), 1), jnp.zeros(()), jnp.asarray(0.2)
    es = hg.ES(inner, 64, sigma=0.5)
    found = [
        hg.value_and_hypergrad(problem, estimator)(h, w, laws.KEY)[1]
        for estimator in (es, hg.Combined(hg.Reverse(inner), es))
    ]
    np.testing.assert_allclose(*found)


def test_a_solver_that_reverse_mode_refuses_is_no_obstacle():
    """A step with a loop of unknown length: it halves the distance from λ until that is below 1e-6."""
    near = lambda w, h: jax.lax.while_loop(lambda v: jnp.abs(v - h) > 1e-6, lambda v: (v + h) / 2, w)
    inner, problem = hg.OptaxSolver(dynamics(near), 1), system(lambda w, h, data, key: w**2)
    w, h = jnp.zeros(()), jnp.asarray(0.7)
    with pytest.raises(ValueError, match="cannot differentiate in reverse mode"):
        hg.value_and_hypergrad(problem, hg.Reverse(inner))(h, w, laws.KEY)
    mean, error = mean_of(hg.ES(inner, 16), problem, w, h, 200)
    assert abs(mean - 2 * h) <= 5 * error < 0.2


def test_a_run_that_is_not_finite_is_flagged():
    problem = system(lambda w, h, data, key: jnp.where(w > 0, 1.0, jnp.nan))
    inner = hg.OptaxSolver(dynamics(lambda w, h: h), 1)
    estimator = hg.ES(inner, 8, sigma=5.0)
    state = estimator.init(problem, jnp.zeros(()), jnp.asarray(0.5))
    assert int(estimator.step(problem, jnp.asarray(0.5), state, laws.KEY)[0].stats.status) & hg.Status.NONFINITE


def test_noise_larger_than_the_signal_is_flagged():
    problem = system(lambda w, h, data, key: jnp.sum(jnp.sin(1000 * w)))
    inner = hg.OptaxSolver(dynamics(lambda w, h: h), 1)
    estimator = hg.ES(inner, 16, sigma=1.0)
    state = estimator.init(problem, jnp.zeros(5), jnp.ones(5))
    assert int(estimator.step(problem, jnp.ones(5), state, laws.KEY)[0].stats.status) & hg.Status.INACCURATE


# Influence balancing: 23 states, θ enters the first 10 with +, the others with -, each takes half of the next.
SIGNS = jnp.asarray(np.repeat([1.0, -1.0], [10, 13]))
OPTIMUM = -1 / 6  # s₁ = 2 · (10 - 13) θ at rest


def balance(w, h):
    """One step of the chain, and the sum of ½ (s₁ - 1)² so far."""
    s = w["s"] / 2 + jnp.append(w["s"][1:], 0.0) / 2 + h * SIGNS
    return {"s": s, "total": w["total"] + (s[0] - 1) ** 2 / 2}


BALANCE = {"s": jnp.zeros(23), "total": jnp.zeros(())}
AT_THE_END = system(lambda w, h, data, key: (w["s"][0] - 1) ** 2 / 2)


@pytest.mark.parametrize("horizon", [1, 10, 100])
def test_truncated_reverse_mode_goes_the_wrong_way(horizon):
    inner = hg.OptaxSolver(dynamics(balance), horizon)
    problem = system(lambda w, h, data, key: w["total"])
    truncated = hg.Reverse(inner, warm_start=True, check=None)
    found = hg.value_and_hypergrad(problem, truncated)(jnp.zeros(()), BALANCE, laws.KEY)[1]
    assert found < 0 < -OPTIMUM  # λ = 0 must fall, and the truncated hypergradient makes it rise


@pytest.mark.variants(quick=["NRES"], slow=["PES"])
@pytest.mark.parametrize("make", [hg.PES, hg.NRES])
def test_persistent_strategies_reach_the_minimum(make):
    """The truncations have the length at which reverse mode goes the wrong way."""
    estimator = make(hg.OptaxSolver(dynamics(balance), 1000), 100, 32, sigma=0.02)
    search = hg.GradientSearch(estimator, optax.sgd(0.003))
    state = search.init(AT_THE_END, BALANCE, jnp.asarray(0.1))
    _, history = hg.run(search, AT_THE_END, state, key=laws.KEY, budget=65 * 100 * 300, chunk=100)
    late = np.mean(np.asarray(history.hparams)[-100:])
    np.testing.assert_allclose(late, OPTIMUM, rtol=0.1)


def episode_sum(estimator, problem, params, hparams, key):
    """The sum of the hypergradients of one training."""
    state = estimator.init(problem, params, hparams)
    total = jnp.zeros_like(hparams)
    for k in range(estimator.inner.num_steps // estimator.truncation):
        estimate, state = estimator.step(problem, hparams, state, jax.random.fold_in(key, k))
        total += estimate.hypergradient
    return total, state


@pytest.mark.variants(slow=["PES-True", "NRES-False"])
@pytest.mark.parametrize(("make", "final"), [(hg.PES, True), (hg.NRES, False)])
def test_truncations_add_up_to_the_whole(make, final):
    """The chain is linear and its loss quadratic, so that the smoothed hypergradient is the exact one."""
    h, total = jnp.asarray(0.3), 60
    whole = lambda steps: hg.Reverse(hg.OptaxSolver(dynamics(balance), steps), check=None)
    exact = lambda steps: hg.value_and_hypergrad(AT_THE_END, whole(steps))(h, BALANCE, laws.KEY)[1]
    expected = exact(60) if final else exact(20) + exact(40) + exact(60)
    estimator = make(hg.OptaxSolver(dynamics(balance), total), 20, 64, sigma=0.05, final=final)
    keys = jax.random.split(laws.KEY, 1000)
    found = jax.vmap(lambda key: episode_sum(estimator, AT_THE_END, BALANCE, h, key)[0])(keys)
    error = np.std(found) / np.sqrt(len(keys))
    assert abs(np.mean(found) - expected) <= 5 * error < 0.5 * abs(expected)


def test_training_begins_again_after_its_last_truncation():
    estimator = hg.PES(hg.OptaxSolver(dynamics(balance), 4), 2, 3)
    _, state = episode_sum(estimator, AT_THE_END, BALANCE, jnp.asarray(0.1), laws.KEY)
    again, _ = estimator.step(AT_THE_END, jnp.asarray(0.1), state, laws.KEY)
    first, _ = estimator.step(
        AT_THE_END, jnp.asarray(0.1), estimator.init(AT_THE_END, BALANCE, jnp.asarray(0.1)), laws.KEY
    )
    assert state.t == 0
    np.testing.assert_array_equal(again.hypergradient, first.hypergradient)


@pytest.mark.slow
def test_minibatches_serve_all_of_them():
    case = problems.ridge()
    rows = {name: case.problem.train[name] for name in ("x", "y")}
    fit = lambda w, h, data, key: jnp.mean((data["x"] @ w - data["y"]) ** 2) + jnp.sum(jnp.exp(h) * w**2)
    problem = hg.BilevelProblem(fit, fit, hg.Batches(rows, 4), hg.Batches(rows, 4))
    for estimator in (hg.ES(SGD, 2), hg.NRES(SGD, 3, 2)):
        state = estimator.init(problem, case.params, case.hparams["log_l2"])
        estimate, _ = estimator.step(problem, case.hparams["log_l2"], state, laws.KEY)
        assert np.all(np.isfinite(estimate.hypergradient)) and np.any(estimate.hypergradient)


# The logistic map x <- r x (1 - x), chaotic at r = 3.9.
MAP, WIDTH = dynamics(lambda x, r: r * x * (1 - x)), 0.01
LAST = system(lambda x, r, data, key: x)


def smoothed_derivative(steps, r=3.9):
    """E[F'(r + ε)] = E[ε F(r + ε)]/σ² by the trapezoidal rule on a million nodes; the tails end at 8 σ."""
    eps, step = np.linspace(-8 * WIDTH, 8 * WIDTH, 1_000_001, retstep=True)
    x = np.full_like(eps, 0.3)
    for _ in range(steps):
        x = (r + eps) * x * (1 - x)
    weights = np.exp(-0.5 * (eps / WIDTH) ** 2) / (WIDTH * np.sqrt(2 * np.pi))
    return np.sum(weights * eps * x) * step / WIDTH**2


@pytest.mark.slow
def test_the_smoothed_derivative_of_the_logistic_map():
    steps, x = 12, jnp.asarray(0.3)
    inner = hg.OptaxSolver(MAP, steps)
    exact = smoothed_derivative(steps)
    found, error = mean_of(hg.ES(inner, 4000, sigma=WIDTH), LAST, x, jnp.asarray(3.9), 100)
    assert abs(found - exact) <= 0.05 * abs(exact) and error < 0.02 * abs(exact)
    reverse = hg.value_and_hypergrad(LAST, hg.Reverse(inner))(jnp.asarray(3.9), x, laws.KEY)[1]
    assert abs(reverse) > 10 * abs(exact)


def reverse_average(steps, key, num_pairs=32):
    """The mean of exact derivatives over the pairs, without this library."""

    def last(r):
        return jax.lax.fori_loop(0, steps, lambda _, x: r * x * (1 - x), jnp.asarray(0.3))

    eps = WIDTH * jax.random.normal(key, (num_pairs,))
    return jnp.mean(jax.vmap(jax.grad(last))(3.9 + jnp.concatenate([eps, -eps])))


HORIZONS = [4, *(pytest.param(steps, marks=pytest.mark.slow) for steps in (1, 8, 16, 64))]


@pytest.mark.slow
@pytest.mark.parametrize("steps", HORIZONS)
def test_the_combination_is_never_much_worse_than_the_better_part(steps):
    inner, exact, r = hg.OptaxSolver(MAP, steps), smoothed_derivative(steps), jnp.asarray(3.9)
    es, keys = hg.ES(inner, 32, sigma=WIDTH), jax.random.split(laws.KEY, 2000)

    def squared_error(estimator):
        one = hg.value_and_hypergrad(LAST, estimator)
        found = jax.vmap(lambda key: one(r, jnp.asarray(0.3), key)[1])(keys)
        return np.mean((np.asarray(found) - exact) ** 2)

    by_reverse = np.mean((np.asarray(jax.vmap(lambda key: reverse_average(steps, key))(keys)) - exact) ** 2)
    better = min(squared_error(es), by_reverse)
    assert squared_error(hg.Combined(hg.Reverse(inner), es)) <= 1.1 * better
