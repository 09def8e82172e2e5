"""Inner solvers, minibatches, models of any make."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hypergrad as hg
from hypergrad.data.order import divmod_of_product, epoch_rows, new_order
from hypergrad.testing import assert_close, laws, loosened
from hypergrad.testing.problems import OPTIMISERS, net, ridge


def test_minibatches_are_uniform_and_aligned():
    data = {"x": jnp.arange(20.0)[:, None], "y": jnp.arange(20)}
    batches = jax.vmap(lambda key: hg.minibatch(key, data, 5))(jax.random.split(laws.KEY, 2000))
    np.testing.assert_array_equal(batches["x"][..., 0], batches["y"])
    counts = np.bincount(np.ravel(batches["y"]), minlength=20)
    chi2 = np.sum((counts - 500) ** 2 / 500)
    assert chi2 < 43.8  # 99.9 % of chi-squared with 19 degrees of freedom


@pytest.mark.variants(quick=["4", "7"], slow=["1"])
@pytest.mark.parametrize("size", [1, 4, 7, 10])
def test_every_row_comes_once_per_epoch(size):
    data = {"x": jnp.arange(10.0)[:, None], "y": jnp.arange(10)}
    batch = jax.jit(lambda t: hg.epoch_batch(laws.KEY, t, data, size))
    batches = jax.jit(jax.vmap(batch))(jnp.arange(30))
    np.testing.assert_array_equal(batches["x"][..., 0], batches["y"])
    epochs = np.ravel(batches["y"])[: 30 * size // 10 * 10].reshape(-1, 10)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(10), (len(epochs), 1)))
    assert len({tuple(epoch) for epoch in epochs}) > len(epochs) / 2
    late = batch(jnp.int32(2**31 - 1))["y"]
    assert len(set(late.tolist())) >= size // 2


def test_epochs_are_whole_beyond_32_bits_of_rows():
    rows, size, first = 70_001, 65_536, 40_000  # 2.6 billion rows have been drawn
    batch = jax.jit(lambda t: hg.epoch_batch(laws.KEY, t, jnp.arange(rows), size))
    drawn = np.concatenate([batch(first + k) for k in range(4)])
    begin = -first * size % rows
    for start in range(begin, len(drawn) - rows, rows):
        assert len(np.unique(drawn[start : start + rows])) == rows
    epoch, order = (first * size + begin) // rows, new_order(laws.KEY)
    # The same epoch read in one batch of all rows, whose number is that of the epoch.
    np.testing.assert_array_equal(drawn[begin : begin + rows], epoch_rows(order, epoch, rows, rows))


@pytest.mark.slow
@given(t=st.integers(0, 2**31 - 1), rows=st.integers(1, 300), key=st.integers(0, 2**31 - 1))
def test_an_epoch_is_a_permutation_of_any_number_of_rows(t, rows, key):
    order = new_order(jax.random.key(key))
    drawn = jax.jit(lambda order, t: epoch_rows(order, t, rows, rows))(order, jnp.uint32(t))
    np.testing.assert_array_equal(np.sort(drawn), np.arange(rows))


@pytest.mark.variants(quick=["5", "8"], slow=["17"])
@pytest.mark.parametrize("rows", [3, 5, 8, 17])
def test_every_pair_of_rows_is_equally_likely_to_come_first(rows):
    """The counts are of 20,000 orders, and of as many epochs of one order."""
    number = 20_000
    words = jax.jit(jax.vmap(new_order))(jax.random.split(laws.KEY, number))
    draw = jax.jit(jax.vmap(lambda order, t: epoch_rows(order, t, rows, rows)))
    keys = draw(words, jnp.zeros(number, jnp.uint32))
    epochs = draw(jnp.broadcast_to(words[0], words.shape), jnp.arange(number, dtype=jnp.uint32))
    for drawn in (keys, epochs):
        table = np.zeros((rows, rows))
        np.add.at(table, (drawn[:, 0], drawn[:, 1]), 1)
        expected = number / (rows * (rows - 1))
        chi2 = np.sum((table[~np.eye(rows, dtype=bool)] - expected) ** 2) / expected
        freedom = rows * (rows - 1) - 1
        assert chi2 < freedom + 4 * np.sqrt(2 * freedom), chi2


@given(t=st.integers(0, 2**31 - 1), rows=st.integers(1, 2**31 - 1), share=st.floats(0, 1))
def test_the_place_in_the_stream_is_exact(t, rows, share):
    size = max(1, int(share * rows))
    found = divmod_of_product(jnp.uint32(t), size, rows)
    assert tuple(map(int, found)) == divmod(t * size, rows)


SOLVERS = {
    "gradient descent": hg.JaxoptSolver(jaxopt.GradientDescent, maxiter=5, stepsize=0.3),
    "gradient descent, line search": hg.JaxoptSolver(jaxopt.GradientDescent, maxiter=4, acceleration=False),
    "lbfgs": hg.JaxoptSolver(jaxopt.LBFGS, maxiter=3, linesearch="backtracking"),
    "polyak": hg.JaxoptSolver(jaxopt.PolyakSGD, maxiter=4, max_stepsize=0.3),
    "proximal": hg.JaxoptSolver(
        jaxopt.ProximalGradient,
        prox=lambda w, hparams, scaling: w / (1 + scaling * jnp.exp(hparams["log_l2"])),
        maxiter=5,
        stepsize=0.3,
    ),
}


@pytest.mark.variants(quick=["gradient descent", "polyak", "proximal"], slow=["lbfgs", "gradient descent, line search"])
@pytest.mark.parametrize("inner", SOLVERS.values(), ids=SOLVERS)
def test_reverse_through_jaxopt_solvers(inner):
    laws.finite_differences(hg.Reverse(inner), ridge())


@pytest.mark.variants(quick=["GradientDescent", "ArmijoSGD"], slow=["LBFGS"])
@pytest.mark.parametrize(
    "solver", [jaxopt.LBFGS, jaxopt.BFGS, jaxopt.NonlinearCG, jaxopt.ArmijoSGD, jaxopt.GradientDescent]
)
def test_implicit_with_jaxopt_solvers(solver):
    inner = hg.JaxoptSolver(solver, maxiter=300)
    with loosened(1e3):  # a gradient norm of 1e-12 is out of reach of some line searches
        laws.closed_form(hg.Implicit(inner, hg.CG(10, rtol=1e-14), atol=1e-12), ridge())


@pytest.mark.slow
@pytest.mark.row(42)
def test_unrolling_past_convergence_is_flagged():
    estimator, case = hg.Reverse(hg.JaxoptSolver(jaxopt.LBFGS, maxiter=30, linesearch="backtracking")), ridge()
    state = estimator.init(case.problem, case.params, case.hparams)
    estimate, _ = estimator.step(case.problem, case.hparams, state, laws.KEY)
    assert jnp.isfinite(estimate.value)
    assert hg.Status(int(estimate.stats.status)) == hg.Status.NONFINITE


def test_a_solve_stops_at_its_tolerance():
    case, inner = ridge(), hg.OptaxSolver(optax.sgd(0.3), 2000)
    state = inner.init(case.problem, case.params, case.hparams)
    end, stats = inner.solve(case.problem, case.hparams, state, laws.KEY, 1e-3)
    gradient = jax.grad(case.problem.inner_loss)(end.params, case.hparams, case.problem.train, laws.KEY)
    assert jnp.linalg.norm(gradient) <= 1e-3 and 1 < stats.iterations < 2000
    end, stats = inner.solve(case.problem, case.hparams, state, laws.KEY)
    assert stats.iterations == stats.gradients == 2000


@pytest.mark.variants(slow=["LBFGS"])
@pytest.mark.parametrize("solver", [jaxopt.LBFGS, jaxopt.BFGS])
def test_a_warm_start_sees_the_hyperparameters_it_starts_at(solver):
    case, inner = ridge(), hg.JaxoptSolver(solver, maxiter=300)
    before, after = case.hparams, jax.tree.map(lambda leaf: leaf + 0.1, case.hparams)
    state, _ = inner.solve(case.problem, before, inner.init(case.problem, case.params, before), laws.KEY, 1e-8)
    resumed = inner.resume(case.problem, after, state)
    gradient = jax.grad(case.problem.inner_loss)(state.params, after, case.problem.train, laws.KEY)
    assert_close(resumed.solver.grad, gradient)
    assert jnp.linalg.norm(state.solver.grad - gradient) > 1e-3
    for make in (hg.HOAG, lambda inner: hg.Implicit(inner, atol=1e-6, warm_start=True)):
        estimator = make(inner)
        state = estimator.init(case.problem, case.params, before)
        for hparams in (before, after):
            estimate, state = estimator.step(case.problem, hparams, state, laws.KEY)
        assert estimate.stats.counts.inner_gradients <= 25  # a line search that fails takes more than 30


class Odd(eqx.Module):
    """Arrays, integers, a function, a text and a frozen table."""

    weight: jax.Array
    table: jax.Array
    power: int
    activation: object
    name: str

    def __call__(self, x):
        return self.activation(x @ self.weight) ** self.power + 0.0 * self.table.sum()


@pytest.mark.slow
def test_models_of_any_make_go_in_whole():
    model = Odd(jnp.ones(2), jnp.arange(3), 2, jnp.tanh, "odd")
    loss = lambda model, h, data, key: jnp.mean((model(data["x"]) - data["y"]) ** 2) + jnp.exp(h) * model.weight[0] ** 2
    data = {"x": np.ones((4, 2)) * np.arange(4)[:, None] / 4, "y": np.arange(4.0) / 8}
    problem = hg.BilevelProblem(loss, loss, data, data)
    for make in (hg.Reverse, hg.DrMAD, hg.Greedy, hg.Implicit, hg.HOAG):
        estimator = make(hg.OptaxSolver(OPTIMISERS["adam"], 3))
        estimate, state = estimator.step(
            problem, jnp.asarray(-1.0), estimator.init(problem, model, jnp.asarray(-1.0)), laws.KEY
        )
        trained = estimate.params
        assert type(trained) is Odd and trained.activation is jnp.tanh and trained.name == "odd"
        np.testing.assert_array_equal(trained.table, model.table)
        assert not jnp.array_equal(trained.weight, model.weight)
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))


@pytest.mark.slow
def test_dropout_is_replayed():
    model = eqx.nn.Sequential(
        [eqx.nn.Linear(2, 8, key=laws.KEY), eqx.nn.Dropout(0.5), eqx.nn.Linear(8, "scalar", key=laws.KEY)]
    )

    def loss(model, hparams, data, key):
        keys = jax.random.split(key, len(data["x"]))
        fit = jnp.mean((jax.vmap(lambda x, k: model(x, key=k))(data["x"], keys) - data["y"]) ** 2)
        return fit + jnp.exp(hparams["log_l2"]) * sum(jnp.sum(w**2) for w in jax.tree.leaves(model) if eqx.is_array(w))

    case = net()
    problem = hg.BilevelProblem(loss, loss, case.problem.train, case.problem.valid)
    fresh = type(case)(problem, model, {"log_l2": jnp.asarray(-2.0)})
    laws.finite_differences(hg.Reverse(hg.OptaxSolver(OPTIMISERS["momentum"], 5)), fresh)
    one = laws.answer(hg.Reverse(hg.OptaxSolver(OPTIMISERS["momentum"], 5)), fresh, jax.random.key(1))
    other = laws.answer(hg.Reverse(hg.OptaxSolver(OPTIMISERS["momentum"], 5)), fresh, jax.random.key(2))
    assert one[0] != other[0]


@pytest.mark.row(14)
@pytest.mark.variants(quick=["Reverse", "Implicit"], slow=["DrMAD", "HOAG"])
@pytest.mark.parametrize("make", [hg.Reverse, hg.DrMAD, hg.Greedy, hg.Implicit, hg.HOAG])
def test_float32_is_near_float64(make):
    case = ridge()
    estimator = make(hg.OptaxSolver(OPTIMISERS["momentum"], 5))
    expected = laws.answer(estimator, case)
    single = lambda tree: jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)
    with jax.enable_x64(False):
        problem = hg.BilevelProblem(
            case.problem.inner_loss,
            case.problem.outer_loss,
            {k: np.float32(v) for k, v in case.problem.train.items()},
            {k: np.float32(v) for k, v in case.problem.valid.items()},
        )
        found = laws.answer(estimator, type(case)(problem, single(case.params), single(case.hparams)))
    assert found[0].dtype == jnp.float32
    assert_close(found, expected, "gradient")


def temporary_bytes(estimator, case):
    state = estimator.init(case.problem, case.params, case.hparams)
    step = eqx.filter_jit(lambda hparams: estimator.step(case.problem, hparams, state, laws.KEY)[0].hypergradient)
    return step.lower(case.hparams).compile().compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.variants(quick=["Reverse"], slow=["<lambda>"])
@pytest.mark.parametrize("make", [hg.Reverse, lambda inner: hg.DrMAD(inner, knots=4)])
def test_memory_does_not_grow_with_steps_times_data(make):
    rows, features, steps = 4000, 20, 50
    estimator = make(hg.OptaxSolver(OPTIMISERS["momentum"], steps))
    small, large = (temporary_bytes(estimator, ridge(0, features, n)) for n in (rows, 2 * rows))
    one_copy_per_step = steps * rows * features * 8
    assert large - small < one_copy_per_step / 20
