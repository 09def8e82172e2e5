"""Trials trained in one program, hypergradients inside trials."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypergrad as hg

KEY = jax.random.key(0)


SIZES = hg.trials.Space(
    {"units": hg.trials.Int(1, 8), "depth": hg.trials.Int(1, 3), "log_lr": hg.trials.Float(-7.0, -1.0)}
)
X = np.linspace(-1, 1, 16)[:, None]


def train_net(shape, arrays, data, key):
    net = hg.trials.MaskedMLP(1, 1, 8, 3, widths=arrays["units"], depth=arrays["depth"], key=key)
    weights, rest = eqx.partition(net, eqx.is_inexact_array)

    def loss(weights):
        return jnp.mean((jax.vmap(eqx.combine(weights, rest))(data)[:, 0] - data[:, 0] ** 2) ** 2)

    def step(weights, _):
        slopes = jax.grad(loss)(weights)
        return jax.tree.map(lambda w, g: w - jnp.exp(arrays["log_lr"]) * g, weights, slopes), None

    weights, _ = jax.lax.scan(step, weights, length=20)
    broken = jnp.where(arrays["units"] == 3, jnp.nan, 0.0)
    return {"value": loss(weights) + broken, "size": net.num_params, "metrics": {"depth": arrays["depth"]}}


@pytest.mark.slow
def test_one_program_trains_every_size_as_one_by_one():
    prepare = lambda trial: ((), trial.params)
    objective = hg.trials.Vmapped(train_net, prepare, X, size=4)
    state = hg.trials.search_trials(hg.trials.Sobol(), SIZES, objective, key=KEY, num_trials=10, batch=4)
    assert len({(t.trial.params["units"], t.trial.params["depth"]) for t in state.history}) > 5
    counts = [told.result.compilations for told in state.history]
    assert counts[0] > 0 and counts[4:] == [0] * 6
    assert state.history[0].result.seconds >= state.history[0].result.compile_seconds > 0
    by_itself = jax.jit(lambda arrays, key: train_net((), arrays, X, key))
    for told in state.history:
        alone = by_itself(told.trial.params, jax.random.fold_in(KEY, told.trial.number))
        np.testing.assert_allclose(told.result.value, alone["value"], rtol=1e-9)
        assert told.result.size == alone["size"] and told.result.failed == (told.trial.params["units"] == 3)
        assert told.result.metrics == {"depth": told.trial.params["depth"]}


def test_a_group_is_trained_by_the_numbers_of_its_time(monkeypatch):
    train = lambda shape, arrays, data, key: {"value": jnp.mean(X) + arrays["log_lr"]}
    objective = hg.trials.Vmapped(train, lambda trial: ((), trial.params))
    trial = hg.trials.Trial(0, {"units": 1, "depth": 1, "log_lr": -1.0})
    value = lambda: objective([trial], jax.random.split(KEY, 1))[0].value
    before = value()
    monkeypatch.setitem(globals(), "X", X + 1)
    np.testing.assert_allclose(value(), before + 1, rtol=1e-6)


def test_a_group_that_cannot_be_trained_leaves_the_others():
    def prepare(trial):
        if trial.params["depth"] == 3:
            raise RuntimeError("too deep")
        return trial.params["depth"], trial.params

    def train(shape, arrays, data, key):
        return {"value": arrays["log_lr"] if shape == 1 else jnp.zeros(3)}

    trials = [hg.trials.Trial(k, {"units": 1, "depth": d, "log_lr": -float(k)}) for k, d in enumerate((1, 2, 3, 1))]
    results = hg.trials.Vmapped(train, prepare)(trials, jax.random.split(KEY, 4))
    assert [result.value for result in results] == [0.0, np.inf, np.inf, -3.0]
    assert "too deep" in results[2].error


def test_entries_that_are_not_of_a_result_are_named():
    prepare, trials = lambda trial: (None, 1.0), [hg.trials.Trial(0, {"depth": 1})]
    for wrong, got in ((lambda *_: {"loss": 1.0}, r"\['loss'\]"), (lambda *_: 1.0, "an array float")):
        (result,) = hg.trials.Vmapped(wrong, prepare)(trials, jax.random.split(KEY, 1))
        assert re.search(f"train must return a dictionary with 'value' .*, got {got}", result.error)


@pytest.mark.parametrize("value", [0.0, 100.0, np.nan, "small"])
def test_values_that_a_tuner_cannot_start_from_are_named(value):
    with pytest.raises(ValueError, match=r"decay_b must .* \(in params\)"):
        INSIDE.hparams({"decay_a": 1.0, "decay_b": value})
    with pytest.raises(ValueError, match="names has a leaf twice: decay_a, decay_a"):
        hg.trials.GradientTuner(RIDGE, ["decay_a"] * 2, INSIDE.search.estimator, optax.sgd(0.1))


RIDGE = hg.trials.Space(
    {
        "decay_a": hg.trials.Float(1e-3, 10.0, log=True, block="a"),
        "decay_b": hg.trials.Float(1e-3, 10.0, log=True, block="b"),
        "shift": hg.trials.Float(-1.0, 1.0),
    }
)
INSIDE = hg.trials.GradientTuner(
    RIDGE, ["decay_a", "decay_b"], hg.Reverse(hg.OptaxSolver(optax.sgd(0.2), 15)), optax.adam(0.3)
)


def ridge_loss(w, hparams, data, key):
    x, y = data
    return (
        jnp.mean((x @ w - y) ** 2) + jnp.exp(hparams["decay_a"]) * w[0] ** 2 + jnp.exp(hparams["decay_b"]) * w[1] ** 2
    )


def ridge_outer(w, hparams, data, key):
    return jnp.mean((data[0] @ w - data[1]) ** 2)


def ridge():
    x = jax.random.normal(jax.random.key(1), (40, 2))
    y = x @ jnp.array([1.0, 0.02]) + 0.5 * jax.random.normal(jax.random.key(2), (40,))
    return hg.BilevelProblem(ridge_loss, ridge_outer, (x[:20], y[:20]), (x[20:], y[20:]))


@pytest.mark.slow
def test_hypergradients_inside_a_trial_are_told_back():
    problem, start = ridge(), {"decay_a": 1.0, "decay_b": 0.5, "shift": 0.0}
    one = INSIDE.run(problem, jnp.zeros(2), start, key=KEY, budget=300)
    assert one.metrics["hyper_updates"] == 20
    plain = hg.evaluate(hg.OptaxSolver(optax.sgd(0.2), 15), problem, jnp.zeros(2), INSIDE.hparams(start), KEY)
    assert one.value < plain.value and one.tuned["decay_a"] < 0.5
    again = hg.evaluate(hg.OptaxSolver(optax.sgd(0.2), 15), problem, jnp.zeros(2), INSIDE.hparams(one.tuned), KEY)
    np.testing.assert_allclose(again.value, one.value, rtol=1e-9)
    estimator, hparams = INSIDE.search.estimator, INSIDE.hparams(start)
    first = estimator.step(problem, hparams, estimator.init(problem, jnp.zeros(2), hparams), KEY)[0].hypergradient
    single = INSIDE.run(problem, jnp.zeros(2), start, key=KEY, budget=15)
    np.testing.assert_allclose(single.block_norms["a"], abs(first["decay_a"]), rtol=1e-9)

    found, _ = jax.jit(lambda h: INSIDE.scan(problem, jnp.zeros(2), h, KEY, 20))(INSIDE.hparams(start))
    np.testing.assert_allclose(found["value"], one.value, rtol=1e-9)
    np.testing.assert_allclose(found["tuned"]["decay_b"], one.tuned["decay_b"], rtol=1e-9)

    objective = hg.trials.PerTrial(lambda t, key: INSIDE.run(problem, jnp.zeros(2), t.params, key=key, budget=150))
    importance = hg.trials.HypergradientImportance()
    searcher = hg.trials.SubnetworkAdaptive(hg.trials.Random(), importance, warmup=2)
    state = hg.trials.search_trials(searcher, RIDGE, objective, key=KEY, num_trials=4)
    assert all(told.trial.params["decay_a"] == told.result.tuned["decay_a"] for told in state.history)
    norms = [told.result.block_norms for told in state.history]
    assert importance(state) == {b: pytest.approx(np.mean([n[b] for n in norms])) for b in ("a", "b")}


@pytest.mark.slow
def test_values_stay_in_their_range_and_failures_are_results():
    problem, high = ridge(), {"decay_a": 10.0, "decay_b": 10.0, "shift": 0.0}
    shot = INSIDE.run(problem, jnp.array([1e200, 0.0]), high, key=KEY, budget=15)
    assert shot.failed and "finite" in shot.error
    with pytest.raises(ValueError, match="names has 'units'"):
        hg.trials.GradientTuner(SIZES, ["units"], INSIDE.search.estimator, optax.sgd(0.1))


def test_reports_are_the_lowest_losses_and_end_a_trial():
    problem, start, heard = ridge(), {"decay_a": 1.0, "decay_b": 0.5, "shift": 0.0}, []

    def report(step, value):
        heard.append((step, value))
        return step == 15

    tune = lambda **more: INSIDE.run(problem, jnp.zeros(2), start, key=KEY, budget=300, chunk=5, **more)
    ended, whole = tune(report=report), tune()
    assert [step for step, _ in heard] == [5, 10, 15]
    assert ended.pruned and ended.metrics["hyper_updates"] == 15 and ended.value == heard[-1][1]
    assert heard == sorted(heard, key=lambda one: -one[1]) and heard[0][1] > whole.value
    assert not whole.pruned and whole.metrics["hyper_updates"] == 20
