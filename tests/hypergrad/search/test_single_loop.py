"""Single-loop searches: one step as written, convergence to the exact optimum, noise, trouble."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypergrad as hg
from hypergrad.testing import assert_close, laws
from hypergrad.testing.problems import (
    Case,
    net,
    positive,
    quadratic,
    quadratic_inner,
    quadratic_optimum,
    quadratic_outer,
    ridge,
    ridge_gradient,
)

from tests.helpers import after_steps

SGD = optax.sgd(0.3)


def distance(state, case):
    return np.linalg.norm(state.hparams - quadratic_optimum(case)) / np.linalg.norm(quadratic_optimum(case))


# One step


def ridge_terms(case, w, v, h):
    """All derivatives of `ridge`, by hand."""
    train, valid, penalty = case.problem.train, case.problem.valid, np.exp(h["log_l2"])
    gradient = train["x"].T @ (train["x"] @ w - train["y"]) / len(train["y"]) + penalty * w
    hvp = train["x"].T @ (train["x"] @ v) / len(train["y"]) + penalty * v
    by_params = valid["x"].T @ (valid["x"] @ w - valid["y"]) / len(valid["y"])
    return gradient, hvp, penalty * w * v, by_params, 0.1 * h["log_l2"]


@pytest.mark.parametrize(
    "search",
    [
        hg.SOBA(optax.sgd(0.2), optax.sgd(0.1), optax.sgd(0.05)),
        hg.SABA(optax.sgd(0.2), optax.sgd(0.1), optax.sgd(0.05), 1),
    ],
    ids=["SOBA", "SABA with one batch"],
)
def test_one_step_of_soba_is_as_written(search):
    case, rng = ridge(), np.random.default_rng(1)
    v = rng.normal(size=3)
    state = search.init(case.problem, case.params, case.hparams)
    state = eqx.tree_at(lambda s: s.inner_state.auxiliary, state, jnp.asarray(v))
    after, record = search.step(case.problem, state, laws.KEY)
    gradient, hvp, mixed, by_params, direct = ridge_terms(case, case.params, v, case.hparams)
    assert_close(after.inner_state.params, case.params - 0.2 * gradient, "gradient")
    assert_close(after.inner_state.auxiliary, v - 0.1 * (hvp - by_params), "gradient")
    expected = case.hparams["log_l2"] - 0.05 * (direct - mixed)
    assert_close(after.hparams, {"log_l2": expected, "unused": 0.7}, "gradient")
    assert_close(record.value, case.problem.outer_loss(case.params, case.hparams, case.problem.valid, None))
    assert (record.stats.counts.gradients, record.stats.counts.iterations) == (4, 1)


def test_one_step_of_f2sa_is_as_written():
    case, rng, sigma = ridge(), np.random.default_rng(1), 7.0
    search = hg.F2SA(optax.sgd(0.2), optax.sgd(0.05), lambda k: sigma + k)
    y = rng.normal(size=3)
    state = search.init(case.problem, case.params, case.hparams)
    state = eqx.tree_at(lambda s: s.inner_state.auxiliary, state, jnp.asarray(y))
    after, record = search.step(case.problem, state, laws.KEY)
    gradient, *_ = ridge_terms(case, case.params, y, case.hparams)
    pulled, _, _, by_params, direct = ridge_terms(case, y, y, case.hparams)
    penalty = np.exp(case.hparams["log_l2"])
    slope = direct + sigma * penalty * (y**2 - case.params**2) / 2
    assert_close(after.inner_state.params, case.params - 0.2 * gradient, "gradient")
    assert_close(after.inner_state.auxiliary, y - 0.2 * (pulled + by_params / sigma), "gradient")
    assert_close(after.hparams, {"log_l2": case.hparams["log_l2"] - 0.05 * slope, "unused": 0.7}, "gradient")
    assert_close(record.value, case.problem.outer_loss(case.params, case.hparams, case.problem.valid, None))
    assert (record.stats.counts.gradients, record.stats.counts.iterations) == (3, 2)


def test_saba_corrects_each_batch_by_what_it_remembers():
    """Against SAGA written with dictionaries, for several steps on several batches."""
    case = sampled()
    search = hg.SABA(optax.sgd(0.2), optax.sgd(0.1), optax.sgd(0.05), num_batches=3, num_valid_batches=2)
    state = search.init(case.problem, case.params, case.hparams)
    w, v, h = (np.asarray(one) for one in (case.params, 0 * case.params, case.hparams))
    memories = [{}, {}]
    for k in range(8):
        key = jax.random.fold_in(laws.KEY, k)
        i_key, j_key, *_ = jax.random.split(key, 4)
        i, j = int(jax.random.randint(i_key, (), 0, 3)), int(jax.random.randint(j_key, (), 0, 2))
        A, B, c = (np.asarray(case.problem.train[name])[i::3].mean(0) for name in "ABc")
        P, t, R = (np.asarray(case.problem.valid[name]) for name in "PtR")
        by_params = np.mean([p @ (w - s) for p, s in zip(P[j::2], t[j::2], strict=True)], axis=0)
        terms = (A @ w - B @ h - c, A @ v, -B.T @ v), (by_params, R[j::2].mean(0) @ h)
        used = [
            corrected(memory, n, index, g) for memory, n, index, g in zip(memories, (3, 2), (i, j), terms, strict=True)
        ]
        (gradient, hvp, mixed), (by_params, direct) = used
        w, v, h = w - 0.2 * gradient, v - 0.1 * (hvp - by_params), h - 0.05 * (direct - mixed)
        state, _ = search.step(case.problem, state, key)
        assert_close((state.model, state.inner_state.auxiliary, state.hparams), (w, v, h), "gradient")


@pytest.mark.parametrize(("num_batches", "num_valid_batches"), [(1, 1), (3, 1), (6, 2)])
def test_saba_counts_the_share_of_the_data_that_it_reads(num_batches, num_valid_batches):
    case, steps = sampled(), 7
    optimisers = [optax.sgd(0.01)] * 3
    search = hg.SABA(*optimisers, num_batches=num_batches, num_valid_batches=num_valid_batches)
    state = search.init(case.problem, case.params, case.hparams)
    state, _ = hg.run(search, case.problem, state, key=laws.KEY, budget=steps)
    spent = state.spent
    assert spent.iterations == steps
    assert spent.inner_gradients == steps // num_batches and spent.hvps == 2 * steps // num_batches
    assert spent.outer_gradients == steps // num_valid_batches


def corrected(memory, number, index, terms):
    found = []
    for name, term in enumerate(terms):
        known = {b: m for (b, n), m in memory.items() if n == name}
        found.append(term - known.get(index, 0) + sum(known.values()) / number)
        memory[index, name] = term
    return found


# Convergence


def test_soba_and_saba_reach_the_exact_optimum():
    case = quadratic()
    state, _ = after_steps(hg.SOBA(SGD, SGD, optax.sgd(0.03)), case, 10_000)
    assert distance(state, case) < 1e-10
    case = ridge()
    state, _ = after_steps(hg.SOBA(SGD, SGD, optax.sgd(0.3)), case, 10_000)
    at_end = ridge_gradient(case.problem.train, case.problem.valid, state.hparams["log_l2"])
    assert np.linalg.norm(at_end) < 1e-10 < np.linalg.norm(case.exact()["log_l2"])


@pytest.mark.slow
def test_the_bias_of_f2sa_is_one_over_its_multiplier():
    case, errors = quadratic(), []
    for sigma in (50.0, 100.0, 200.0):
        state, _ = after_steps(hg.F2SA(optax.sgd(0.2), optax.sgd(0.03), sigma), case, 10_000)
        errors.append(distance(state, case))
    np.testing.assert_allclose(np.divide(errors[:-1], errors[1:]), 2, rtol=0.05)


@pytest.mark.slow
def test_f2sa_with_a_growing_multiplier_converges():
    case = quadratic()
    grow = lambda k: 10 + k / 20
    search = hg.F2SA(optax.sgd(0.2), optax.sgd(0.03), grow)
    short, long = (distance(after_steps(search, case, steps)[0], case) for steps in (4_000, 40_000))
    assert long < short / 5 and long < 1e-3


def minibatched(loss):
    return lambda w, h, data, key: loss(w, h, hg.minibatch(key, data, 2), key)


def sampled_inner(w, h, data, key):
    return quadratic_inner(w, h, jax.tree.map(lambda rows: rows.mean(0), data), key)


def sampled_outer(w, h, data, key):
    return jnp.mean(jax.vmap(lambda row: quadratic_outer(w, h, row, key))(data))


NOISY = minibatched(sampled_inner), minibatched(sampled_outer)


def sampled(seed=0, num_rows=6, noisy=False):
    """`quadratic` with one of each matrix and vector per row."""
    rng = np.random.default_rng(seed)
    rows = lambda draw: np.stack([draw() for _ in range(num_rows)])
    train = {
        "A": rows(lambda: positive(rng, 4, 0.5, 1.5)),
        "B": rows(lambda: rng.normal(size=(4, 3))),
        "c": rows(lambda: rng.normal(size=4)),
    }
    valid = {"P": rows(lambda: np.eye(4)), "t": rows(lambda: rng.normal(size=4)), "R": rows(lambda: positive(rng, 3))}
    losses = NOISY if noisy else (sampled_inner, sampled_outer)
    return Case(
        hg.BilevelProblem(*losses, train, valid), jnp.asarray(rng.normal(size=4)), jnp.asarray(rng.normal(size=3))
    )


def mean_case(case):
    """The noiseless problem whose optimum `sampled` has: P is the same in all rows."""
    train, valid = (jax.tree.map(lambda rows: rows.mean(0), data) for data in (case.problem.train, case.problem.valid))
    return Case(hg.BilevelProblem(quadratic_inner, quadratic_outer, train, valid), case.params, case.hparams)


@pytest.mark.slow
def test_with_constant_steps_and_noise_saba_converges_and_soba_stalls():
    optimisers = optax.sgd(0.1), optax.sgd(0.1), optax.sgd(0.02)
    exact, errors = mean_case(sampled()), {}
    for steps in (5_000, 20_000):
        for name, search, noisy in (
            ("soba", hg.SOBA(*optimisers), True),
            ("saba", hg.SABA(*optimisers, num_batches=3, num_valid_batches=3), False),
        ):
            state, _ = after_steps(search, sampled(noisy=noisy), steps)
            errors[name, steps] = distance(state, exact)
    assert errors["saba", 20_000] < 1e-8
    assert errors["soba", 20_000] > 1e-3 and errors["soba", 20_000] > errors["soba", 5_000] / 20


@pytest.mark.slow
def test_soba_converges_under_noise_with_falling_steps():
    fall = lambda start: optax.sgd(lambda k: start / jnp.sqrt(1 + k / 100))
    exact, case = mean_case(sampled()), sampled(noisy=True)
    error = lambda rate, steps: distance(after_steps(hg.SOBA(rate(0.1), rate(0.1), rate(0.02)), case, steps)[0], exact)
    assert error(fall, 50_000) < error(optax.sgd, 50_000) / 3


# Trouble and other models

LOOPS = {
    "SOBA": lambda inner, outer: hg.SOBA(inner, inner, outer),
    "SABA": lambda inner, outer: hg.SABA(inner, inner, outer, num_batches=2),
    "F2SA": lambda inner, outer: hg.F2SA(inner, outer, 20.0),
}
every = pytest.mark.parametrize("make", LOOPS.values(), ids=LOOPS)


@pytest.mark.row(20)
@every
def test_a_step_that_is_not_finite_moves_nothing(make):
    case = quadratic()
    broken = lambda w, h, data, key: quadratic_outer(w, h, data, key) + jnp.sqrt(h[0] - h[0])
    if make is LOOPS["SABA"]:
        case, broken = sampled(), lambda w, h, data, key: sampled_outer(w, h, data, key) + jnp.sqrt(h[0] - h[0])
    problem = hg.BilevelProblem(case.problem.inner_loss, broken, case.problem.train, case.problem.valid)
    search = make(optax.sgd(0.1, 0.9), optax.adam(0.1))
    state = search.init(problem, case.params, case.hparams)
    after, record = search.step(problem, state, laws.KEY)
    assert record.stats.status == hg.Status.NONFINITE and after.num_steps == 1
    assert after.spent.hyper_updates == 0 and after.spent.gradients > 0
    unmoved = lambda s: (s.hparams, s.inner_state, s.opt_state)
    assert eqx.tree_equal(unmoved(after), unmoved(state))


@every
def test_divergence_is_flagged_and_stops_short_of_nan(make):
    with pytest.warns(RuntimeWarning, match="no finite result"):
        state, history = after_steps(make(optax.sgd(1e60), optax.sgd(0.1)), ridge(), 20)
    assert np.any(history.stats.status == hg.Status.NONFINITE)
    assert eqx.tree_equal(jnp.isfinite(jnp.stack([*state.model, state.best.value])).all(), jnp.asarray(True))


@pytest.mark.variants(slow=["F2SA", "SABA"])
@every
def test_equinox_models_are_learned_whole(make):
    case = net()
    state, history = after_steps(make(optax.sgd(0.05), optax.sgd(0.05)), case, 400)
    assert np.all(history.stats.status == hg.Status.OK)
    assert history.value[-1] < history.value[0]
    assert state.best.params(case.problem.valid["x"][0]).shape == ()
    assert not jnp.allclose(state.hparams["log_l2"], case.hparams["log_l2"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hg.SOBA("sgd", SGD, SGD), "inner_optimiser"),
        (lambda: hg.SOBA(SGD, 0.1, SGD), "linear_optimiser"),
        (lambda: hg.SABA(SGD, SGD, None, 2), "outer_optimiser"),
        (lambda: hg.SABA(SGD, SGD, SGD, 0), "num_batches"),
        (lambda: hg.SABA(SGD, SGD, SGD, 2, num_valid_batches=1.5), "num_valid_batches"),
        (lambda: hg.F2SA(SGD, SGD, 0.0), "multiplier"),
        (lambda: hg.F2SA(SGD, SGD, "10"), "multiplier"),
        (lambda: hg.F2SA(SGD, 0.1, 1.0), "outer_optimiser"),
    ],
)
def test_options_that_cannot_work_are_named(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_data_that_cannot_be_cut_into_batches_are_refused():
    case = ridge()  # 8 rows to train on, 6 to validate on
    init = lambda n, m=1: hg.SABA(SGD, SGD, SGD, n, num_valid_batches=m).init(case.problem, case.params, case.hparams)
    with pytest.raises(ValueError, match=r"num_batches is 3.*8 rows of train\['x'\]"):
        init(3)
    with pytest.raises(ValueError, match=r"num_valid_batches is 4.*6 rows of valid\['x'\]"):
        init(4, 4)
    uneven = case.replace(train={"y": jnp.zeros(4)})
    with pytest.raises(ValueError, match="all arrays of train must have the same leading axis"):
        hg.SABA(SGD, SGD, SGD, 2).init(uneven.problem, case.params, case.hparams)
