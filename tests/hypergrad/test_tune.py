"""Hyperparameters learned during one training run, from bad starts, within the budget."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypergrad as hg
from hypergrad.ground.tree import partition
from hypergrad.testing import laws
from hypergrad.tuning import setup
from hypergrad.tuning.report import cut_short

CURVATURES = np.geomspace(0.03, 1.0, 6)
BUDGET = 2000


def sgd(hparams):
    return optax.sgd(jnp.exp(hparams["log_rate"]))


def noisy_inner(w, h, data, key):
    """A quadratic whose minimum is drawn anew at every step, with the true one at 0."""
    return jnp.sum(data["a"] * (w - jax.random.normal(key, w.shape)) ** 2) / 2


def quadratic_outer(w, h, data, key):
    return jnp.sum(data["a"] * w**2) / 2


@functools.cache
def noisy_quadratic():
    data = {"a": CURVATURES}
    return hg.BilevelProblem(noisy_inner, quadratic_outer, data, data), jnp.full(6, 5.0)


def ridge_inner(w, h, data, key):
    x, y = hg.minibatch(key, (data["x"], data["y"]), 16)
    return jnp.mean((x @ w - y) ** 2) / 2 + jnp.exp(h["log_decay"]) * jnp.sum(w**2) / 2


def squares(w, h, data, key):
    return jnp.mean((data["x"] @ w - data["y"]) ** 2) / 2


@functools.cache
def regression():
    """Twenty features and forty noisy rows: without a penalty the weights overfit."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=20) / 3

    def rows(number):
        x = rng.normal(size=(number, 20))
        return {"x": x, "y": x @ w + rng.normal(size=number)}

    return hg.BilevelProblem(ridge_inner, squares, rows(40), rows(400)), jnp.zeros(20), rows(400)


def trained(problem, params, hparams, steps):
    """The outer loss after plain training at fixed hyperparameters, at the better of the last and averaged weights."""
    solvers = (hg.OptaxSolver(sgd, steps, average=average) for average in (None, 0.95))
    return min(float(hg.evaluate(solver, problem, params, hparams, laws.KEY).value) for solver in solvers)


def tune(problem, params, hparams, **options):
    options = {"key": laws.KEY, "budget": BUDGET} | options
    return hg.tune(hg.OptaxSolver(sgd, BUDGET), problem, params, hparams, **options)


@functools.cache
def best_rate():
    problem, params = noisy_quadratic()
    return min(trained(problem, params, {"log_rate": jnp.log(rate)}, BUDGET) for rate in np.geomspace(1e-3, 1, 7))


@pytest.mark.variants(quick=["0.3", "9.0"], slow=["0.01", "0.0003"])
@pytest.mark.parametrize("rate", [3e-4, 1e-2, 3e-1, 9.0])
def test_a_rate_from_any_start_is_near_the_best_fixed_one(rate):
    """Training diverges in a few updates at 9."""
    problem, params = noisy_quadratic()
    tuned = tune(problem, params, {"log_rate": jnp.log(rate)})
    assert float(tuned.value) < 2 * best_rate()
    assert float(quadratic_outer(tuned.params, tuned.hparams, problem.train, None)) == pytest.approx(float(tuned.value))
    assert tuned.gradients <= BUDGET
    at_start = trained(problem, params, {"log_rate": jnp.log(rate)}, BUDGET)
    assert rate in (1e-2, 3e-1) or not float(tuned.value) > at_start / 10


@pytest.mark.slow
def test_a_regression_from_bad_starts_is_near_the_best_fixed_setting():
    problem, params, test = regression()
    fixed = [
        {"log_decay": jnp.log(decay), "log_rate": jnp.log(rate)}
        for decay in (1e-3, 0.1, 0.3, 1.0)
        for rate in (0.01, 0.1)
    ]
    best = min(trained(problem, params, hparams, BUDGET) for hparams in fixed)
    for decay, rate in ((30.0, 1e-3), (1e-6, 1e-3), (1e-6, 1.0)):
        tuned = tune(problem, params, {"log_decay": jnp.log(decay), "log_rate": jnp.log(rate)})
        assert float(tuned.value) < 1.05 * best
        assert float(squares(tuned.params, None, test, None)) < float(squares(params, None, test, None))


@pytest.mark.variants(quick=["200"], slow=["777"])
@pytest.mark.parametrize("budget", [200, 777])
def test_the_budget_is_kept_and_used(budget):
    problem, params = noisy_quadratic()
    tuned = tune(problem, params, {"log_rate": jnp.log(0.01)}, budget=budget)
    assert budget - 2 * (budget // 2) ** 0.5 < tuned.gradients <= budget
    assert len(tuned.history) == tuned.state.num_steps
    assert "3 starts" in str(tuned) and "1.2" not in str(tuned.gradients)
    assert f"A schedule over {BUDGET} updates is not at its end" in str(tuned)
    assert "schedule" not in cut_short(BUDGET, BUDGET)


def test_an_update_costs_a_tenth_of_a_gradient_more():
    """The last of the 20 updates between two moves is differentiated, for two gradients, and so is the outer loss."""
    problem, params = noisy_quadratic()
    spent = tune(problem, params, {"log_rate": jnp.log(0.01)}, budget=800, starts=[]).state.spent
    assert int(spent.gradients) - int(spent.outer_gradients) == round(1.1 * int(spent.iterations))


def test_the_default_budget_is_that_of_plain_training():
    problem, params = noisy_quadratic()
    tuned = tune(problem, params, {"log_rate": jnp.log(0.01)}, budget=None)
    assert 0.95 * BUDGET < tuned.gradients <= BUDGET


@pytest.mark.slow
def test_an_interrupted_call_goes_on(tmp_path):
    problem, params, _ = regression()
    start = {"log_decay": jnp.zeros(()), "log_rate": jnp.log(0.1)}
    calls = 0

    def interrupt(state, history):
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt

    whole = tune(problem, params, start)
    with pytest.raises(KeyboardInterrupt):
        tune(problem, params, start, checkpoint=tmp_path / "tune", callback=interrupt)
    for _ in range(2):
        again = tune(problem, params, start, checkpoint=tmp_path / "tune")
        jax.tree.map(np.testing.assert_array_equal, (again.state, again.history), (whole.state, whole.history))
        assert (again.gradients, again.report) == (whole.gradients, whole.report)


@pytest.mark.slow
def test_a_holdout_chooses():
    problem, params, test = regression()
    start = {"log_decay": jnp.zeros(()), "log_rate": jnp.log(0.1)}
    tuned = tune(problem, params, start, holdout=test)
    assert float(tuned.value) == pytest.approx(float(squares(tuned.params, None, test, None)))
    assert tuned.gradients <= BUDGET and "holdout" in str(tuned)


@pytest.mark.slow
def test_moves_are_in_units_of_the_scale():
    problem, params, _ = regression()
    start = {"log_decay": jnp.zeros(()), "log_rate": jnp.log(0.1)}
    tuned = tune(problem, params, start, scale={"log_decay": 0.0, "log_rate": 1.0}, starts=[])
    assert np.all(tuned.history.hparams["log_decay"] == 0) and np.ptp(tuned.history.hparams["log_rate"]) > 0


def test_what_enters_a_loss_moves_twice_as_far():
    problem, params, _ = regression()
    start = {"log_decay": jnp.zeros(()), "log_rate": jnp.log(0.1)}
    unit = jax.tree.map(jnp.ones_like, start)
    fast = setup.in_losses(problem, partition(params), start)
    assert setup.steps(unit, fast) == {"log_decay": setup.FAST, "log_rate": 1.0}


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_what_changes_the_loss_by_little_moves_by_less(scale):
    """An array counts by all of its entries, so that many small ones move as far as one that matters as much."""
    hparams = {"rate": jnp.zeros(()), "momentum": jnp.zeros(()), "decays": jnp.zeros(1000)}
    slopes = {"rate": jnp.asarray(4.0), "momentum": jnp.asarray(-4e-3), "decays": jnp.full(1000, 4e-3)}
    search = setup.scaled_adam(jax.tree.map(lambda leaf: jnp.full_like(leaf, scale), hparams))
    found, _ = search.update(slopes, search.init(hparams), hparams)
    little = 0.2 * 1e-3 / setup.LEAST_GAIN
    expected = {"rate": -0.2, "momentum": little, "decays": np.full(1000, -0.2)}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, scale * b, rtol=1e-4), found, expected)
    none, _ = search.update(jax.tree.map(jnp.zeros_like, slopes), search.init(hparams), hparams)
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(none))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"budget": 10}, ValueError, "budget must be an integer of at least 200"),
        ({"scale": {"log_rate": 1.0, "more": 2.0}}, ValueError, "scale must be a number or like hparams"),
        ({"scale": -1.0}, ValueError, "scale must be at least 0"),
        ({"scale": {"log_rate": np.nan}}, ValueError, r"scale\['log_rate'\] must be finite"),
        (
            {"starts": [{"log_rate": 0.0}] * 40},
            ValueError,
            "starts: .* 41 take a budget of at least 3362",
        ),
        ({"starts": [{"other": 1.0}]}, ValueError, r"starts\[0\] must be"),
        ({"patience": 2}, ValueError, "patience .* holdout"),
        ({"holdout": {}}, ValueError, "holdout holds no arrays"),
        ({"key": 0}, TypeError, "key must be"),
        ({"projection": 3}, TypeError, "projection must be a function"),
    ],
)
def test_nonsense_is_refused(options, error, message):
    problem, params = noisy_quadratic()
    with pytest.raises(error, match=message):
        tune(problem, params, {"log_rate": jnp.log(0.01)}, **options)


def test_shrinking_moves_towards_the_mean_of_each_array():
    shrink = hg.projections.shrink_to_mean(0.25)
    found = shrink({"a": jnp.array([0.0, 4.0]), "b": jnp.array(7.0)})
    np.testing.assert_allclose(found["a"], [0.5, 3.5])
    assert found["b"] == 7
    with pytest.raises(ValueError, match="share must be"):
        hg.projections.shrink_to_mean(1.5)


@pytest.mark.variants(slow=["1.0-5.0", "-1.0-5.0", "1.0-2.0"])
@pytest.mark.parametrize("start", [2.0, 5.0])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_penalty_that_kills_a_network_is_left(start, sign):
    """No loss of a network at weights of zero depends on its penalty, and no hypergradient leads away from there."""
    x = np.random.default_rng(0).normal(size=(40, 3))
    data = {"x": x, "y": x @ np.array([1.0, -2.0, 0.5])}

    def outer(w, h, data, key):
        return jnp.mean((data["x"] @ w["first"] @ w["second"] - data["y"]) ** 2)

    def inner(w, h, data, key):
        return outer(w, h, data, key) + jnp.exp(sign * h["log_decay"]) * optax.tree.norm(w, squared=True)

    weights = jax.random.normal(jax.random.key(1), (4, 4)) / 3
    params = {"first": weights[:3], "second": weights[3]}
    solver = hg.OptaxSolver(lambda h: optax.adam(jnp.exp(h["log_rate"]), eps_root=1e-12), BUDGET)
    hparams = {"log_decay": jnp.asarray(sign * start), "log_rate": jnp.log(1e-2)}
    tuned = hg.tune(solver, hg.BilevelProblem(inner, outer, data, data), params, hparams, key=laws.KEY)
    assert float(tuned.value) < 1e-2 * float(outer({"first": 0 * weights[:3], "second": weights[3]}, None, data, None))
