"""The measured error of a hypergradient: right where it can be checked, and what follows from it."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import optax
import pytest

import hypergrad as hg
from experiments.benchmarks.problems import PROBLEMS
from experiments.common.data import digits
from hypergrad.estimators.common import trajectory
from hypergrad.estimators.common.adjoint import Adjoint, stats_of
from hypergrad.testing import laws, problems
from hypergrad.testing.changes import in_single_precision
from hypergrad.testing.tolerances import flat, relative_error

from tests.helpers import digits_inner, digits_outer

STEPS = 12
MOMENTUM = hg.OptaxSolver(optax.sgd(0.1, 0.9), STEPS)
APPROXIMATE = {
    "line": hg.DrMAD(MOMENTUM),
    "greedy": hg.Greedy(MOMENTUM, warm_start=False),
    "online": hg.Greedy(MOMENTUM),
    "horizon": hg.Reverse(MOMENTUM, horizon=4),
    "half precision": hg.Reverse(MOMENTUM, storage=jnp.bfloat16),
    "one step": hg.OneStep(MOMENTUM, warm_start=True),
    "backwards": hg.Reversible(hg.OptaxSolver(hg.MomentumSGD(0.1, 0.5), 40), rtol=0.5),
}


@pytest.mark.variants(quick=["online"], slow=["greedy", "line"])
@pytest.mark.parametrize("name", APPROXIMATE)
def test_with_few_hyperparameters_the_measured_error_is_the_error(name):
    estimator, case = APPROXIMATE[name], problems.net()
    estimate, _ = laws.first_step(estimator, case)
    _, exact = laws.answer(hg.Reverse(estimator.inner), case)
    found = estimate.stats.diagnostics
    g, p = flat(exact), flat(estimate.hypergradient)
    assert found["relative_error"] == pytest.approx(relative_error(estimate.hypergradient, exact), rel=1e-5, abs=1e-9)
    assert found["cosine"] == pytest.approx(g @ p / np.linalg.norm(g) / np.linalg.norm(p), rel=1e-9)
    flagged = bool(hg.Status(int(estimate.stats.status)) & hg.Status.INACCURATE)
    assert flagged == bool(found["relative_error"] > 0.2)


@pytest.mark.slow
def test_exact_estimators_measure_nothing():
    case = problems.net()
    for estimator in (
        hg.Reverse(MOMENTUM),
        hg.DrMAD(MOMENTUM, knots=STEPS),
        hg.DrMAD(MOMENTUM, knots=STEPS // 2, cubic=True),
        hg.Greedy(hg.OptaxSolver(optax.sgd(0.1), 1)),
        hg.DrMAD(MOMENTUM, check=None),
    ):
        stats = laws.first_step(estimator, case)[0].stats
        assert "relative_error" not in stats.diagnostics and stats.counts.hvps == 0


@pytest.mark.slow
def test_it_is_measured_every_so_often_and_counted():
    case, estimator = problems.net(), hg.DrMAD(MOMENTUM, check=hg.ErrorCheck(directions=3, every=2))
    state, errors, hvps = estimator.init(case.problem, case.params, case.hparams), [], []
    hparams = case.hparams
    for k in range(4):
        estimate, state = estimator.step(case.problem, hparams, state, jax.random.fold_in(laws.KEY, k))
        errors.append(float(estimate.stats.diagnostics["relative_error"]))
        hvps.append(int(estimate.stats.counts.hvps))
        hparams = jax.tree.map(lambda h: h + 0.1, hparams)
    assert hvps == [4 * STEPS, 0, 4 * STEPS, 0]
    assert errors[0] == errors[1] != errors[2] == errors[3]


@pytest.mark.parametrize("scale", [2.0**-90, 2.0**90])
def test_the_measured_error_has_no_unit(scale):
    """The squares of the hypergradient would be zero or infinite in float32."""
    case, estimator = in_single_precision(problems.ridge()), hg.Greedy(MOMENTUM, warm_start=False)
    large = case.replace(valid={"scale": np.float32(scale)})
    plain, scaled = (laws.first_step(estimator, one)[0].stats.diagnostics for one in (case, large))
    assert scaled["relative_error"] == plain["relative_error"] > 0.2


def test_bad_checks():
    for options in ({"directions": 0}, {"every": 0}, {"every": 1.5}):
        with pytest.raises((TypeError, ValueError), match=f"{next(iter(options))} must be a positive integer"):
            hg.ErrorCheck(**options)


@pytest.mark.variants(slow=["ridge"])
@pytest.mark.parametrize("make", [problems.ridge, problems.logistic])
def test_the_bound_of_an_implicit_hypergradient_holds_and_is_not_vacuous(make):
    case, ratios, inner = make(), [], hg.OptaxSolver(optax.sgd(0.3), 10)
    training, exact = hg.Training(inner, case.problem, case.hparams, laws.KEY), flat(case.exact())
    start = inner.init(case.problem, case.params, case.hparams)
    advance = eqx.filter_jit(lambda steps: training.advance(start, 0, steps))
    for num_steps in (10, 30, 100):  # SGD has no memory: the last ten are a training of their own
        late = case.replace(params=advance(jnp.int32(num_steps - 10)).params)
        for tol in (0.3, 1e-6):
            linear_solver = hg.CG(20, rtol=jnp.asarray(tol))
            for estimator in (
                hg.Implicit(inner, linear_solver, power_steps=30),
                hg.HOAG(inner, linear_solver, power_steps=30),
            ):
                estimate, _ = laws.first_step(estimator, late)
                size, error = np.linalg.norm(flat(estimate.hypergradient)), flat(estimate.hypergradient) - exact
                bound = float(estimate.stats.diagnostics["error_bound"])
                assert np.linalg.norm(error) <= bound * size
                ratios.append(bound * size / np.linalg.norm(error))
    assert np.median(ratios) < 300


@pytest.mark.slow
def test_there_is_no_bound_without_convexity():
    case = problems.quadratic()
    case = case.replace(train={"A": case.problem.train["A"] - 0.5 * np.eye(4)})  # eigenvalues from -0.2
    inner = hg.OptaxSolver(optax.sgd(0.1), 3)
    estimate, _ = laws.first_step(hg.Implicit(inner, power_steps=5), case)
    assert jnp.isinf(estimate.stats.diagnostics["error_bound"])
    assert hg.Status(int(estimate.stats.status)) & hg.Status.NEGATIVE_CURVATURE
    assert "error_bound" not in laws.first_step(hg.Implicit(inner), case)[0].stats.diagnostics


def test_bounds_are_refused_where_they_do_not_hold():
    case, waves = problems.ridge(), problems.phasors()
    clipped = hg.JaxoptSolver(jaxopt.ProjectedGradient, projection=lambda w, h: jnp.maximum(w, 0), maxiter=5)
    for estimator, one, message in (
        (hg.Implicit(clipped, power_steps=1), case, "ProjectedGradient"),
        (hg.HOAG(MOMENTUM, power_steps=1), waves, "complex"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            estimator.init(one.problem, one.params, one.hparams)
    for strong_convexity in (0.0, "small"):
        with pytest.raises((TypeError, ValueError), match="strong_convexity must be"):
            hg.Implicit(MOMENTUM, strong_convexity=strong_convexity)


@pytest.mark.parametrize(("num_hparams", "num_pairs", "fine"), [(200, 16, False), (2, 64, True), (2, 1, False)])
def test_random_directions_are_trusted_only_where_they_add_up(num_hparams, num_pairs, fine):
    """Sixteen pairs reach a cosine of 0.3 with 200 hyperparameters, and noise alone has the size of its own error."""
    slopes = np.random.default_rng(0).normal(size=num_hparams)
    inner_loss = lambda w, h, data, key: jnp.sum((w - h) ** 2) / 2
    problem = hg.BilevelProblem(inner_loss, lambda w, h, data, key: w @ data, np.ones(1), slopes)
    estimator, h = hg.ES(hg.OptaxSolver(optax.sgd(1.0), 1), num_pairs), jnp.zeros(num_hparams)
    state = estimator.init(problem, h, h)
    for k in range(5):
        estimate, _ = estimator.step(problem, h, state, jax.random.key(k))
        g = np.asarray(estimate.hypergradient)
        cosine = g @ slopes / np.linalg.norm(g) / np.linalg.norm(slopes)
        status = hg.Status(int(estimate.stats.status))
        assert (cosine > 0.9) == fine or num_pairs == 1
        assert (status == hg.Status.OK) == fine


IMPLICIT = {
    "CG": lambda inner: hg.Implicit(inner, hg.CG(20)),
    "damped": lambda inner: hg.Implicit(inner, hg.CG(20, damping=0.1)),
    "Neumann": lambda inner: hg.Implicit(inner, hg.Neumann(20)),
    "MINRES": lambda inner: hg.Implicit(inner, hg.MINRES(20)),
    "HOAG": lambda inner: hg.HOAG(inner, hg.CG(20)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", IMPLICIT)
def test_no_implicit_status_is_ok_on_a_network_that_is_not_trained_to_the_end(name):
    """P2; the cosines with the exact hypergradient are 0.35 to 0.97."""
    with jax.enable_x64(False):
        case = PROBLEMS["P2"](0)
        inner = hg.OptaxSolver(optax.sgd(case.learning_rate, 0.9), case.num_steps)
        estimate, _ = laws.first_step(IMPLICIT[name](inner), case)
    assert hg.Status(int(estimate.stats.status)) & hg.Status.INNER_UNCONVERGED


WRONG = {
    "line": pytest.param(hg.DrMAD, 100, marks=pytest.mark.slow),
    "greedy": pytest.param(lambda inner: hg.Greedy(inner, decay=1.0, warm_start=False), 25),
    "horizon": pytest.param(lambda inner: hg.Reverse(inner, horizon=20), 100, marks=pytest.mark.slow),
    "one step": pytest.param(hg.OneStep, 25),
}


@pytest.mark.variants(slow=["one step", "greedy", "line", "horizon"])
@pytest.mark.parametrize(("make", "num_steps"), WRONG.values(), ids=WRONG)
def test_no_status_is_ok_where_the_direction_is_wrong(make, num_steps):
    """P2, a network that is not trained to the end; cosines with the exact hypergradient below 0.95."""
    with jax.enable_x64(False):
        case = PROBLEMS["P2"](0, num_steps=num_steps)
        estimator = make(hg.OptaxSolver(optax.sgd(case.learning_rate, 0.9), case.num_steps))
        estimate, _ = laws.first_step(estimator, case)
        _, exact = laws.answer(hg.Reverse(estimator.inner), case)
    g, p = flat(exact), flat(estimate.hypergradient)
    cosine = g @ p / np.linalg.norm(g) / np.linalg.norm(p)
    assert cosine < 0.95 and hg.Status(int(estimate.stats.status)) != hg.Status.OK
    assert estimate.stats.diagnostics["relative_error"] == pytest.approx(relative_error(p, g), rel=0.6)


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("num_steps", "width"),
    [(300, 64), (3162, 16)],
)
def test_measured_errors_are_within_a_factor_of_three(num_steps, width):
    """Networks on the digits at rate 0.1 and momentum 0.9, a penalty per weight; errors from 1e-3 to 30."""
    rows = digits()
    order = np.random.default_rng(0).permutation(len(rows.y))
    train, valid = (rows.take(part) for part in (order[:1000], order[1000:1400]))
    with jax.enable_x64(False):
        model = eqx.nn.MLP(64, 10, width, 2, activation=jnp.tanh, key=jax.random.key(0))
        hparams = jax.tree.map(lambda w: jnp.full_like(w, -7.0), eqx.filter(model, eqx.is_inexact_array))
        case = problems.Case(hg.BilevelProblem(digits_inner, digits_outer, tuple(train), tuple(valid)), model, hparams)
        inner = hg.OptaxSolver(optax.sgd(0.1, 0.9), num_steps)
        _, exact = laws.answer(hg.Reverse(inner, checkpoints="sqrt"), case)
        for estimator in (
            hg.DrMAD(inner),
            hg.DrMAD(inner, knots=20, cubic=True),
            hg.DrMAD(inner, knots=num_steps // 5, cubic=True),
            hg.Greedy(inner, decay=1.0, warm_start=False),
            hg.Reverse(inner, horizon=30),
            hg.Reverse(inner, storage=jnp.float16),
        ):
            estimate, _ = laws.first_step(estimator, case)
            error = relative_error(estimate.hypergradient, exact)
            measured = float(estimate.stats.diagnostics["relative_error"])
            assert error < 1e-3 or error / 3 <= measured <= 3 * error, (estimator, error, measured)


@pytest.mark.slow
def test_training_that_diverges_is_flagged_under_exact_reverse_mode_too():
    """Unscaled inputs: the rate is far too large, the loss grows to 1e20."""
    case = problems.ridge()
    wide = lambda data: data | {"x": 30 * np.asarray(data["x"])}
    case = case.replace(train=wide(case.problem.train), valid=wide(case.problem.valid))
    for make in (hg.Reverse, hg.DrMAD, lambda inner: hg.Reverse(inner, checkpoints="sqrt")):
        estimate, _ = laws.first_step(make(hg.OptaxSolver(optax.sgd(0.1), 6)), case)
        assert jnp.isfinite(estimate.value) and estimate.value > 1e10
        assert hg.Status(int(estimate.stats.status)) & hg.Status.ADJOINT_GROWTH


def test_an_adjoint_whose_size_overflows_is_flagged():
    """Squares of 1e25 leave the range of float32, and the growth is that of infinity over infinity."""
    adjoint = Adjoint({"w": jnp.zeros(1)}, jnp.zeros(1), jnp.full((2, 1), jnp.inf, jnp.float32), jnp.int32(0))
    assert int(stats_of(adjoint, hg.Counts()).status) == hg.Status.ADJOINT_GROWTH


def test_what_is_stored_in_few_bits_is_numbers_alone():
    """Integers above 2¹¹, single numbers and flags are kept as they are."""
    state = (jnp.arange(3000), jnp.asarray(1 / 3), jnp.array([True]), jnp.linspace(0, 1, 7), jnp.array([1j / 3]))
    kept = trajectory.stored(state, jnp.float16)
    assert [leaf.dtype for leaf in kept] == [jnp.int64, jnp.float64, jnp.bool_, jnp.float16, jnp.complex128]
    assert jnp.array_equal(kept[0], state[0]) and kept[1] == state[1] and kept[4] == state[4]
