"""Reverse mode gives one hypergradient whatever it keeps of training, and keeps no more than it says."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypergrad as hg
from hypergrad.estimators.common.choice import residual_bytes
from hypergrad.estimators.common.treeverse import repeats_needed, slots_needed
from hypergrad.testing import assert_close, laws
from hypergrad.testing.problems import net, ridge

from ..test_batches import SGD, sampled

KEPT = {
    "residuals": {"remat": False},
    "two states": {"checkpoints": 2},
    "binomial": {"checkpoints": "binomial"},
}


def after(estimator):
    """The estimate on minibatches, with noise and a learned rate."""
    problem, params, hparams = sampled(lambda rows: hg.Batches(rows, 4))
    return estimator.step(problem, hparams, estimator.init(problem, params, hparams), laws.KEY)[0]


@pytest.mark.row(2)
@pytest.mark.variants(slow=["binomial", "residuals", "two states"])
@pytest.mark.parametrize("kept", KEPT.values(), ids=KEPT)
def test_what_is_kept_changes_nothing_but_the_work(kept):
    exact, found = after(hg.Reverse(SGD)), after(hg.Reverse(SGD, **kept))
    assert_close(found.hypergradient, exact.hypergradient)
    assert_close(found.stats.diagnostics["growth"], exact.stats.diagnostics["growth"])
    assert found.value == exact.value and found.stats.counts.step_vjps == exact.stats.counts.step_vjps


@pytest.mark.parametrize(("steps", "slots"), [(1, 1), (9, 1), (9, 3), (9, 9)])
def test_no_step_is_computed_more_often_than_its_slots_ask_for(steps, slots):
    estimator = hg.Reverse(hg.OptaxSolver(optax.sgd(0.1), steps), checkpoints=slots)
    counts = laws.first_step(estimator, ridge())[0].stats.counts
    most = {1: steps + (steps - 1) * (steps - 2) // 2, steps: steps}  # from the start for every step, and never again
    assert counts.inner_gradients <= most.get(slots, repeats_needed(steps, slots) * steps)
    assert counts.inner_gradients >= steps and counts.step_vjps == steps


def test_slots_and_repetitions_are_the_binomial_numbers():
    for steps in (1, 2, 30, 100_000):
        for repeats in (1, 2, 3):
            slots = slots_needed(steps, repeats)
            assert math.comb(slots + repeats, repeats) >= steps and repeats_needed(steps, slots) <= repeats
            assert slots == 1 or repeats_needed(steps, slots - 1) > repeats
    assert (slots_needed(100_000, 3), slots_needed(100_000, 4)) == (83, 37)


@pytest.mark.slow
def test_a_choice_changes_nothing_and_is_reported():
    exact, found = after(hg.Reverse(SGD)), after(hg.Reverse(SGD, checkpoints="auto", memory_limit=300))
    assert_close(found.hypergradient, exact.hypergradient)
    assert found.stats.diagnostics["kept_states"] < 6 and found.stats.diagnostics["repeats"] > 1


@pytest.mark.slow
def test_a_cut_sweep_is_the_same_from_all_that_is_kept():
    exact = after(hg.Reverse(SGD, horizon=3, check=None))
    for kept in KEPT.values():
        assert_close(after(hg.Reverse(SGD, horizon=3, check=None, **kept)).hypergradient, exact.hypergradient)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"remat": 0}, "remat"),
        ({"remat": False, "checkpoints": 3}, "remat"),
        ({"remat": False, "storage": jnp.float16}, "remat"),
        ({"checkpoints": 3, "storage": jnp.float16}, "storage"),
        ({"checkpoints": 0}, "checkpoints"),
    ],
)
def test_options_that_exclude_each_other_are_refused(options, name):
    with pytest.raises((TypeError, ValueError), match=name):
        hg.Reverse(SGD, **options)


def temp_bytes(case, **options):
    """The memory that XLA allocates for one step of 200, the data given as an argument."""
    estimator = hg.Reverse(hg.OptaxSolver(optax.sgd(0.1, 0.9), 200), **options)

    def step(train, hparams, state, key):
        problem = hg.BilevelProblem(case.problem.inner_loss, case.problem.outer_loss, train, case.problem.valid)
        return estimator.step(problem, hparams, state, key)

    state = estimator.init(case.problem, case.params, case.hparams)
    compiled = jax.jit(step).lower(case.problem.train, case.hparams, state, laws.KEY).compile()
    sizes = 8 * 201 * jax.device_count()  # of the adjoint: one number per step and device, whatever is kept
    return compiled.memory_analysis().temp_size_in_bytes - sizes


@pytest.mark.slow
def test_memory_is_that_of_the_states_kept():
    case = net()
    state = 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(case.params) if np.ndim(leaf))  # weights and momentum
    few, more, every = temp_bytes(case, checkpoints=10), temp_bytes(case, checkpoints=40), temp_bytes(case)
    assert 30 * state < more - few < 36 * state and few < every / 2


@pytest.mark.slow
def test_residuals_hold_the_data_once():
    small, large = (temp_bytes(ridge(num_rows=rows), remat=False) for rows in (10, 1000))
    assert large - small < 100 * 1000 * 8 * 6  # a copy of the rows in each step would be 200 of them


def plan(case, **options):
    estimator = hg.Reverse(hg.OptaxSolver(optax.sgd(0.1, 0.9), 200), checkpoints="auto", **options)
    return estimator.plan(case.problem, case.params, case.hparams)


@pytest.mark.slow
def test_the_choice_takes_what_fits():
    case, state = net(), 224  # 13 weights and biases, their momentum, and two counters
    assert "5 states of 200" in repr(plan(case, memory_limit=5.5 * state))
    with pytest.raises(MemoryError, match="memory_limit"):
        plan(case, memory_limit=state / 2)
    with pytest.raises(ValueError, match="memory_limit"):
        hg.Reverse(SGD, memory_limit=1e6)


@pytest.mark.slow
def test_the_sizes_of_the_choice_are_those_of_xla():
    case = net(num_rows=40)
    few, more = (temp_bytes(case, checkpoints="auto", memory_limit=n * 224) for n in (10.5, 20.5))
    assert 9.5 * 224 <= more - few < 12 * 224  # XLA of jax 0.12 finds room for 64 bytes elsewhere
    inner = hg.OptaxSolver(optax.sgd(0.1, 0.9), 200)
    training = hg.Training(inner, case.problem, case.hparams, laws.KEY)
    start = training.begin(inner.init(case.problem, case.params, case.hparams), warm_start=False)
    predicted = residual_bytes(training, start, 0, 200)
    assert 0.6 * predicted < temp_bytes(case, remat=False) < 1.2 * predicted
