"""The best of noisy values: chosen under common random numbers, reported on fresh ones, counted."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypergrad as hg
from hypergrad.search.selection import NUM_DRAWS, draws_needed
from hypergrad.testing import Case, laws
from hypergrad.testing.problems import quadratic, ridge

from tests.helpers import after_steps

SGD = optax.sgd(0.1)
INNER = hg.OptaxSolver(SGD, 2)
ONES = {"a": np.ones(8)}
SEARCHES = {
    "gradient": hg.GradientSearch(hg.Greedy(INNER), optax.adam(0.05)),
    "random": hg.RandomSearch(INNER, lambda key: jax.random.normal(key, ())),
    "soba": hg.SOBA(SGD, SGD, SGD),
    "saba": hg.SABA(SGD, SGD, SGD, 2, num_valid_batches=4),
    "f2sa": hg.F2SA(SGD, SGD, 3.0),
    "maid": hg.MAID(INNER),
}
every = pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)


def pull(w, h, data, key):
    return jnp.mean(data["a"]) * (w - h) ** 2 / 2


def constant(w, h, data, key):
    """1 ± 0.1, whatever the weights and the hyperparameters; the noise is the same for all of them."""
    return 1 + 0.1 * jax.random.normal(key) + 0 * w + 0 * h


def scattered(w, h, data, key):
    """1 ± 0.1 with other noise for every candidate: common random numbers do not cancel it. λ drifts slowly."""
    phase = 1e-3 * jnp.floor(1e12 * h) + 2 * jnp.pi * jax.random.uniform(key)
    return 1 + 0.1 * jnp.sqrt(2.0) * jnp.sin(phase) + 1e-9 * h + 0 * w


def problem_of(outer):
    return Case(hg.BilevelProblem(pull, outer, ONES, ONES), jnp.zeros(()), jnp.zeros(()))


@pytest.mark.variants(
    quick=["common noise-random", "*own-soba"],
    slow=["noise of its own-random", "*gradient", "*maid", "common noise-saba"],
)
@every
@pytest.mark.parametrize("outer", [constant, scattered], ids=["common noise", "noise of its own"])
def test_the_best_of_ten_thousand_noisy_constants_is_the_constant(search, outer):
    state, history = after_steps(search, problem_of(outer), 10_000)
    assert np.min(history.value) < 0.87 or isinstance(search, hg.MAID)
    assert abs(state.best.value - 1) < 0.05
    assert 0.1 / NUM_DRAWS**0.5 / 2 < state.best.error < 0.1 / NUM_DRAWS**0.5 * 2
    assert state.best.num_evaluations == NUM_DRAWS
    assert f"± {float(state.best.error):.6g} (32 evaluations)" in str(state.best)


def minibatched(w, h, data, key):
    x, y = hg.minibatch(key, (data["x"], data["y"]), 32)
    return jnp.mean((x @ w - y) ** 2)


@pytest.mark.variants(slow=["random", "gradient", "soba"])
@pytest.mark.parametrize("name", ["gradient", "random", "soba", "f2sa", "maid"])
def test_the_value_of_minibatches_is_that_of_all_rows(name):
    """The value has no bias and its standard error is right, over 20 keys."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 5))
    rows = {"x": x, "y": x @ np.ones(5) + rng.normal(size=2000)}
    inner = lambda w, h, data, key: jnp.mean((data["x"] @ w - data["y"]) ** 2) + jnp.exp(h) * jnp.sum(w**2)
    train, valid = ({name: leaf[part] for name, leaf in rows.items()} for part in (slice(1000), slice(1000, None)))
    case = Case(hg.BilevelProblem(inner, minibatched, train, valid), jnp.zeros(5), jnp.asarray(-6.0))
    deviations = []
    for seed in range(20):
        state, history = after_steps(SEARCHES[name], case, 50, jax.random.key(seed))
        full = np.mean((valid["x"] @ np.asarray(state.best.params) - valid["y"]) ** 2)
        deviations.append(float((state.best.value - full) / state.best.error))
        if name != "maid":
            assert np.min(history.value) < state.best.value
    assert abs(np.mean(deviations)) < 3 / 20**0.5 and 0.6 < np.std(deviations) < 1.6


def falling(w, h, data, key):
    """Noise around a value that falls at every step of every search: each of them would be the best."""
    return jnp.exp(-h) + 0.1 * jax.random.normal(key) + 0 * w


@pytest.mark.variants(quick=["random", "soba"], slow=["gradient", "maid", "saba"])
@every
def test_evaluations_are_counted_and_take_at_most_a_quarter_along_a_path(search):
    state, history = after_steps(search, problem_of(falling), 300)
    assert state.spent.evaluations == np.sum(history.stats.counts.evaluations) > 0
    assert state.spent.gradients == np.sum(history.stats.counts.gradients)
    if not isinstance(search, hg.RandomSearch):
        assert 4 * int(state.spent.evaluations) <= int(state.spent.gradients) + 4 * (2 * NUM_DRAWS)
        assert np.sum(history.stats.counts.evaluations > NUM_DRAWS) > 1
        assert state.best.hparams > history.hparams[0]


def test_no_draw_of_a_random_search_is_passed_over():
    outer = lambda w, h, data, key: h + 1e-3 * jax.random.normal(key) + 0 * w
    state, history = after_steps(SEARCHES["random"], problem_of(outer), 12)
    assert state.best.hparams == np.min(history.hparams)


def test_the_evaluations_are_those_that_were_counted():
    """A callback in the outer loss sees every evaluation."""
    calls = []

    def outer(w, h, data, key):
        jax.debug.callback(lambda: calls.append(1))
        return scattered(w, h, data, key)

    search, case = SEARCHES["random"], problem_of(outer)
    state = search.init(case.problem, case.params, case.hparams)
    state, history = hg.run(search, case.problem, state, key=laws.KEY, budget=60)
    jax.effects_barrier()
    assert len(calls) == len(history) + int(state.spent.evaluations)


@pytest.mark.variants(quick=["gradient", "random", "soba"], slow=["maid", "saba"])
@every
def test_nothing_is_paid_where_there_is_no_noise(search):
    case = quadratic() if isinstance(search, hg.MAID) else ridge()
    if isinstance(search, hg.RandomSearch):
        search = hg.RandomSearch(INNER, lambda key: {"log_l2": jax.random.normal(key, (3,)), "unused": jnp.zeros(())})
    if isinstance(search, hg.SABA):
        search = hg.SABA(SGD, SGD, SGD, 2)
    state, history = after_steps(search, case, 20)
    assert state.spent.evaluations == 0 and state.best.error == 0
    assert state.best.num_evaluations == 1 and state.best.draws.size == 0
    assert state.best.value == np.min(history.value)


def test_saba_evaluates_on_all_of_valid_before_a_batch_wins():
    rng = np.random.default_rng(0)
    valid = {"t": rng.normal(size=8)}
    outer = lambda w, h, data, key: jnp.mean((w - data["t"]) ** 2) + 0 * h
    case = Case(hg.BilevelProblem(pull, outer, ONES, valid), jnp.zeros(()), jnp.zeros(()))
    state, history = after_steps(hg.SABA(SGD, SGD, SGD, 2, num_valid_batches=4), case, 100)
    full = np.mean((np.asarray(state.best.params) - valid["t"]) ** 2)
    np.testing.assert_allclose(state.best.value, full, rtol=1e-12)
    assert np.min(history.value) < full and state.best.error == 0 and state.best.num_evaluations == 1


def test_a_key_that_is_split_and_not_used_is_no_noise():
    def outer(w, h, data, key):
        jax.random.normal(jax.random.split(key)[0])
        return (w - h) ** 2

    case = problem_of(outer)
    assert draws_needed(case.problem, case.params, case.hparams) == 0
    noisy = problem_of(constant)
    assert draws_needed(noisy.problem, noisy.params, noisy.hparams) == NUM_DRAWS


def test_a_better_candidate_is_found_under_noise():
    """Differences of a hundredth of the noise: common random numbers tell them apart."""
    outer = lambda w, h, data, key: (h - 0.3) ** 2 + 0.3 * jax.random.normal(key) + 0 * w
    search = hg.RandomSearch(INNER, lambda key: jax.random.uniform(key))
    state, _ = after_steps(search, problem_of(outer), 1000)
    assert abs(state.best.hparams - 0.3) < 0.06


def test_values_that_are_not_finite_never_win():
    outer = lambda w, h, data, key: jnp.where(jax.random.uniform(key) < 0.5, -jnp.inf, 1.0) + 0 * w + 0 * h
    search = SEARCHES["random"]
    with pytest.warns(RuntimeWarning, match="no finite result"):
        state, _ = after_steps(search, problem_of(outer), 50)
    assert state.best.value == jnp.inf


@pytest.mark.slow
def test_states_in_a_batch_choose_as_they_do_alone():
    search, case = SEARCHES["random"], problem_of(scattered)
    start = search.init(case.problem, case.params, case.hparams)

    def several(key):
        body = lambda state, k: search.step(case.problem, state, jax.random.fold_in(key, k))
        return jax.lax.scan(body, start, jnp.arange(20))[0]

    keys = jax.random.split(laws.KEY, 3)
    together = jax.vmap(several)(keys)
    for i, key in enumerate(keys):
        alone = several(key)
        np.testing.assert_allclose(together.best.value[i], alone.best.value, rtol=1e-12)
        assert int(alone.spent.evaluations) == np.asarray(together.spent.evaluations)[i]
