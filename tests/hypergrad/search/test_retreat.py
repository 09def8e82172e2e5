"""Results that are not finite: λ turns back, one warning is given, and a run of nothing else raises."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypergrad as hg
from hypergrad.testing import laws
from hypergrad.testing.problems import net, ridge

INNER = hg.OptaxSolver(optax.sgd(1.0), 3)
DATA = {"a": np.ones(1)}
WALL = 1.5


def follow(w, h, data, key):
    return 0.5 * jnp.sum((w - h) ** 2)


def walled(w, h, data, key):
    """Smallest at 1.2, not defined beyond 1.5."""
    return jnp.sum(jnp.where(w < WALL, (w - 1.2) ** 2, jnp.nan))


PROBLEM = hg.BilevelProblem(follow, walled, DATA, DATA)
ESTIMATORS = {"reverse": hg.Reverse(INNER), "hoag": hg.HOAG(INNER), "warm": hg.Reverse(INNER, warm_start=True)}
OPTIMISERS = {
    "adaptive": hg.adaptive_step(),
    "sgd": optax.sgd(1.2),
    "momentum": optax.sgd(1.2, 0.5),
    "adam": optax.adam(1.0),
    "chained": optax.chain(optax.clip(10.0), hg.adaptive_step()),
    "plateau": optax.chain(optax.adam(1.0), optax.contrib.reduce_on_plateau()),
}


def go(search, problem=PROBLEM, hparams=(0.9,), steps=40, **options):
    hparams = jnp.asarray(hparams)
    state = search.init(problem, jnp.zeros_like(hparams), hparams)
    budget = 3 * steps if "budget" not in options else options.pop("budget")
    return hg.run(search, problem, state, key=laws.KEY, budget=budget, **options)


@pytest.mark.variants(
    quick=["adam-reverse", "adam-warm", "sgd-reverse", "sgd-warm", "momentum-warm"],
    slow=["sgd-hoag", "adam-hoag", "adaptive-reverse", "chained-warm", "plateau-reverse"],
)
@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_step_beyond_the_wall_is_taken_back(estimator, name):
    search = hg.GradientSearch(estimator, OPTIMISERS[name])
    with pytest.warns(RuntimeWarning, match=r"step \d+ has no finite result .*not defined"):
        state, history = go(
            search, hparams=[-0.4] if name in ("sgd", "momentum") else [0.9], budget=hg.Budget(gradients=600)
        )
    failed = (history.stats.status & hg.Status.NONFINITE) != 0
    assert failed.any() and not failed[-5:].all() and jnp.all(jnp.isfinite(state.hparams))
    assert state.spent.hyper_updates == np.sum(history.stats.counts.hyper_updates) == np.sum(~failed)
    assert abs(float(state.best.hparams[0]) - 1.2) < 0.05
    path = history.hparams[:, 0]
    for k in np.flatnonzero(failed[:-1]):
        good = path[:k][~failed[:k]][-1]
        assert abs(path[k + 1] - good) < abs(path[k] - good)


def test_the_step_is_halved_and_grows_again():
    search = hg.GradientSearch(hg.Reverse(INNER), optax.sgd(1.0))
    with pytest.warns(RuntimeWarning):
        state, history = go(search, hparams=[-2.0], steps=5)
    path = history.hparams[:, 0]
    assert path[1] == pytest.approx(-2 + 6.4) and np.isnan(history.value[1])
    assert path[2] == pytest.approx(-2 + 3.2) and np.isfinite(history.value[2])
    assert path[3] == pytest.approx(1.2) and state.anchor.share == 1


def test_moments_and_weights_are_those_of_the_last_good_point():
    search = hg.GradientSearch(hg.Reverse(INNER, warm_start=True), optax.adam(1.0))
    state = search.init(PROBLEM, jnp.zeros(1), jnp.asarray([0.9]))
    good, _ = search.step(PROBLEM, state, laws.KEY)
    failed, record = search.step(PROBLEM, good, laws.KEY)
    assert record.stats.status == hg.Status.NONFINITE and failed.anchor.hparams == 0.9 and failed.anchor.share == 0.5
    for a, b in zip(
        jax.tree.leaves((failed.opt_state, failed.inner_state)),
        jax.tree.leaves((good.opt_state, good.inner_state)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_finite_runs_are_what_they_were():
    """The share of a step is 1: the path is that of the loop by hand, to the bit."""
    case, estimator, optimiser = ridge(), hg.Reverse(INNER), optax.adam(0.1)
    search = hg.GradientSearch(estimator, optimiser)
    state = search.init(case.problem, case.params, case.hparams)
    _, history = hg.run(search, case.problem, state, key=laws.KEY, budget=30)

    @jax.jit
    def by_hand(k, hparams, inner_state, opt_state):
        estimate, inner_state = estimator.step(case.problem, hparams, inner_state, jax.random.fold_in(laws.KEY, k))
        updates, opt_state = optimiser.update(estimate.hypergradient, opt_state, hparams)
        return optax.apply_updates(hparams, updates), inner_state, opt_state

    carry = state.hparams, state.inner_state, state.opt_state
    for k in range(10):
        np.testing.assert_allclose(history.hparams["log_l2"][k], carry[0]["log_l2"], rtol=1e-14)
        carry = by_hand(k, *carry)


LOOPS = {
    "soba": hg.SOBA(optax.sgd(0.5), optax.sgd(0.5), optax.sgd(2.0)),
    "saba": hg.SABA(optax.sgd(0.5), optax.sgd(0.5), optax.sgd(2.0), 1),
    "f2sa": hg.F2SA(optax.sgd(0.5), optax.sgd(2.0), 3.0),
}


@pytest.mark.variants(quick=["f2sa"], slow=["saba", "soba"])
@pytest.mark.parametrize("search", LOOPS.values(), ids=LOOPS)
def test_single_loops_turn_back_too(search):
    outer = lambda w, h, data, key: jnp.sum((w - 1.2) ** 2 + jnp.where(h < WALL, 0 * h, jnp.nan))
    problem = hg.BilevelProblem(follow, outer, DATA, DATA)
    with pytest.warns(RuntimeWarning, match="no finite result"):
        state, history = go(search, problem, hparams=[0.0], budget=600)
    failed = (history.stats.status & hg.Status.NONFINITE) != 0
    assert failed.any() and not failed.all() and np.any(~failed[np.argmax(failed) :])
    assert jnp.all(jnp.isfinite(state.model)) and np.all(np.isfinite(state.hparams))


def test_an_update_that_is_not_finite_is_flagged():
    search = hg.GradientSearch(hg.Reverse(INNER), optax.sgd(jnp.inf))
    with pytest.warns(RuntimeWarning, match="a step size is not finite"), pytest.raises(FloatingPointError):
        go(search)


# Words


def test_a_run_in_which_every_step_failed_raises_and_keeps_what_it_has(tmp_path):
    search = hg.GradientSearch(hg.Reverse(INNER), optax.sgd(1.0))
    file = tmp_path / "run.ckpt"
    with (
        pytest.warns(RuntimeWarning, match="step 0 has no finite result"),
        pytest.raises(FloatingPointError, match="4 of 4 steps had no finite result: .*not defined") as error,
    ):
        go(search, hparams=[2.0], steps=4, checkpoint=file)
    assert error.value.state.num_steps == 4 and len(error.value.history) == 4 and file.exists()


def dead(model, h, data, key):
    """The first weight starts at 0 and has nothing but a penalty: its gradient is 0."""
    return (model[1] - h) ** 2 + h * model[0] ** 2


@pytest.mark.parametrize(("eps_root", "named"), [(0.0, True), (1e-8, False)])
def test_adam_at_zero_gradients_is_named(eps_root, named):
    problem = hg.BilevelProblem(dead, lambda w, h, data, key: jnp.sum(w**2), DATA, DATA)
    search = hg.GradientSearch(hg.Reverse(hg.OptaxSolver(optax.adam(0.1, eps_root=eps_root), 3)), optax.sgd(0.1))
    state = search.init(problem, jnp.array([0.0, 1.0]), jnp.asarray(0.5))
    if not named:
        hg.run(search, problem, state, key=laws.KEY, budget=9)
        return
    with (
        pytest.warns(RuntimeWarning, match="1 of 2 entries of the inner gradient are 0"),
        pytest.raises(FloatingPointError, match="eps_root"),
    ):
        hg.run(search, problem, state, key=laws.KEY, budget=9)


def test_another_missing_derivative_is_not_blamed_on_the_optimiser():
    outer = lambda w, h, data, key: jnp.sum(w**2) + jnp.sqrt(h)
    problem = hg.BilevelProblem(follow, outer, DATA, DATA)
    search = hg.GradientSearch(hg.Reverse(INNER), optax.sgd(0.1))
    with (
        pytest.warns(RuntimeWarning, match="a square root at 0"),
        pytest.raises(FloatingPointError, match="has no derivative there"),
    ):
        hg.run(search, problem, search.init(problem, jnp.zeros(2), jnp.asarray(0.0)), key=laws.KEY, budget=9)


def test_it_is_warned_of_once_and_counted_by_the_progress_bar(capsys):
    search = hg.GradientSearch(hg.Reverse(INNER), optax.sgd(1.2))
    with pytest.warns(RuntimeWarning) as caught:
        go(search, hparams=[-0.4], steps=12, progress=True, chunk=3)
    assert len([w for w in caught if "no finite result" in str(w.message)]) == 1
    assert "failed=" in capsys.readouterr().err


@pytest.mark.slow
def test_models_turn_back_whole():
    case = net()
    outer = lambda m, h, data, key: case.problem.outer_loss(m, h, data, key) + jnp.log(-2.5 - h["log_l2"]) * 0
    problem = hg.BilevelProblem(case.problem.inner_loss, outer, case.problem.train, case.problem.valid)
    search = hg.GradientSearch(hg.DrMAD(hg.OptaxSolver(optax.adam(0.05), 5)), optax.sgd(-200.0))
    state = search.init(problem, case.params, case.hparams)
    with pytest.warns(RuntimeWarning):
        state, history = hg.run(search, problem, state, key=laws.KEY, budget=100)
    assert np.isfinite(history.value).sum() > 2 and np.isnan(history.value).any()
