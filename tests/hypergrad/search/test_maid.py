"""MAID: its bounds hold, it needs no schedule, and trouble is met."""

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import optax
import pytest

import hypergrad as hg
from hypergrad.testing import laws
from hypergrad.testing.problems import (
    logistic,
    net,
    quadratic,
    quadratic_optimum,
    quadratic_outer,
    ridge,
    ridge_gradient,
)
from hypergrad.testing.tolerances import flat

from tests.helpers import after_steps

INNER = hg.OptaxSolver(optax.sgd(0.3), 3000)
CG = hg.CG(20, rtol=1e-14)
SMALLEST = {  # a lower bound of the Hessian's eigenvalues: exact, and twice the smallest penalty
    "quadratic": 0.3,
    "ridge": lambda h: jnp.exp(jnp.min(h["log_l2"])),
    "logistic": lambda h: jnp.exp(jnp.min(h)),
}
CASES = {"quadratic": quadratic, "ridge": ridge, "logistic": logistic}


def solved_value(case, hparams):
    """F(w*(λ))."""
    long = hg.OptaxSolver(optax.sgd(0.3), 20_000)
    return hg.evaluate(long, case.problem, case.params, hparams, laws.KEY).value


def distance(state, case):
    return np.linalg.norm(state.hparams - quadratic_optimum(case)) / np.linalg.norm(quadratic_optimum(case))


# Bounds


@pytest.mark.variants(slow=["1-quadratic", "0-ridge", "0-logistic", "0-quadratic"])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_bounds_hold_and_are_not_vacuous(name, seed):
    case = CASES[name](seed)
    value, exact, ratios = solved_value(case, case.hparams), flat(case.exact()), []
    for tolerance in (0.3, 0.03, 1e-3, 1e-5):
        for solver in (hg.CG(20, rtol=jnp.asarray(tol)) for tol in (1e-14, tolerance)):  # arrays: compiled once
            search = hg.MAID(
                INNER, solver, strong_convexity=SMALLEST[name], rtol=jnp.asarray(tolerance), power_steps=50
            )
            state, history = after_steps(search, case, 1)
            found, errors = state.inner_state.accepted, {n: e[0] for n, e in history.stats.diagnostics.items()}
            error = np.linalg.norm(flat(found.hypergradient) - exact)
            assert error <= errors["hypergradient_error"]
            assert abs(found.value - value) <= errors["value_error"]
            ratios.append(errors["hypergradient_error"] / error)
    assert np.median(ratios) < 300


@pytest.mark.slow
def test_the_corrected_value_is_right_to_second_order():
    case, errors = quadratic(), []
    for tolerance in (1e-2, 1e-3):
        state, history = after_steps(hg.MAID(INNER, CG, strong_convexity=0.3, rtol=tolerance), case, 1)
        value = solved_value(case, case.hparams)
        errors.append((abs(history.value[0] - value), abs(state.inner_state.accepted.value - value)))
    (rough, rough_corrected), (fine, fine_corrected) = errors
    assert rough / fine < 20 and rough_corrected / fine_corrected > 50


@pytest.mark.variants(slow=["ridge", "logistic"])
@pytest.mark.parametrize("name", CASES)
def test_the_strong_convexity_is_found(name):
    case = CASES[name]()
    search = hg.MAID(INNER, CG, rtol=1e-9, step_size=1e-9)  # λ moves next to nothing
    _, history = after_steps(search, case, 30)
    inner = lambda w: case.problem.inner_loss(w, case.hparams, case.problem.train, None)
    w = hg.evaluate(INNER, case.problem, case.params, case.hparams, laws.KEY).params
    expected = np.linalg.eigvalsh(jax.jit(jax.hessian(inner))(w))[0]
    np.testing.assert_allclose(history.stats.diagnostics["strong_convexity"][-1], expected, rtol=0.02)


# Convergence


@pytest.mark.variants(
    quick=["given-options2"],
    slow=[
        "estimated-options2",
        "given-options4",
        "given-options1",
        "estimated-options0",
        "estimated-options3",
        "given-options0",
    ],
)
@pytest.mark.parametrize("options", [{}, {"rtol": 0.5}, {"rtol": 1e-4}, {"step_size": 100.0}, {"step_size": 0.003}])
@pytest.mark.parametrize("mu", [None, 0.3], ids=["estimated", "given"])
def test_it_reaches_the_optimum_without_a_schedule(options, mu):
    case = quadratic()
    options = jax.tree.map(jnp.asarray, {"rtol": 0.1} | options)  # arrays: compiled once
    state, history = after_steps(hg.MAID(INNER, CG, strong_convexity=mu, **options), case, 200)
    assert distance(state, case) < 1e-5
    assert np.all(history.stats.status & hg.Status.NONFINITE == 0)


@pytest.mark.variants(slow=["sgd", "LBFGS"])
@pytest.mark.parametrize("inner", [INNER, hg.JaxoptSolver(jaxopt.LBFGS, maxiter=200)], ids=["sgd", "LBFGS"])
def test_it_reaches_the_optimum_of_ridge(inner):
    case = ridge()
    state, _ = after_steps(hg.MAID(inner, CG, strong_convexity=SMALLEST["ridge"]), case, 300)
    assert np.linalg.norm(ridge_gradient(case.problem.train, case.problem.valid, state.hparams["log_l2"])) < 1e-6
    assert state.hparams["unused"] == case.hparams["unused"]


@pytest.mark.slow
def test_every_accepted_point_is_better_than_the_last():
    case = quadratic()
    state, history = after_steps(hg.MAID(INNER, CG, strong_convexity=0.3), case, 100)
    moved = history.stats.counts.hyper_updates == 1
    accepted = np.concatenate([history.hparams[:1], history.hparams[moved]])
    A, B, c = (np.asarray(case.problem.train[name]) for name in "ABc")
    values = [quadratic_outer(np.linalg.solve(A, B @ h + c), h, case.problem.valid, None) for h in accepted]
    assert len(values) > 20 and np.all(np.diff(np.array(values)) < 1e-13)
    assert state.spent.hyper_updates == moved.sum() < len(moved)


@pytest.mark.slow
def test_it_beats_hoag_with_a_badly_chosen_schedule():
    """A schedule that is too tight wastes gradients, one that is too loose does not arrive."""
    case = quadratic()

    def spent(search):
        _, history = after_steps(search, case, 150)
        close = np.linalg.norm(history.hparams - quadratic_optimum(case), axis=1) < 1e-4
        return np.cumsum(history.stats.counts.gradients)[np.argmax(close)] if close.any() else np.inf

    hoag = lambda *schedule: hg.GradientSearch(
        hg.HOAG(INNER, CG, schedule=hg.tolerances.exponential(*schedule)), hg.adaptive_step()
    )
    ours = spent(hg.MAID(INNER, CG))
    assert 2 * ours < spent(hoag(1e-12, 0.9))
    assert spent(hoag(0.1, 0.999)) == np.inf
    assert spent(hoag(1e-3, 0.9)) < ours  # a good one saves the cost of the bounds


# Counts and trouble


@pytest.mark.slow
def test_all_work_is_counted():
    case, search = (
        quadratic(),
        hg.MAID(hg.OptaxSolver(optax.sgd(0.3), 7), hg.CG(4, rtol=1e-14), strong_convexity=0.3, rtol=1e-9),
    )
    _, record = search.step(case.problem, search.init(case.problem, case.params, case.hparams), laws.KEY)
    counts = record.stats.counts
    assert (counts.iterations, counts.inner_gradients, counts.outer_gradients) == (7, 7 + 1 + 2, 1 + 1)
    # 4 of CG, one each for its start and its residual, one mixed; 2 + 6 for the bounds
    assert counts.hvps == 4 + 2 + 1 + 2 + 6
    estimated = hg.MAID(hg.OptaxSolver(optax.sgd(0.3), 7), hg.CG(4, rtol=1e-14), rtol=1e-9)
    _, record = estimated.step(case.problem, estimated.init(case.problem, case.params, case.hparams), laws.KEY)
    assert counts.hvps + 4 <= record.stats.counts.hvps <= counts.hvps + 2 + 4 + 2


def walled(wall):
    """`quadratic`, with an outer loss that is not defined above `wall`."""
    case = quadratic()
    outer = lambda w, h, data, key: case.problem.outer_loss(w, h, data, key) + 0 * jnp.sum(jnp.log(wall - h))
    return case, hg.BilevelProblem(case.problem.inner_loss, outer, case.problem.train, case.problem.valid)


@pytest.mark.slow
def test_a_candidate_that_is_not_finite_is_backed_off_from():
    case, problem = walled(2.5)
    search = hg.MAID(INNER, CG, strong_convexity=0.3, step_size=30.0)
    state = search.init(problem, case.params, case.hparams)
    with pytest.warns(RuntimeWarning, match="no finite result"):
        state, history = hg.run(search, problem, state, key=laws.KEY, budget=10**9, chunk=150, callback=lambda *_: True)
    assert np.any(history.stats.status & hg.Status.NONFINITE)
    assert distance(state, case) < 1e-4


@pytest.mark.slow
@pytest.mark.row(20)
def test_a_start_that_is_not_finite_moves_nothing():
    case, problem = walled(-3.0)
    search = hg.MAID(INNER, CG, strong_convexity=0.3)
    state = search.init(problem, case.params, case.hparams)
    after, record = search.step(problem, state, laws.KEY)
    assert record.stats.status & hg.Status.NONFINITE
    assert after.spent.hyper_updates == 0 and jnp.all(after.hparams == case.hparams)
    for a, b in zip(jax.tree.leaves(after.inner_state), jax.tree.leaves(state.inner_state), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("mu", [None, 0.1])
def test_a_saddle_is_flagged(mu):
    case = quadratic().replace(train={"A": jnp.diag(jnp.array([1.0, -0.5, 2, 1]))})
    state, history = after_steps(hg.MAID(hg.OptaxSolver(optax.sgd(0.1), 3), hg.CG(10), strong_convexity=mu), case, 5)
    assert np.all(history.stats.status & hg.Status.NEGATIVE_CURVATURE)
    if mu is None:
        assert state.spent.hyper_updates == 0


@pytest.mark.slow
def test_single_precision_comes_to_rest_near_the_optimum():
    exact = quadratic()
    with jax.enable_x64(False):
        case = quadratic()
        state, history = after_steps(hg.MAID(INNER, hg.CG(20), strong_convexity=0.3), case, 150)
        assert state.hparams.dtype == jnp.float32 and np.all(history.stats.status & hg.Status.NONFINITE == 0)
        assert distance(state, exact) < 1e-2


@pytest.mark.slow
def test_a_projection_is_kept():
    case = quadratic()
    search = hg.MAID(INNER, CG, strong_convexity=0.3, projection=lambda h: jnp.clip(h, -0.2, 0.2))
    _, history = after_steps(search, case, 60)
    assert np.all(np.abs(history.hparams[1:]) <= np.maximum(0.2, np.abs(history.hparams[0])))
    assert np.all(np.abs(history.hparams[-1]) <= 0.2)


@pytest.mark.slow
def test_equinox_models_run_whole():
    case = net()
    state, history = after_steps(hg.MAID(hg.OptaxSolver(optax.sgd(0.1), 20), hg.CG(5)), case, 10)
    assert np.all(np.isfinite(history.value))
    assert state.best.params(case.problem.valid["x"][0]).shape == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shrink": 1.0}, "shrink"),
        ({"grow": 0.9}, "grow"),
        ({"accuracy": 1.5}, "accuracy"),
        ({"accuracy": 0.9, "decrease": 0.2}, "decrease"),
        ({"rtol": 0.0}, "rtol"),
        ({"step_size": -1.0}, "step_size"),
        ({"strong_convexity": 0.0}, "strong_convexity"),
        ({"power_steps": 0}, "power_steps"),
    ],
)
def test_options_that_cannot_work_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        hg.MAID(INNER, CG, **options)


def test_hyperparameters_that_it_cannot_see_are_refused():
    case = ridge()
    inner = hg.OptaxSolver(lambda h: optax.sgd(jnp.exp(h["log_lr"])), 3)
    with pytest.raises(ValueError, match=r"hparams\['log_lr'\] acts only through the optimiser"):
        hg.MAID(inner).init(case.problem, case.params, case.hparams | {"log_lr": jnp.asarray(-2.0)})
