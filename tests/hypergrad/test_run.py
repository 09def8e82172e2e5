"""The loop: budgets, stopping, resuming, trouble on the way."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypergrad as hg
from hypergrad.testing import laws
from hypergrad.testing.problems import net, ridge

INNER = hg.OptaxSolver(optax.sgd(0.1, 0.9), 4)
OUTER = optax.adam(0.1)
SEARCHES = {
    "reverse": hg.GradientSearch(hg.Reverse(INNER), OUTER),
    "drmad": hg.GradientSearch(hg.DrMAD(INNER, knots=2, warm_start=True), OUTER),
    "greedy": hg.GradientSearch(hg.Greedy(INNER), OUTER),
    "implicit": hg.GradientSearch(hg.Implicit(INNER, hg.CG(3)), OUTER),
    "hoag": hg.GradientSearch(hg.HOAG(INNER, hg.CG(3)), hg.adaptive_step()),
    "soba": hg.SOBA(optax.sgd(0.1, 0.9), optax.sgd(0.1), OUTER),
    "saba": hg.SABA(optax.sgd(0.1), optax.sgd(0.1), OUTER, num_batches=4, num_valid_batches=2),
    "f2sa": hg.F2SA(optax.sgd(0.1), OUTER, lambda k: 10.0 + k),
    "maid": hg.MAID(INNER, hg.CG(3)),
    "random": hg.RandomSearch(INNER, lambda key: {"log_l2": jax.random.normal(key, (3,)), "unused": jnp.float64(0)}),
}
every = pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)


def start(search, case):
    return search.init(case.problem, case.params, case.hparams)


def go(search, case, budget, state=None, **options):
    state = start(search, case) if state is None else state
    return hg.run(search, case.problem, state, key=laws.KEY, budget=budget, **options)


def same(one, other):
    """The same bits."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.row(15)
@pytest.mark.variants(quick=["random"], slow=["soba", "reverse", "hoag"])
@every
def test_equal_budgets_buy_every_search_the_same(search):
    state, history = go(search, ridge(), 22)
    assert 22 <= state.spent.iterations < 22 + 4
    assert np.sum(history.stats.counts.iterations) == state.spent.iterations
    assert len(history.value) == state.num_steps
    state, history = go(search, ridge(), hg.Budget(gradients=50))
    last = jax.tree.map(lambda leaf: leaf[-1], history.stats.counts).gradients
    assert 50 <= state.spent.gradients < 50 + last


@pytest.mark.variants(quick=["iterations"], slow=["gradients"])
@pytest.mark.parametrize("unit", ["iterations", "gradients"])
def test_budgets_beyond_32_bits(unit):
    """Three billion are not two billion short, and a start near 2³¹ goes on to exact sums."""
    case, search = ridge(), SEARCHES["reverse"]
    state = start(search, case)
    near = hg.Counts(iterations=2**31 - 6, step_vjps=2**30, inner_gradients=2**31 - 1)
    state = eqx.tree_at(lambda s: s.spent, state, near)
    before = int(getattr(near.totals, unit))
    end, history = go(search, case, hg.Budget(**{unit: before + 40}), state=state, chunk=3)
    reached = getattr(end.spent, unit)
    assert before + 40 <= reached < before + 40 + 13 and reached > 2**31
    per_step = getattr(history.stats.counts, unit).astype(int)
    np.testing.assert_array_equal(getattr(history, unit), before + np.cumsum(per_step))
    assert str(int(reached)) in str(end) and str(int(reached)) in str(history)
    far = hg.Budget(**{unit: 6_000_000_000})
    end, _ = go(search, case, far, state=state, callback=lambda s, h: s.num_steps == 4)
    assert end.num_steps == 4 and getattr(end.spent, unit) > before


@pytest.mark.variants(quick=["reverse", "soba", "random"], slow=["hoag"])
@every
def test_a_budget_in_epochs(search):
    """A gradient equivalent of the inner loss reads every row once; the outer loss reads none."""
    case, rows = ridge(), 8
    state, history = go(search, case, hg.Budget(epochs=21.5), chunk=3)
    np.testing.assert_allclose(history.epochs, np.cumsum(history.stats.counts.inner_equivalents))
    assert np.all(history.epochs[:-1] < 21.5) and 21.5 <= history.epochs[-1] == int(state.spent.rows) / rows


def test_a_budget_in_seconds():
    state, _ = go(SEARCHES["reverse"], ridge(), hg.Budget(seconds=0.3), chunk=5)
    assert state.num_steps >= 5 and state.num_steps % 5 == 0


@pytest.mark.row(9)
@pytest.mark.variants(slow=["reverse", "hoag", "maid", "saba"])
@pytest.mark.usefixtures("optimised")
@every
def test_chunks_stops_and_repetitions_change_nothing(search, tmp_path):
    case, file = ridge(), tmp_path / "run.ckpt"
    whole = go(search, case, 40, chunk=1)
    same(whole, go(search, case, 40, chunk=7))
    epochs = go(search, case, hg.Budget(epochs=21.5), chunk=7)
    assert np.all(epochs[1].epochs[:-1] < 21.5) and epochs[1].epochs[-1] >= 21.5
    same(epochs, go(search, case, int(epochs[0].spent.iterations), chunk=1))
    go(search, case, 12, checkpoint=file)
    same(whole, go(search, case, 40, chunk=7, checkpoint=file))
    half, first = go(search, case, 20)
    end, second = go(search, case, 40, state=half)
    same(whole, (end, first + second))


@pytest.mark.slow
@pytest.mark.row(40)
def test_an_interrupted_run_is_saved(tmp_path):
    case, file, search = ridge(), tmp_path / "run.ckpt", SEARCHES["drmad"]

    def interrupt(state, record):
        if state.num_steps == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(search, case, 40, callback=interrupt, checkpoint=file)
    same(go(search, case, 40), go(search, case, 40, checkpoint=file))
    assert set(tmp_path.iterdir()) == {file, tmp_path / "run.ckpt.records"}


@pytest.mark.slow
@pytest.mark.row(31, 32, 33, 35)
def test_damaged_and_foreign_checkpoints_are_refused(tmp_path):
    case, file, search = ridge(), tmp_path / "run.ckpt", SEARCHES["reverse"]
    go(search, case, 8, checkpoint=file)
    good = file.read_bytes()
    flipped = bytearray(good)
    flipped[-200] ^= 1
    damage = {
        "SHA-256": bytes(flipped),
        "damaged": good[: len(good) // 2],
        "not a checkpoint": b"\x80\x04pickle" + good,
    }
    for message, content in damage.items():
        file.write_bytes(content)
        with pytest.raises(hg.CheckpointError, match=message):
            go(search, case, 40, checkpoint=file)
    file.write_bytes(good)
    with pytest.raises(hg.CheckpointError, match="another run") as error:
        go(SEARCHES["greedy"], case, 40, checkpoint=file)
    assert "Greedy" in str(error.value) and "Reverse" in str(error.value)
    with pytest.raises(hg.CheckpointError, match="another run"):
        go(search, ridge(num_features=4), 40, checkpoint=file)


@pytest.mark.row(34)
def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(FileNotFoundError):
        go(SEARCHES["reverse"], ridge(), 4, checkpoint=tmp_path / "missing" / "run.ckpt")


def test_the_record_holds_where_the_value_was_measured():
    case, search = ridge(), SEARCHES["reverse"]
    state, history = go(search, case, 20)
    for k in range(5):
        hparams = jax.tree.map(lambda h: jnp.asarray(h[k]), history.hparams)  # noqa: B023
        value = hg.value_and_hypergrad(case.problem, search.estimator)(hparams, case.params, laws.KEY)[0]
        np.testing.assert_allclose(value, history.value[k], rtol=1e-12)
    assert state.best.value == np.min(history.value)
    assert jnp.all(state.best.hparams["log_l2"] == history.hparams["log_l2"][np.argmin(history.value)])


def test_callback_keep_and_projection():
    case = ridge()
    search = hg.GradientSearch(hg.Greedy(INNER), optax.sgd(10.0), projection=lambda h: optax.tree.clip(h, -0.5, 0.5))
    seen = []
    state, history = go(
        search, case, 400, callback=lambda s, r: seen.append(r) or len(seen) == 3, keep=lambda r: r.value
    )
    assert state.num_steps == 3 and isinstance(history.records, np.ndarray) and history.records.shape == (3,)
    assert jnp.all(jnp.abs(state.hparams["log_l2"]) <= 0.5)


def test_progress_is_shown(capsys):
    go(SEARCHES["greedy"], ridge(), 8, progress=True)
    assert "8/8" in capsys.readouterr().err


@pytest.mark.row(20)
def test_divergence_is_flagged_and_survived():
    case = ridge()
    wild = hg.OptaxSolver(lambda h: optax.sgd(jnp.exp(h["log_lr"])), 200)
    prior = lambda key: case.hparams | {"log_lr": jax.random.choice(key, jnp.array([-2.0, 5.0]))}
    search = hg.RandomSearch(wild, prior)
    state = search.init(case.problem, case.params, prior(laws.KEY))
    with pytest.warns(RuntimeWarning, match="training diverges"):
        state, history = hg.run(search, case.problem, state, key=laws.KEY, budget=200 * 12)
    diverged = history.hparams["log_lr"] > 0
    assert diverged.any() and not diverged.all()
    np.testing.assert_array_equal(history.stats.status, np.where(diverged, hg.Status.NONFINITE, hg.Status.OK))
    assert jnp.isfinite(state.best.value) and state.best.hparams["log_lr"] == -2


@pytest.mark.variants(quick=["True"], slow=["False"])
@pytest.mark.row(20)
@pytest.mark.parametrize("warm", [False, True])
def test_a_gradient_search_keeps_its_place_after_divergence(warm):
    """Nothing moves from a rate that diverges, and nothing that was found before is lost."""
    case = ridge()
    wild = hg.OptaxSolver(lambda h: optax.sgd(jnp.exp(h["log_lr"])), 300)
    search = hg.GradientSearch(hg.Reverse(wild, warm_start=warm), OUTER)
    hparams = case.hparams | {"log_lr": jnp.asarray(4.0)}
    start = search.init(case.problem, case.params, hparams)
    with (
        pytest.warns(RuntimeWarning, match="training diverges"),
        pytest.raises(FloatingPointError, match="NONFINITE: 3 of 3 steps") as error,
    ):
        hg.run(search, case.problem, start, key=laws.KEY, budget=900)
    state, history = error.value.state, error.value.history
    assert np.all(history.stats.status & hg.Status.NONFINITE)
    assert state.spent.hyper_updates == 0 and state.best.value == jnp.inf
    assert state.hparams["log_lr"] == 4 and jnp.all(jnp.isfinite(state.model))
    with pytest.warns(RuntimeWarning), pytest.raises(FloatingPointError, match="NONFINITE: 1 of 1") as error:
        hg.run(search, case.problem, state, key=laws.KEY, budget=1800, throw=True)
    assert error.value.state.num_steps == 4


def test_a_failing_member_leaves_the_others_alone():
    case, inner = ridge(), hg.OptaxSolver(lambda h: optax.sgd(jnp.exp(h["log_lr"])), 300)
    function = hg.value_and_hypergrad(case.problem, hg.Reverse(inner))
    one = lambda rate: function(case.hparams | {"log_lr": rate}, case.params, laws.KEY)
    values, found = jax.vmap(one)(jnp.array([-2.0, 4.0, -3.0]))
    assert jnp.all(jnp.isfinite(values) == jnp.array([True, False, True]))
    for i, rate in ((0, -2.0), (2, -3.0)):
        np.testing.assert_allclose(found["log_l2"][i], one(jnp.asarray(rate))[1]["log_l2"], rtol=1e-9)


@pytest.mark.slow
def test_equinox_models_come_back_whole():
    case = net()
    search = hg.GradientSearch(hg.DrMAD(hg.OptaxSolver(optax.adam(0.05), 5), warm_start=True), OUTER)
    state, history = go(search, case, 200, chunk=10)
    assert history.value[-1] < history.value[0]
    x = case.problem.valid["x"][0]
    assert state.best.params(x).shape == () and state.model.activation is case.params.activation


@pytest.mark.row(20)
def test_minus_infinity_is_not_the_best():
    loss = lambda w, h, data, key: jnp.sum((w - h) ** 2) * data["c"]
    value = lambda w, h, data, key: jnp.log(jnp.maximum(h, 0.0))
    data = {"c": np.ones(())}
    search = hg.RandomSearch(INNER, lambda key: jax.random.normal(key, ()))
    problem = hg.BilevelProblem(loss, value, data, data)
    state = search.init(problem, jnp.zeros(2), jnp.asarray(0.0))
    with pytest.warns(RuntimeWarning, match="not finite"):
        state, history = hg.run(search, problem, state, key=laws.KEY, budget=40)
    assert np.isneginf(history.value).any() and np.isfinite(history.value).any()
    assert jnp.isfinite(state.best.value)


@pytest.mark.row(20)
def test_a_clipped_infinity_moves_nothing():
    """The derivative of √h at 0 is infinite."""
    loss = lambda w, h, data, key: jnp.sum((w - h) ** 2) * data["c"]
    value = lambda w, h, data, key: jnp.sum(w**2) + jnp.sqrt(h)
    data = {"c": np.ones(())}
    problem = hg.BilevelProblem(loss, value, data, data)
    search = hg.GradientSearch(hg.Reverse(INNER), optax.chain(optax.clip(1.0), optax.sgd(0.1)))
    state, record = search.step(problem, search.init(problem, jnp.zeros(2), jnp.asarray(0.0)), laws.KEY)
    assert record.stats.status == hg.Status.NONFINITE
    assert state.hparams == 0 and state.spent.hyper_updates == 0


@pytest.mark.variants(quick=["reverse", "greedy"], slow=["implicit"])
@every
def test_nothing_is_nan_by_itself(search):
    """The option finds the operation that is at fault, if there is one."""
    with jax.debug_nans(True):
        _, history = go(search, ridge(), 12)
    assert np.isfinite(history.value).all()
