"""Data read in minibatches: the laws hold for the sampled training, and an epoch is an epoch."""

import itertools

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import optax
import pytest

import hypergrad as hg
from hypergrad.testing import assert_close, laws
from hypergrad.testing.problems import ridge, ridge_inner, ridge_outer

from tests.helpers import some_slow

ROWS, SIZE, STEPS = 10, 4, 6
SGD = hg.OptaxSolver(lambda hparams: optax.sgd(jnp.exp(hparams["log_rate"]), momentum=0.8), STEPS)
MOMENTUM = hg.OptaxSolver(hg.MomentumSGD(lambda hparams, step: jnp.exp(hparams["log_rate"]), 0.8), STEPS)
EXACT = {
    "reverse": hg.Reverse(SGD),
    "checkpoints": hg.Reverse(SGD, checkpoints=2),
    "forward": hg.Forward(SGD),
    "drmad": hg.DrMAD(SGD, knots=STEPS),
    "reversible": hg.Reversible(MOMENTUM),
    "exactly reversible": hg.Reversible(MOMENTUM, exact=True),
    "greedy": hg.Greedy(SGD.with_num_steps(1)),
}


def rows_of(case):
    """The arrays of a case, and its scalars in every row."""
    return {name: jnp.broadcast_to(leaf, (len(case["y"]), *leaf.shape[1:])) for name, leaf in case.items()}


def inner_loss(w, hparams, data, key):
    """The loss of `ridge` on a batch, with noise of its own."""
    data = data | {name: data[name][0] for name in ("scale", "shift")}
    return ridge_inner(w + 0.01 * jax.random.normal(key, w.shape), hparams, data, key)


def outer_loss(w, hparams, data, key):
    data = data | {name: data[name][0] for name in ("scale", "shift")}
    return ridge_outer(w, hparams | {"unused": 0.0}, data, key)


def sampled(train=lambda rows: rows, valid=lambda rows: rows):
    case = ridge(num_rows=ROWS)
    problem = hg.BilevelProblem(
        inner_loss, outer_loss, train(rows_of(case.problem.train)), valid(rows_of(case.problem.valid))
    )
    return problem, case.params, {"log_l2": case.hparams["log_l2"], "log_rate": jnp.asarray(-1.5)}


LAWS = {name: (estimator, "epochs") for name, estimator in EXACT.items()} | {
    "replacement": (EXACT["reverse"], "replacement"),
}


@pytest.mark.parametrize(
    ("estimator", "order"),
    some_slow(LAWS, *EXACT),
)
def test_hypergradients_are_those_of_the_sampled_training(estimator, order):
    problem, params, hparams = sampled(lambda rows: hg.Batches(rows, SIZE, order=order))
    value, found = hg.value_and_hypergrad(problem, estimator)(hparams, params, laws.KEY)
    direction = {"log_l2": jnp.asarray([0.5, -1.0, 0.3]), "log_rate": jnp.asarray(0.7)}
    along = lambda step: (
        hg.evaluate(estimator.inner, problem, params, optax.tree.add_scale(hparams, step, direction), laws.KEY).value
    )
    assert_close(value, along(0.0))
    difference = (8 * (along(1e-3) - along(-1e-3)) - (along(2e-3) - along(-2e-3))) / 12e-3
    tolerance = 1e-4 if estimator is EXACT["reversible"] else 1e-8
    np.testing.assert_allclose(optax.tree.vdot(found, direction), difference, rtol=tolerance)


def counting():
    """Weights that count, per row, how often training has read it."""
    data = hg.Batches({"row": jnp.arange(ROWS)}, SIZE)
    inner = lambda w, h, data, key: -jnp.mean(w[data["row"]]) + 1e-30 * h * jnp.sum(w**2)
    outer = lambda w, h, data, key: jnp.sum(w) * 1e-30 + h**2
    return hg.BilevelProblem(inner, outer, data, jnp.zeros(1)), jnp.zeros(ROWS), jnp.asarray(0.5)


OUTER, COUNT = optax.sgd(1e-3), optax.sgd(float(SIZE))
WARM = {
    "greedy": (hg.GradientSearch(hg.Greedy(hg.OptaxSolver(COUNT, 1)), OUTER), 1),
    "reverse": (hg.GradientSearch(hg.Reverse(hg.OptaxSolver(COUNT, 3), warm_start=True), OUTER), 3),
    "implicit": (
        hg.GradientSearch(hg.Implicit(hg.OptaxSolver(COUNT, 3), hg.CG(1), warm_start=True), OUTER),
        3,
    ),
    "soba": (hg.SOBA(COUNT, optax.sgd(0.1), OUTER), 1),
    "f2sa": (hg.F2SA(COUNT, OUTER, 1.0), 1),
}


@pytest.mark.parametrize(("search", "steps"), some_slow(WARM, "greedy", "reverse", "implicit", "f2sa"))
def test_an_epoch_goes_on_from_one_step_of_a_search_to_the_next(search, steps):
    """Every row of 10 has been read k times after 5 k / 2 updates on batches of 4."""
    problem, params, hparams = counting()
    state = search.init(problem, params, hparams)
    for epochs in (6, 12):
        number = epochs * ROWS // (SIZE * steps)
        stop = lambda state, history, number=number: state.num_steps == number
        state, history = hg.run(search, problem, state, key=laws.KEY, budget=10**6, callback=stop)
        np.testing.assert_allclose(state.model, epochs, rtol=1e-12)
    reads = history.stats.counts.inner_equivalents * SIZE
    np.testing.assert_array_equal(np.asarray(history.stats.counts.rows), reads)


@pytest.mark.slow
def test_a_cold_start_begins_an_epoch_in_another_order():
    problem, params, hparams = counting()
    train = jax.jit(lambda key, t: hg.evaluate(hg.OptaxSolver(COUNT, 5), problem, params, hparams, key).params)
    np.testing.assert_allclose(train(laws.KEY, 5), 2)
    short = lambda key: hg.evaluate(hg.OptaxSolver(COUNT, 1), problem, params, hparams, key).params
    firsts = jax.jit(jax.vmap(short))(jax.random.split(laws.KEY, 400))
    chi2 = np.sum((np.sum(firsts, 0) - 400 * SIZE / ROWS) ** 2) / (400 * SIZE / ROWS)
    assert np.all(np.sum(firsts, 1) == SIZE) and chi2 < 27.9  # 99.9 % of chi-squared with 9 degrees of freedom


@pytest.mark.slow
@pytest.mark.parametrize("size", [3, pytest.param(5, marks=pytest.mark.slow)])
def test_all_rows_in_chunks_are_the_full_data(size):
    """Values, gradients and curvature, with a ragged last chunk and without."""
    all_rows = lambda rows: hg.Batches(rows, min(size, len(rows["y"])), order="all")
    whole, params, hparams = sampled()
    chunks, _, _ = sampled(all_rows, all_rows)
    for estimator in (hg.Reverse(SGD), hg.Implicit(hg.OptaxSolver(optax.sgd(0.2), STEPS), hg.CG(2))):
        found = []
        for problem in (whole, chunks):
            problem = hg.BilevelProblem(quiet_loss, problem.outer_loss, problem.train, problem.valid)
            learned = hparams if isinstance(estimator, hg.Reverse) else {"log_l2": hparams["log_l2"]}
            found.append(hg.value_and_hypergrad(problem, estimator)(learned, params, laws.KEY))
        assert_close(*found)


@pytest.mark.parametrize("key", [jax.random.PRNGKey(5), jax.random.key(5)], ids=["raw", "typed"])
def test_chunks_average_neither_counters_nor_keys_of_layers(key):
    """Every chunk gives the same next counter and key, which a mean in floating numbers would round."""

    def inner_loss(params, hparams, data, _):
        w, (mean, count, key) = params
        mean = 0.5 * mean + 0.5 * jnp.mean(data["x"])
        return jnp.mean((w - data["x"]) ** 2) + hparams * w**2, (mean, count + 1, jax.random.split(key)[0])

    outer_loss = lambda params, hparams, data, key: params[0] ** 2
    x, first = jnp.arange(10.0), 2**24 + 1
    problem = hg.BilevelProblem(inner_loss, outer_loss, hg.Batches({"x": x}, SIZE, order="all"), None)
    start = (jnp.zeros(()), (jnp.zeros(()), jnp.int32(first), key))
    found = hg.evaluate(hg.OptaxSolver(optax.sgd(0.1), 1), problem, start, jnp.asarray(0.1), laws.KEY).params
    mean, count, after = found[1]
    np.testing.assert_allclose(mean, 0.5 * np.mean(x))
    assert count == first + 1
    np.testing.assert_array_equal(jax.random.key_data(after), jax.random.key_data(jax.random.split(key)[0]))


def quiet_loss(w, hparams, data, key):
    return ridge_inner(w, hparams, data | {name: data[name][0] for name in ("scale", "shift")}, key)


@pytest.mark.variants(quick=["1", "None"], slow=["2"])
@pytest.mark.parametrize("num_batches", [1, 2, None])
def test_a_linear_solve_reads_the_same_rows_throughout(num_batches):
    """The curvature of k batches is that of their rows together: distinct ones, and all where there are no more."""
    problem, params, hparams = sampled(lambda rows: hg.Batches(rows, SIZE, num_batches=num_batches))
    problem = hg.BilevelProblem(quiet_loss, outer_loss, problem.train, problem.valid)
    hparams = {"log_l2": hparams["log_l2"]}
    partitioned = hg.OptaxSolver(optax.sgd(0.1), 1).init(problem, params, hparams).partitioned
    matrix_of = jax.jit(lambda key: jax.vmap(hg.curvature.hessian(problem, hparams, partitioned, key))(jnp.eye(3)))
    matrix = matrix_of(laws.KEY)
    x, penalty = np.asarray(problem.train.data["x"]), np.exp(hparams["log_l2"])
    products = np.einsum("ni,nj->nij", x, x)
    rows = ROWS if num_batches is None else num_batches * SIZE
    target = np.ravel((matrix - np.diag(penalty)) * rows)
    if num_batches is None:
        np.testing.assert_allclose(products.sum(0).ravel(), target, rtol=1e-9)
        return
    read = [
        c for c in itertools.combinations(range(ROWS), rows) if np.allclose(products[list(c)].sum(0).ravel(), target)
    ]
    assert len(read) == 1
    assert not np.allclose(matrix, matrix_of(jax.random.key(5)))


@pytest.mark.slow
def test_gauss_newton_averages_products_over_batches():
    outputs = lambda w, hparams, data, key: data["x"] @ w
    loss = lambda z, hparams, data, key: jnp.mean((z - data["y"]) ** 2) / 2
    penalty = lambda w, hparams, data, key: jnp.sum(jnp.exp(hparams["log_l2"]) * w**2) / 2
    case = ridge(num_rows=ROWS)
    hparams, arrays = {"log_l2": case.hparams["log_l2"]}, {name: case.problem.train[name] for name in "xy"}
    found = []
    for train in (hg.Batches(arrays, 3, num_batches=2), hg.Batches(arrays, 3, num_batches=None), arrays):
        problem = hg.BilevelProblem(hg.GaussNewton(outputs, loss, penalty), penalty, train, arrays)
        partitioned = hg.OptaxSolver(optax.sgd(0.1), 1).init(problem, case.params, hparams).partitioned
        for curvature in (hg.curvature.gauss_newton, hg.curvature.hessian):
            found.append(jax.vmap(curvature(problem, hparams, partitioned, laws.KEY))(jnp.eye(3)))
    for one, other in ((0, 1), (2, 3), (2, 4)):  # of linear outputs both are the same matrix
        assert_close(found[one], found[other])
    assert not np.allclose(found[0], found[2])


@pytest.mark.slow
def test_the_best_is_chosen_on_all_rows():
    problem, params, hparams = sampled(valid=lambda rows: hg.Batches(rows, 3))
    search = hg.GradientSearch(hg.Reverse(SGD), optax.sgd(0.5))
    state = search.init(problem, params, hparams)
    state, history = hg.run(search, problem, state, key=laws.KEY, budget=hg.Budget(epochs=60))
    whole = outer_loss(state.best.params, state.best.hparams, problem.valid.data, laws.KEY)
    assert_close(state.best.value, whole)
    assert state.best.value not in history.value and state.spent.evaluations > 0
    assert np.ptp(history.value[:5]) > 0 and history.epochs[-1] >= 60


RESUMED = {
    "greedy": hg.GradientSearch(hg.Greedy(hg.OptaxSolver(optax.adam(0.1), 2)), OUTER),
    "soba": hg.SOBA(optax.sgd(0.1), optax.sgd(0.1), OUTER),
}


@pytest.mark.slow
def test_a_holdout_is_read_whole():
    problem, params, hparams = sampled(lambda rows: hg.Batches(rows, SIZE))
    holdout = hg.Batches(rows_of(ridge(1, num_rows=9).problem.valid), 3)
    search = hg.GradientSearch(hg.Greedy(SGD.with_num_steps(1)), OUTER)
    state = search.init(problem, params, hparams)
    state, history = hg.run(search, problem, state, key=laws.KEY, budget=3, holdout=holdout)
    whole = outer_loss(state.best.params, state.best.hparams, holdout.data, laws.KEY)
    assert_close(state.best.value, whole)
    assert_close(history.stats.diagnostics["holdout"].min(), whole)


@pytest.mark.variants(slow=["soba"])
@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("name", ["greedy", "soba"])
def test_chunks_and_stops_change_nothing(name, tmp_path):
    problem, params, hparams = sampled(lambda rows: hg.Batches(rows, SIZE), lambda rows: hg.Batches(rows, 3))
    hparams = {"log_l2": hparams["log_l2"]}
    go = lambda budget, **options: hg.run(
        RESUMED[name], problem, RESUMED[name].init(problem, params, hparams), key=laws.KEY, budget=budget, **options
    )
    whole = go(24)
    go(8, checkpoint=tmp_path / "run.ckpt")
    for other in (go(24, chunk=5), go(24, chunk=5, checkpoint=tmp_path / "run.ckpt")):
        jax.tree.map(np.testing.assert_array_equal, whole, other)


def test_what_cannot_read_batches_refuses_them():
    problem, params, hparams = sampled(lambda rows: hg.Batches(rows, SIZE))
    learned = {"log_l2": hparams["log_l2"]}
    with pytest.raises(ValueError, match='train changes .* LBFGS carries values on: use order="all"'):
        hg.Implicit(hg.JaxoptSolver(jaxopt.LBFGS, maxiter=3)).init(problem, params, learned)
    with pytest.raises(ValueError, match="train changes from step to step, which MAID cannot bound"):
        hg.MAID(hg.OptaxSolver(optax.sgd(0.1), 3)).init(problem, params, learned)
    saba = hg.SABA(optax.sgd(0.1), optax.sgd(0.1), OUTER, num_batches=5)
    with pytest.raises(TypeError, match="train must be arrays, got Batches: SABA cuts"):
        saba.init(problem, params, learned)
    rows = problem.train.data
    for options, message in (
        ({"size": 11}, "size is 11 but the data have 10 rows"),
        ({"size": 0}, "size must be a positive integer, got 0"),
        ({"size": 2, "order": "random"}, "order must be .* got 'random'"),
        ({"size": 2, "num_batches": 0}, "num_batches must be a positive integer or None, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            hg.Batches(rows, **options)
    with pytest.raises(ValueError, match="same leading axis"):
        hg.Batches(rows | {"x": rows["x"][1:]}, 2)
    with pytest.raises(ValueError, match="train.data.*NaN"):
        hg.BilevelProblem(inner_loss, outer_loss, hg.Batches({"x": np.full(4, np.nan)}, 2), rows)


@pytest.mark.slow
def test_budgets_count_the_rows_that_are_read():
    """Three steps of training with four rows each, and a pullback for each, which counts two gradients."""
    problem, params, hparams = sampled(lambda rows: hg.Batches(rows, SIZE))
    search = hg.GradientSearch(hg.Reverse(SGD.with_num_steps(3)), OUTER)
    state = search.init(problem, params, hparams)
    state, history = hg.run(search, problem, state, key=laws.KEY, budget=hg.Budget(epochs=8), chunk=2)
    np.testing.assert_allclose(history.epochs, 3 * 3 * SIZE / ROWS * np.arange(1, 4))
    assert state.spent.rows == 3 * 3 * 3 * SIZE and state.spent.iterations == 9


@pytest.mark.slow
def test_a_row_index_is_one_more_array():
    """The hypergradient of a weight per example is zero for those that were not read."""
    data = hg.Batches({"x": jnp.arange(1.0, 11.0), "row": jnp.arange(ROWS)}, SIZE)
    inner = lambda w, h, data, key: jnp.mean(h[data["row"]] * (w - data["x"]) ** 2)
    problem = hg.BilevelProblem(inner, lambda w, h, data, key: w**2, data, None)
    estimate = hg.value_and_hypergrad(problem, hg.Reverse(hg.OptaxSolver(optax.sgd(0.1), 2)))
    _, found = estimate(jnp.ones(ROWS), jnp.zeros(()), laws.KEY)
    assert np.count_nonzero(found) == 2 * SIZE
