"""Each estimator against its formula, written out step by step with a loss that is random inside and outside."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypergrad as hg
from hypergrad.estimators.common.trajectory import interpolate, interpolate_cubic
from hypergrad.testing import assert_close, laws
from hypergrad.testing.problems import OPTIMISERS, Case, ridge, ridge_inner, ridge_outer

STEPS = 5
OPTIMISER = OPTIMISERS["adam"]
INNER = hg.OptaxSolver(OPTIMISER, STEPS)


def jittered(data, hparams, key):
    """Input noise of a learnable size."""
    return data | {"x": data["x"] + hparams["unused"] * jax.random.uniform(key, data["x"].shape, data["x"].dtype)}


def noisy_inner(w, hparams, data, key):
    return ridge_inner(w, hparams, jittered(data, hparams, key), key)


def noisy_outer(w, hparams, data, key):
    return ridge_outer(w, hparams, jittered(data, hparams, key), key)


def noisy(seed=0):
    case = ridge(seed)
    problem = hg.BilevelProblem(noisy_inner, noisy_outer, case.problem.train, case.problem.valid)
    return Case(problem, case.params, case.hparams)


def step(case, hparams, state, t):
    """One update of (weights, optimiser state)."""
    return update(case.problem, hparams, state, jnp.int32(t))


@eqx.filter_jit
def update(problem, hparams, state, t):
    w, memory = state
    gradient = jax.grad(problem.inner_loss)(w, hparams, problem.train, jax.random.fold_in(laws.KEY, t))
    updates, memory = OPTIMISER.update(gradient, memory, w)
    return optax.apply_updates(w, updates), memory


def outer(case, w, hparams):
    return outer_loss(case.problem, w, hparams)


@eqx.filter_jit
def outer_loss(problem, w, hparams):
    return problem.outer_loss(w, hparams, problem.valid, jax.random.fold_in(laws.KEY, STEPS))


def path(case):
    """The states before every step, and the last."""
    states = [(case.params, OPTIMISER.init(case.params))]
    for t in range(STEPS):
        states.append(step(case, case.hparams, states[-1], t))
    return states


def back(case, points):
    """c <- A_tᵀ c,  g += B_tᵀ c  over the given (t, state), last first, from ∂F at the end of training."""
    end = path(case)[-1][0]
    by_w, total = jax.grad(lambda w, h: outer(case, w, h), argnums=(0, 1))(end, case.hparams)
    cotangent = None
    for t, state in points:
        arrays, counters = eqx.partition(state, eqx.is_inexact_array)
        phi = lambda a, h, t=t, counters=counters: eqx.filter(
            step(case, h, eqx.combine(a, counters), t), eqx.is_inexact_array
        )
        new, pullback = jax.vjp(phi, arrays, case.hparams)
        if cotangent is None:
            cotangent = (by_w, jax.tree.map(jnp.zeros_like, new[1]))
        cotangent, by_hparams = pullback(cotangent)
        total = jax.tree.map(jnp.add, total, by_hparams)
    return total


@pytest.mark.variants(slow=["3", "1"])
@pytest.mark.parametrize("horizon", [1, 3])
def test_reverse_looks_back_over_its_horizon(horizon):
    case = noisy()
    last = list(enumerate(path(case)[:-1]))[-horizon:]
    found = laws.answer(hg.Reverse(INNER, horizon=horizon), case)[1]
    assert_close(found, back(case, reversed(last)), "gradient")


def test_the_line_is_as_fine_as_its_ends():
    found = interpolate(jnp.float64(0), jnp.float64(1), jnp.int32(1), jnp.int32(3))
    assert_close(found, np.float64(1 / 3))


def test_counters_and_flags_are_not_interpolated():
    for first, last in ((jnp.int32(0), jnp.int32(60_000)), (jnp.bool_(False), jnp.bool_(True))):
        assert interpolate(first, last, jnp.int32(50_000), jnp.int32(60_000)) == first


@pytest.mark.variants(slow=["knots0", "knots1"])
@pytest.mark.parametrize("knots", [(0, 5), (0, 2, 5), (0, 1, 3, 5)])
def test_drmad_goes_back_along_its_lines(knots):
    case = noisy()
    states, points = path(case), []
    for a, b in itertools.pairwise(knots):
        for t in range(a, b):
            share = (t - a) / (b - a)
            line = lambda left, right, share=share: left + (share * (right - left)).astype(left.dtype)
            points.append((t, jax.tree.map(line, states[a], states[b])))
    found = laws.answer(hg.DrMAD(INNER, knots=len(knots) - 1), case)[1]
    assert_close(found, back(case, reversed(points)), "gradient")


@pytest.mark.variants(slow=["0.7", "0.0"])
@pytest.mark.parametrize("decay", [0.0, 0.7, 1.0])
def test_greedy_is_its_sum(decay):
    case, states = noisy(), path(noisy())
    found = laws.answer(hg.Greedy(INNER, decay=decay), case)[1]
    expected = jax.grad(lambda h: outer(case, states[-1][0], h))(case.hparams)
    for t in range(STEPS):
        one = jax.grad(lambda h, t=t: outer(case, step(case, h, states[t], t)[0], case.hparams))(case.hparams)
        weight = decay ** (STEPS - 1 - t)
        expected = jax.tree.map(lambda total, g, weight=weight: total + weight * g, expected, one)
    assert_close(found, expected, "gradient")


@pytest.mark.variants(quick=["HOAG"], slow=["Implicit"])
@pytest.mark.parametrize("make", [hg.Implicit, hg.HOAG])
def test_implicit_is_a_dense_solve_at_the_end_of_training(make):
    case = noisy()
    w, key = path(case)[-1][0], jax.random.fold_in(laws.KEY, STEPS + 1)
    gradient = lambda w, h: jax.grad(case.problem.inner_loss)(w, h, case.problem.train, key)
    by_w, direct = jax.grad(lambda w, h: outer(case, w, h), argnums=(0, 1))(w, case.hparams)
    v = jnp.linalg.solve(jax.jacobian(gradient)(w, case.hparams), by_w)
    mixed = jax.vjp(lambda h: gradient(w, h), case.hparams)[1](v)[0]
    found = laws.answer(make(INNER, hg.CG(6, rtol=1e-14)), case)[1]
    assert_close(found, jax.tree.map(jnp.subtract, direct, mixed), "gradient")


WARMTH = {
    "reverse": hg.Reverse,
    "drmad": hg.DrMAD,
    "greedy": hg.Greedy,
    "implicit": lambda inner, warm_start: hg.Implicit(inner, warm_start=warm_start),
}


@pytest.mark.variants(quick=["*-reverse", "True-implicit"], slow=["*-drmad", "*-greedy"])
@pytest.mark.parametrize("make", WARMTH.values(), ids=WARMTH)
@pytest.mark.parametrize("warm", [False, True])
def test_a_warm_start_goes_on_and_a_cold_one_begins_again(make, warm):
    case, estimator = ridge(), make(INNER, warm_start=warm)
    state = estimator.init(case.problem, case.params, case.hparams)
    estimate, state = estimator.step(case.problem, case.hparams, state, laws.KEY)
    again, state = estimator.step(case.problem, case.hparams, state, laws.KEY)
    assert bool(jnp.all(again.params == estimate.params)) is not warm
    twice = hg.OptaxSolver(OPTIMISER, 2 * STEPS)
    expected = hg.evaluate(twice if warm else INNER, case.problem, case.params, case.hparams, laws.KEY)
    assert_close(again.params, expected.params)
    assert_close(state.params, expected.params if warm else case.params)


def test_hoag_starts_warm_and_measures_against_the_first_gradient():
    case, inner = ridge(), hg.OptaxSolver(optax.sgd(0.3), 2000)
    estimator = hg.HOAG(inner, hg.CG(10, rtol=0.0), schedule=hg.tolerances.exponential(1e-4, 0.1))
    first = jnp.linalg.norm(jax.grad(ridge_inner)(case.params, case.hparams, case.problem.train, laws.KEY))
    state = estimator.init(case.problem, case.params, case.hparams)
    for k, tolerance in enumerate((1e-4, 1e-5, 1e-6)):
        before, (estimate, state) = state, estimator.step(case.problem, case.hparams, state, laws.KEY)
        stats, params = estimate.stats, estimate.params
        # optax computes schedules in float32
        np.testing.assert_allclose(stats.diagnostics["rtol"], tolerance, rtol=1e-6)
        assert stats.diagnostics["inner_gradient_norm"] <= 1.001 * tolerance * first
        assert stats.residual <= 1.001 * tolerance
        previous = jax.grad(ridge_inner)(before.params, case.hparams, case.problem.train, laws.KEY)
        assert k == 0 or jnp.linalg.norm(previous) <= 10 * tolerance * first
        assert k == 0 or stats.counts.iterations < 200
        assert_close(state.params, params)
    exact_again, _ = estimator.step(case.problem, case.hparams, state, laws.KEY)
    assert exact_again.stats.counts.hvps <= estimate.stats.counts.hvps


def test_a_cubic_is_exact_on_cubics_and_stays_in_range():
    path = lambda t: t**3 - 4 * t**2 + 30 * t  # rises all the way
    for length in (2, 3, 7):
        points = tuple(jnp.float64(path(t)) for t in (0, 1, length, length + 1))
        for place in range(length + 1):
            found = interpolate_cubic(points, jnp.int32(place), jnp.int32(length))
            assert_close(found, np.float64(path(place)))
    bump = tuple(map(jnp.float64, (0.0, 5.0, 5.0, 0.0)))
    assert interpolate_cubic(bump, jnp.int32(3), jnp.int32(6)) == 5
    assert interpolate_cubic(bump, jnp.int32(0), jnp.int32(1)) == 0
    counters = tuple(map(jnp.int32, (10, 11, 17, 18)))
    assert interpolate_cubic(counters, jnp.int32(4), jnp.int32(7)) == 10  # DrMAD puts the exact ones in their place


@pytest.mark.variants(slow=["Reverse", "<lambda>"])
@pytest.mark.parametrize("make", [hg.Reverse, lambda inner, **o: hg.DrMAD(inner, knots=STEPS, **o)])
def test_storage_rounds_the_path_alone(make):
    case = noisy()
    exact, rounded = (laws.answer(make(INNER, storage=kind), case)[1]["log_l2"] for kind in (None, jnp.float32))
    error = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
    assert rounded.dtype == exact.dtype == jnp.float64 and 0 < error < 1e-5
    with pytest.raises(TypeError, match="storage"):
        make(INNER, storage=jnp.int8)


def test_one_step_computes_no_more_than_greedy_does():
    """Operations and memory as XLA counts them. A sweep over one step has twice as many operations."""
    case = ridge(num_features=200)
    inner = hg.OptaxSolver(optax.sgd(0.1, 0.9), 1)

    def cost(estimator):
        step = lambda train, hparams, state: estimator.step(case.replace(train).problem, hparams, state, laws.KEY)
        state = estimator.init(case.problem, case.params, case.hparams)
        compiled = jax.jit(step).lower(case.problem.train, case.hparams, state).compile()
        return compiled.cost_analysis()["flops"], compiled.memory_analysis().temp_size_in_bytes

    assert cost(hg.OneStep(inner, check=None)) <= cost(hg.Greedy(inner, warm_start=False, check=None))
