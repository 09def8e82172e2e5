"""A third data set that chooses the best step and stops the run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypergrad as hg
from hypergrad.testing import laws

INNER = hg.OptaxSolver(optax.sgd(0.1), 3)
SEARCHES = {
    "gradient": hg.GradientSearch(hg.Reverse(INNER, warm_start=True), optax.sgd(0.3)),
    "random": hg.RandomSearch(INNER, lambda key: jax.random.normal(key, ())),
    "soba": hg.SOBA(optax.sgd(0.1), optax.sgd(0.1), optax.sgd(0.1)),
    "maid": hg.MAID(INNER),
}
every = pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
ONES = {"a": np.ones(4)}
HALF = {"a": np.full(4, 0.5)}


def inner_loss(w, h, data, key):
    return jnp.mean(data["a"]) * (w - h) ** 2 / 2


def outer_loss(w, h, data, key):
    """λ is drawn to the mean of the data, w follows it."""
    return (w - jnp.mean(data["a"])) ** 2


def noisy(w, h, data, key):
    return outer_loss(w, h, data, key) + 0.01 * jax.random.normal(key)


def go(search, budget=600, outer=outer_loss, state=None, **options):
    problem = hg.BilevelProblem(inner_loss, outer, ONES, ONES)
    state = search.init(problem, jnp.zeros(()), jnp.zeros(())) if state is None else state
    return hg.run(search, problem, state, key=laws.KEY, budget=budget, **options)


def same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.variants(quick=["random"], slow=["gradient", "maid", "soba"])
@every
def test_the_holdout_chooses_the_best_step(search):
    state, history = go(search, 60, holdout=HALF)
    losses = history.stats.diagnostics["holdout"]
    at = np.nanargmin(losses)
    assert state.best.value == losses[at] and state.best.hparams == history.hparams[at]
    np.testing.assert_allclose(state.best.value, (state.best.params - 0.5) ** 2, rtol=1e-12)
    assert state.stale == len(history) - 1 - at
    plain, other = go(search, 60)
    np.testing.assert_array_equal(history.hparams, other.hparams)  # it only watches
    assert state.spent.evaluations == plain.spent.evaluations + len(history)
    assert state.best.value <= (plain.best.params - 0.5) ** 2 * (1 + 1e-12)


def test_a_function_of_the_model_does_the_same():
    search = SEARCHES["gradient"]
    by_data, _ = go(search, 60, holdout=HALF)
    by_function, _ = go(search, 60, holdout=lambda w: (w - 0.5) ** 2)
    same(by_data.best, by_function.best)


@pytest.mark.slow
def test_patience_ends_the_run_whatever_the_chunks(tmp_path):
    search, file = SEARCHES["gradient"], tmp_path / "run.ckpt"
    whole = go(search, holdout=HALF, patience=4)
    state, history = whole
    losses = history.stats.diagnostics["holdout"]
    assert len(history) == np.argmin(losses) + 5 and state.spent.iterations < 600
    same(whole, go(search, holdout=HALF, patience=4, chunk=7))
    go(search, 9, holdout=HALF, patience=4, checkpoint=file)
    same(whole, go(search, holdout=HALF, patience=4, checkpoint=file))
    same(whole, go(search, holdout=HALF, patience=4, checkpoint=file))  # nothing is left to do
    half, first = go(search, 9, holdout=HALF, patience=4)
    end, second = go(search, holdout=HALF, patience=4, state=half)
    same(whole, (end, first + second))
    with pytest.raises(hg.CheckpointError, match="another run"):
        go(search, holdout=ONES, patience=4, checkpoint=file)


@pytest.mark.slow
def test_a_random_outer_loss_is_judged_by_common_random_numbers():
    state, history = go(SEARCHES["gradient"], 90, outer=noisy, holdout=HALF)
    assert state.best.num_evaluations > 1 and state.best.error > 0
    assert abs(state.best.value - (state.best.params - 0.5) ** 2) < 4 * state.best.error
    assert state.spent.evaluations > len(history)


def test_a_run_without_one_goes_on_with_one_and_never_back():
    search = SEARCHES["gradient"]
    before, _ = go(search, 9)
    state, history = go(search, 18, state=before, holdout=HALF)
    assert state.best.value == np.min(history.stats.diagnostics["holdout"])
    with pytest.raises(ValueError, match="state was chosen on a holdout"):
        go(search, 27, state=state)


def test_a_step_without_a_finite_outer_loss_is_not_chosen():
    blind = lambda w, h, data, key: jnp.where(w > 0.4, jnp.nan, outer_loss(w, h, data, key))
    with pytest.warns(RuntimeWarning, match="no finite result"):
        state, history = go(SEARCHES["gradient"], 60, outer=blind, holdout=HALF)
    assert np.any(np.isnan(history.value)) and state.best.params <= 0.4
    assert np.all(np.isinf(history.stats.diagnostics["holdout"]) == np.isnan(history.value))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"patience": 3}, ValueError, "patience .* holdout"),
        ({"holdout": HALF, "patience": 0}, ValueError, "patience must be a positive integer"),
        ({"holdout": HALF, "patience": 1.5}, TypeError, "patience must be"),
        ({"holdout": {}}, ValueError, "holdout holds no arrays"),
        ({"holdout": {"a": np.ones(0)}}, ValueError, r"holdout\['a'\] is empty"),
        ({"holdout": {"a": np.array([np.nan])}}, ValueError, r"holdout\['a'\] holds 1 values"),
        ({"holdout": {"a": np.array(["x"])}}, TypeError, r"holdout\['a'\]"),
        ({"holdout": {"b": np.ones(4)}}, ValueError, "holdout does not fit"),
        ({"holdout": lambda w: w[0]}, ValueError, "holdout does not fit"),
        ({"holdout": lambda w: jnp.ones(2) * w}, TypeError, "holdout must give a floating scalar"),
    ],
)
def test_nonsense_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        go(SEARCHES["gradient"], 9, **options)


def test_the_loss_of_the_holdout_is_differentiated_nowhere():
    """A holdout without a derivative is as good as another."""
    kink = lambda w: jax.pure_callback(lambda w: np.abs(w - 0.5), jax.ShapeDtypeStruct((), w.dtype), w)
    state, _ = go(SEARCHES["gradient"], 60, holdout=kink)
    assert dataclasses.asdict(state.best)["value"] == abs(state.best.params - 0.5)
