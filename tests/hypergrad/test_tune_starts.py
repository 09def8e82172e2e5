"""The starts that race in a call of tune: which there are, and that none disturbs another."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypergrad as hg
from hypergrad.begin import begin
from hypergrad.ground.tree import PartitionedModel
from hypergrad.testing import laws
from hypergrad.tuning import race, setup

from .test_tune import noisy_inner, noisy_quadratic, quadratic_outer, regression, ridge_inner, squares, tune


def test_starts_are_found_on_batches_and_with_a_state_of_layers():
    """The rate enters no loss, so that it alone is moved; the losses see a batch, and may return a state."""
    problem, w, rows = regression()
    with_state = lambda params, h, data, key: (ridge_inner(params[0], h, data, key), 0.9 * params[1])
    outer = lambda params, h, data, key: squares(params[0], h, data, key)
    batches = hg.BilevelProblem(with_state, outer, hg.Batches(problem.train, 32), hg.Batches(rows, 32))
    hparams = {"log_decay": jnp.asarray(-2.0), "log_rate": jnp.asarray(-3.0)}
    fast = setup.in_losses(batches, PartitionedModel((w, jnp.zeros(2)), has_state=True), hparams)
    found = setup.all_starts(hparams, jax.tree.map(jnp.ones_like, hparams), fast, None, most=9)
    assert [name for name, _ in found] == [
        "the given start",
        "hparams['log_rate'] smaller",
        "hparams['log_rate'] larger",
        "all that enters a loss smaller",
        "all that enters a loss larger",
    ]
    assert [float(start["log_decay"]) for _, start in found[3:]] == pytest.approx(
        [-2 - 2 * np.log(10), -2 + 2 * np.log(10)]
    )


def test_the_starts_are_checked_once_for_all(monkeypatch):
    problem, params = noisy_quadratic()
    calls = []
    monkeypatch.setattr(race, "begin", lambda *args, **options: calls.append(args) or begin(*args, **options))
    assert "3 starts" in str(tune(problem, params, {"log_rate": jnp.log(0.01)}, budget=200)) and len(calls) == 1


@pytest.mark.slow
def test_no_start_writes_over_the_memory_of_another(monkeypatch):
    """States are donated from a size on; the small arrays of this one travel together, the weights alone."""
    data = {"a": np.ones(2000)}
    problem, params = hg.BilevelProblem(noisy_inner, quadratic_outer, data, data), jnp.full(2000, 5.0)
    runs = []
    for large in (2**24, 1):
        monkeypatch.setattr("hypergrad.ground.program.LARGE", large)
        runs.append(tune(problem, params, {"log_rate": jnp.log(0.01)}, budget=200))
    one, other = runs
    jax.tree.map(np.testing.assert_array_equal, (one.state, one.params), (other.state, other.params))
    assert one.report == other.report


def test_what_stays_where_it_is_has_no_starts():
    hparams = {"log_decay": jnp.zeros(2), "log_rate": jnp.zeros(()), "logit_b1": jnp.zeros(())}
    scale = {"log_decay": jnp.zeros(2), "log_rate": jnp.zeros(()), "logit_b1": jnp.ones(())}
    found = setup.all_starts(hparams, scale, [True, False, False], None, most=9)
    assert [name for name, _ in found] == [
        "the given start",
        *(f"hparams['logit_b1'] {w}" for w in ("smaller", "larger")),
    ]


def many_rates(number):
    """A rate for each of some weights, all entries of a dictionary."""
    hparams = {f"rate_{n}": jnp.log(0.01) for n in range(number)}
    return hparams, lambda h: optax.stateless(lambda u, _: -jnp.exp(jnp.stack(list(h.values()))) * u)


def test_what_stands_under_one_entry_moves_together():
    """One rate of ten layers, ten times as large, does not help where all of them are too small."""
    hparams = {"layers": [{"rate": jnp.asarray(-3.0)}] * 10, "momentum": jnp.zeros(())}
    unit = jax.tree.map(jnp.ones_like, hparams)
    found = dict(setup.all_starts(hparams, unit, [False] * 11, None, most=9))
    groups = ["hparams['layers']", "hparams['momentum']"]
    assert list(found) == ["the given start", *(f"{name} {word}" for name in groups for word in ("smaller", "larger"))]
    layers = found["hparams['layers'] larger"]["layers"]
    assert [float(layer["rate"]) for layer in layers] == pytest.approx([np.log(10) - 3] * 10)


def test_there_are_no_more_starts_than_the_budget_pays():
    hparams, _ = many_rates(6)
    unit = jax.tree.map(jnp.ones_like, hparams)
    found = setup.all_starts(hparams, unit, [False] * 6, None, most=9)
    assert [name for name, _ in found[1:]] == [f"all that enters no loss {word}" for word in ("smaller", "larger")]


@pytest.mark.slow
def test_many_rates_keep_the_budget():
    problem, params = noisy_quadratic()
    hparams, optimiser = many_rates(6)
    tuned = hg.tune(hg.OptaxSolver(optimiser, 200), problem, params, hparams, key=laws.KEY)
    assert tuned.gradients <= 200 and "3 starts" in str(tuned)
