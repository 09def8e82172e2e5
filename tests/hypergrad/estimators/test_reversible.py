"""Training run backwards: to the last bit in integers, to a measured error in floating point."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hypergrad as hg
from hypergrad.estimators.common.adjoint import start_adjoint
from hypergrad.estimators.reversible import integers as fixed_point
from hypergrad.estimators.reversible.motion import ExactMotion
from hypergrad.testing import assert_close, laws, loosened
from hypergrad.testing.problems import Case, net, ridge


def solver(num_steps, momentum=0.9, rate=0.1):
    return hg.OptaxSolver(hg.MomentumSGD(rate * (1 - momentum), momentum), num_steps)


def estimate(estimator, case):
    state = estimator.init(case.problem, case.params, case.hparams)
    return estimator.step(case.problem, case.hparams, state, laws.KEY)[0]


@given(
    fixed=st.integers(-(2**61), 2**61),
    bits=st.integers(0, 2**40),
    factor=st.floats(0.05, 0.999),
)
def test_multiplication_is_right_and_can_be_undone(fixed, bits, factor):
    n, d = fixed_point.ratio(factor)
    product, more = fixed_point.multiply(jnp.int64(fixed), jnp.int64(bits), n, d)
    assert int(product) == fixed * int(n) // int(d)
    assert abs(int(n) / int(d) - factor) < 1e-15
    back, again = fixed_point.divide(product, more, n, d)
    assert (int(back), int(again)) == (fixed, bits)


@pytest.mark.slow
@given(
    fixed=st.lists(st.integers(-(2**20), 2**20), min_size=1, max_size=4), factor=st.sampled_from((0.3, 0.5, 0.9, 0.98))
)
def test_a_word_holds_what_a_stretch_loses(fixed, factor):
    """A number that rests fills it fastest."""
    ratio, start = fixed_point.ratio(factor), jnp.array(fixed)
    steps = fixed_point.products_per_word(factor)
    go = lambda operation: lambda _, carry: operation(*carry, *ratio)
    there = jax.lax.fori_loop(0, steps, go(fixed_point.multiply), (start, jnp.zeros_like(start)))
    back = jax.lax.fori_loop(0, steps, go(fixed_point.divide), there)
    np.testing.assert_array_equal(back[0], start)
    assert not np.any(back[1])


@pytest.mark.variants(slow=["ridge-0.9", "net-0.9"])
@pytest.mark.parametrize(("make", "momentum"), [(ridge, 0.5), (ridge, 0.9), (net, 0.9), (ridge, 0.98)])
def test_a_thousand_steps_are_recovered_to_the_last_bit(make, momentum, optimised):
    case, inner = make(), solver(1000, momentum)
    found = estimate(hg.Reversible(inner, exact=True), case)
    if jax.default_backend() != "cpu" and found.stats.diagnostics["reversal_error"]:
        assert found.stats.status == hg.Status.IRREVERSIBLE  # gradients with other bits the second time
        return
    assert found.stats.diagnostics["reversal_error"] == 0 and found.stats.status == hg.Status.OK
    assert_close(found.hypergradient, estimate(hg.Reverse(inner), case).hypergradient, "gradient")

    @jax.jit
    def there_and_back(first):
        training = hg.Training(inner, case.problem, case.hparams, laws.KEY)
        motion = ExactMotion.fitting(training, first, 0.5)
        stretches = jnp.arange(960, dtype=jnp.int32).reshape(16, 60)
        end, bits = jax.lax.scan(lambda *at: motion.forwards(*at), motion.start(), stretches)
        _, adjoint = start_adjoint(training, first)
        back = lambda carry, at: (motion.backwards(*carry, *at)[:2], None)
        return motion.start(), end, jax.lax.scan(back, (end, adjoint), (stretches, bits), reverse=True)[0][0]

    start, end, again = there_and_back(inner.init(case.problem, case.params, case.hparams))
    for before, after, recovered in zip(*map(jax.tree.leaves, (start, end, again)), strict=True):
        assert before.dtype == jnp.int64
        np.testing.assert_array_equal(recovered, before)
        assert np.any(after != before)


@pytest.mark.slow
def test_the_exact_reversal_keeps_one_word_per_weight_and_61_steps():
    """One word of bits per weight and 61 steps; the stored path has a number per weight and step (no derivative needs
    the velocities of a constant momentum). The sizes of the adjoint, a number per step and device, are left out."""
    case = ridge(num_features=500, num_rows=10)

    def memory(estimator):
        state = estimator.init(case.problem, case.params, case.hparams)
        step = jax.jit(lambda h, s: estimator.step(case.problem, h, s, laws.KEY))
        return step.lower(case.hparams, state).compile().memory_analysis().temp_size_in_bytes

    sizes = jax.device_count() / 500
    more = lambda make: (memory(make(solver(2440))) - memory(make(solver(1220)))) / (1220 * 500 * 8) - sizes
    assert 0.9 < more(hg.Reverse) < 1.1
    assert more(lambda inner: hg.Reversible(inner, exact=True)) < 1.1 / 61
    assert more(lambda inner: hg.Reversible(inner)) < 2.2 / 250
    assert more(lambda inner: hg.Reversible(inner, exact=True, checkpoints="sqrt")) < 0.6 / 61


@pytest.mark.variants(quick=["False"], slow=["True"])
@pytest.mark.parametrize("exact", [False, True])
def test_stretches_in_groups_change_nothing_but_the_work(exact):
    """Four of five stretches and a shorter one are walked again."""
    case, length = ridge(), 61 if exact else 12
    inner = solver(5 * length + 3, 0.5)
    every, some = (
        estimate(hg.Reversible(inner, exact=exact, rtol=1e-12, checkpoints=kept, check=None), case)
        for kept in (None, "sqrt")
    )
    assert_close(some.hypergradient, every.hypergradient)
    assert some.value == every.value and some.stats.status == hg.Status.OK
    assert some.stats.counts.inner_gradients - every.stats.counts.inner_gradients == 4 * length


@pytest.mark.slow
def test_reversal_in_floating_point_says_how_good_it_is():
    case, inner = net(), solver(400)
    right = estimate(hg.Reverse(inner), case).hypergradient
    for tol in (1e-10, 1e-3):
        found = estimate(hg.Reversible(inner, rtol=tol), case)
        assert found.stats.status == hg.Status.OK
        assert found.stats.diagnostics["reversal_error"] < 10 * tol
        for a, b in zip(*map(jax.tree.leaves, (found.hypergradient, right)), strict=True):
            np.testing.assert_allclose(a, b, rtol=tol)


@pytest.mark.slow
def test_too_long_a_way_back_is_flagged():
    """The error outgrows its limit with a momentum below what was promised; in integers bits are left over."""
    case = ridge()
    inner = hg.OptaxSolver(hg.MomentumSGD(0.05, lambda hparams, t: 0.3), 200)
    for exact in (False, True):
        found = estimate(hg.Reversible(inner, exact=exact, min_momentum=0.9), case)
        assert found.stats.status & hg.Status.IRREVERSIBLE


@pytest.mark.slow
def test_momentum_sgd_is_optax_sgd():
    case = net()
    ours, optaxs = solver(7), hg.OptaxSolver(optax.sgd(0.1 * (1 - 0.9), 0.9), 7)
    assert_close(*(estimate(hg.Reverse(inner), case).hypergradient for inner in (ours, optaxs)))


@pytest.mark.variants(slow=["True-True", "False-False", "True-False"])
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("warm", [False, True])
def test_schedules_and_rates_per_part_can_be_learned(exact, warm):
    """Hypergradients of a learning rate per step and leaf and of a momentum, also when training goes on."""
    case = ridge()
    hparams = case.hparams | {"log_lr": jnp.linspace(-3.0, -2.0, 12), "momentum": jnp.asarray(0.8)}
    optimiser = hg.MomentumSGD(lambda h, t: jnp.exp(h["log_lr"][t]), lambda h, t: h["momentum"])
    inner = hg.OptaxSolver(optimiser, 6)
    pair = (
        hg.Reverse(inner, warm_start=warm),
        hg.Reversible(inner, exact=exact, rtol=1e-12, min_momentum=0.5, warm_start=warm),
    )
    states = [e.init(case.problem, case.params, hparams) for e in pair]
    for k in range(2):
        results = [
            e.step(case.problem, hparams, s, jax.random.fold_in(laws.KEY, k)) for e, s in zip(pair, states, strict=True)
        ]
        (right, _), (found, _) = results
        states = [state for _, state in results]
        assert jnp.any(right.hypergradient["log_lr"] != 0) and right.hypergradient["momentum"] != 0
        # a momentum that is traced is right to 2⁻³²
        with loosened(10 if exact else 1):
            assert_close(found.hypergradient, right.hypergradient, "gradient")
        assert_close(states[1].params, states[0].params, "gradient")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hg.Reversible(hg.OptaxSolver(optax.sgd(0.1, 0.9), 3)), "MomentumSGD"),
        (lambda: hg.Reversible(solver(3, 0.0)), "momentum must be above 0"),
        (lambda: hg.Reversible(solver(3), rtol=2.0), "rtol"),
        (lambda: hg.Reversible(solver(3), checkpoints="binomial"), "checkpoints"),
        (lambda: hg.MomentumSGD(-0.1), "learning_rate"),
        (lambda: hg.MomentumSGD(0.1, 1.0), "momentum"),
        (lambda: hg.Reversible(hg.OptaxSolver(hg.MomentumSGD(0.1, lambda h, t: 0.9), 3)), "min_momentum"),
    ],
)
def test_options_that_cannot_work_are_named(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_integers_need_64_bits():
    case = ridge()
    with jax.enable_x64(False), pytest.raises(ValueError, match="jax_enable_x64"):
        hg.Reversible(solver(3), exact=True).init(case.problem, case.params, case.hparams)


@pytest.mark.parametrize("target", [1e2, 1e4, 1e7])
def test_integers_fit_the_size_of_the_numbers(target):
    """Weights, velocities and gradients far above 2¹¹: the unit of the integers follows."""
    data = {"t": np.full(3, target)}
    inner = lambda w, h, data, key: jnp.sum(jnp.exp(h) * (w - data["t"]) ** 2) / 2
    outer = lambda w, h, data, key: jnp.mean((w - 1.1 * data["t"]) ** 2) / 2
    case = Case(hg.BilevelProblem(inner, outer, data, data), jnp.zeros(3), jnp.array([0.0, -1.0, -2.0]))
    solver = hg.OptaxSolver(hg.MomentumSGD(0.1, 0.9), 60)
    laws.agree(hg.Reversible(solver, exact=True), hg.Reverse(solver), case)


def test_numbers_that_outgrow_the_integers_are_flagged():
    """Training that diverges leaves the range that the first gradient promised."""
    loss = lambda w, h, data, key: jnp.sum((w - data["t"]) ** 4) * jnp.exp(h) / 4
    data = {"t": np.full(2, 10.0)}
    problem = hg.BilevelProblem(loss, loss, data, data)
    estimator = hg.Reversible(hg.OptaxSolver(hg.MomentumSGD(0.014, 0.9), 6), exact=True)
    state = estimator.init(problem, jnp.zeros(2), jnp.asarray(0.0))
    estimate, _ = estimator.step(problem, jnp.asarray(0.0), state, laws.KEY)
    assert hg.Status(int(estimate.stats.status)) & hg.Status.IRREVERSIBLE


@pytest.mark.slow
def test_an_empty_array_among_the_weights_changes_nothing():
    case, estimator = ridge(), hg.Reversible(solver(5), exact=True)
    first = lambda loss: lambda params, *args: loss(params[0], *args)
    losses = first(case.problem.inner_loss), first(case.problem.outer_loss)
    problem = hg.BilevelProblem(*losses, case.problem.train, case.problem.valid)
    found = estimate(estimator, Case(problem, (case.params, jnp.zeros((0, 2))), case.hparams))
    assert_close(found.hypergradient, estimate(estimator, case).hypergradient)
