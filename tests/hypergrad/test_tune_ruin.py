"""A start that wins the race of tune and is ruined later gives way to the next."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hypergrad as hg
from hypergrad.testing import laws

from .test_tune import quadratic_outer, sgd

BUDGET = 2000
FAST, SLOW = {"log_rate": jnp.log(2.2)}, {"log_rate": jnp.log(0.5)}


def inner(w, h, data, key):
    return quadratic_outer(w, h, data, key)


@functools.cache
def steep_and_flat():
    """A rate of 2.2 is the quickest on the flat direction, and blows up the steep one after some hundred updates."""
    data = {"a": np.array([0.1, 1.0])}
    return hg.BilevelProblem(inner, quadratic_outer, data, data), jnp.array([5.0, 1e-14])


def tune(**options):
    problem, params = steep_and_flat()
    options = {"key": laws.KEY, "scale": 1e-6, "starts": [SLOW]} | options
    return hg.tune(hg.OptaxSolver(sgd, BUDGET), problem, params, FAST, **options)


def test_a_start_that_is_ruined_gives_way_to_the_next():
    tuned = tune()
    assert "the given start went on, and was given up" in str(tuned) and "for starts[0]" in str(tuned)
    assert float(tuned.value) < 1e-10 and float(tuned.hparams["log_rate"]) == pytest.approx(np.log(0.5), abs=1e-3)
    assert 0.95 * BUDGET < tuned.gradients <= BUDGET


def test_the_only_start_goes_on_to_the_end():
    with np.errstate(all="ignore"):
        tuned = tune(starts=[])
    assert "given up" not in str(tuned) and 0.95 * BUDGET < tuned.gradients <= BUDGET


@pytest.mark.slow
@pytest.mark.parametrize("at", [3, 6])
def test_an_interrupted_call_gives_way_as_a_whole_one(tmp_path, at):
    calls = 0

    def interrupt(state, history):
        nonlocal calls
        calls += 1
        if calls == at:
            raise KeyboardInterrupt

    whole = tune(callback=lambda *_: False)
    with pytest.raises(KeyboardInterrupt):
        tune(checkpoint=tmp_path / "tune", callback=interrupt)
    again = tune(checkpoint=tmp_path / "tune", callback=lambda *_: False)
    jax.tree.map(np.testing.assert_array_equal, (again.state, again.history), (whole.state, whole.history))
    assert (again.gradients, again.report) == (whole.gradients, whole.report)


@pytest.mark.parametrize("shift", [-1e3, 0.0, 1e3])
def test_a_model_that_overfits_is_not_ruined_whatever_the_constants_of_the_losses(shift):
    """Training passes 0.5, the best weight for the other rows, and ends at 2, where these lose more than at first."""
    away = lambda w, h, data, key: jnp.sum((w - data) ** 2) + shift
    problem = hg.BilevelProblem(away, away, np.array([2.0]), np.array([0.5]))
    solver = hg.OptaxSolver(sgd, BUDGET)
    hparams, slower = {"log_rate": jnp.log(0.01)}, {"log_rate": jnp.log(0.001)}
    tuned = hg.tune(solver, problem, jnp.zeros(1), hparams, key=laws.KEY, scale=1e-6, starts=[slower])
    assert float(tuned.history.value[-1]) - shift > 2 and "given up" not in str(tuned)
