"""The clock of the benchmarks, and the products whose cost they measure."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import asks, cost, stochastic, tune
from experiments.benchmarks.measure import Rounds
from experiments.benchmarks.problems import PROBLEMS


def test_ratios_are_within_a_round():
    ticks = iter(range(1000))
    timed = Rounds({"a": lambda: next(ticks), "b": lambda: None}, 4, clock=lambda: next(ticks))
    assert (timed.seconds("a"), timed.seconds("b"), timed.ratio("a", "b")) == (2.0, 1.0, 2.0)


def test_trials_of_ours_and_of_plain_optuna_are_those_told_and_one_more(monkeypatch, tmp_path):
    monkeypatch.setattr(asks, "STORAGES", ("memory", "file"))
    lines = list(asks.compared(asks.Config(trials=(3,), rounds=1), str(tmp_path)))
    assert [(line["storage"], line["trials"]) for line in lines] == [("memory", "3"), ("file", "3")]
    assert all(float(line["ratio"]) > 0 for line in lines)


@pytest.mark.slow
def test_products_are_along_training():
    case, number = PROBLEMS["P1"](0, num_steps=2), 2
    products = cost.single_products(case, jax.random.key(0), number)
    assert set(products) == set(cost.DOCUMENTED)
    assert np.isfinite(products["hvp"]()).all()
    cotangent, hypergradient = products["step_vjp"]()
    assert hypergradient.shape == case.hparams.shape
    assert cotangent.partitioned.arrays.shape == case.params.shape


@pytest.mark.slow
def test_the_hypergradient_at_a_minimum_is_that_of_differences():
    config, random, size = stochastic.Config(rows=100, hidden=3, log_penalty=-2.0), np.random.default_rng(0), 0.0125
    case = stochastic.network(config)
    direction = jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype("float32"), case.hparams)

    def outer_loss(distance):
        hparams = jax.tree.map(lambda leaf, way: leaf + jnp.float32(distance) * way, case.hparams, direction)
        params, _ = stochastic.solved(case.problem, case.params, hparams)
        return float(case.problem.outer_loss(params, hparams, case.problem.valid, jax.random.key(0)))

    slope = case.exact @ np.concatenate([way.ravel() for way in jax.tree.leaves(direction)])
    assert abs(slope) > 1e-3
    np.testing.assert_allclose((outer_loss(size) - outer_loss(-size)) / (2 * size), slope, rtol=0.01)


@pytest.mark.slow
def test_what_tune_is_compared_with_is_training():
    case = tune.setting(None, "energy", 4, 16)
    params, static = eqx.partition(case.model, eqx.is_inexact_array)
    loss = lambda params: float(case.problem.outer_loss(eqx.combine(params, static), None, case.problem.train, None))
    assert loss(tune.by_hand(case, 300)()) < 0.9 * loss(params)
