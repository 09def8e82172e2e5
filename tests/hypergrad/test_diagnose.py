"""The diagnosis blames whom it should, and what it prints and draws."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypergrad as hg
from experiments.benchmarks.problems import PROBLEMS
from experiments.common.data import digits
from hypergrad.diagnose import _timed
from hypergrad.estimators.common.names import named_estimators
from hypergrad.testing import laws
from hypergrad.testing.problems import net, quadratic, ridge

from tests.helpers import digits_inner, digits_outer


def solver(num_steps, rate=0.1, momentum=0.9):
    return hg.OptaxSolver(optax.sgd(rate, momentum), num_steps)


def one(case, estimator, **options):
    return hg.diagnose(case.problem, estimator, case.params, case.hparams, key=laws.KEY, **options).findings[0]


@pytest.mark.slow
def test_findings_are_what_they_say():
    case, inner = net(), solver(12, 0.05)
    estimator = hg.Greedy(inner, decay=1.0, warm_start=False, check=None)
    found = one(case, estimator)
    exact, other = (np.array(jax.tree.leaves(laws.answer(e, case)[1])) for e in (hg.Reverse(inner), estimator))
    assert found.cosine == pytest.approx(exact @ other / np.linalg.norm(exact) / np.linalg.norm(other), rel=1e-9)
    assert found.norm_ratio == pytest.approx(np.linalg.norm(other) / np.linalg.norm(exact), rel=1e-9)
    assert (found.steps, found.gradients) == (12, 12 + 13 + 2 * 12)  # one outer gradient more, at the end
    assert found.memory > 0 and found.runs > 0 and np.isnan(found.growth) and found.stability > 0.999


@pytest.mark.slow
def test_exact_estimators_are_right():
    case, inner = quadratic(), solver(8)
    estimators = {"reverse": hg.Reverse(inner), "line": hg.DrMAD(inner), "forward": hg.Forward(inner)}
    result = hg.diagnose(case.problem, estimators, case.params, case.hparams, key=laws.KEY)
    assert [f.verdict for f in result.findings] == ["right"] * 3 and not result.warnings
    assert all(f.cosine == pytest.approx(1) and f.norm_ratio == pytest.approx(1) for f in result.findings)
    lines = str(result).splitlines()
    assert len(lines) == 4 and lines[2].startswith("line") and lines[2].endswith("right")


def test_the_first_step_is_not_timed():
    """It measures the error, for ten training runs, where an ordinary step does not."""
    seen = []

    def step(problem, hparams, state, key):
        jax.debug.callback(lambda index: seen.append(int(index)), state)
        return state, state + 1

    _, _, first = _timed(step, None, None, jnp.zeros((), jnp.int32), laws.KEY)
    jax.effects_barrier()
    assert first == 0 and sorted(seen) == [0, 1, 1, 1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "solver", "trusted"), [("P1", hg.CG(20), True), ("P2", hg.GMRES(60), False), ("P3", hg.CG(20), True)]
)
def test_implicit_hypergradients_are_warned_of_only_where_they_are_wrong(name, solver, trusted, optimised):
    """P2 is a network that is not trained to the end, P1 and P3 are convex and solved.

    Optimised, because the calculation takes longer than its compilation.
    """
    with jax.enable_x64(False):
        case = PROBLEMS[name](0)
        inner = hg.OptaxSolver(optax.sgd(case.learning_rate, 0.9), case.num_steps)
        key = jax.random.key(0)
        result = hg.diagnose(case.problem, hg.Implicit(inner, solver), case.params, case.hparams, key=key)
    assert (result.findings[0].verdict == "right") is trusted
    assert bool(result.warnings) is not trusted
    if not trusted:
        assert "Implicit" in result.warnings[0] and "do not trust" in result.warnings[0]


def chaotic(w, h, data, key):
    """One gradient step is w <- w - h(w - w²), at a high rate h the logistic map."""
    return jnp.sum(h * (w**2 / 2 - w**3 / 3)) + 0 * jnp.sum(data["x"])


def end(w, h, data, key):
    return jnp.sum((w - 0.3) ** 2) + 0 * jnp.sum(data["x"])


@pytest.mark.slow
def test_chaos_is_not_blamed_on_the_estimator():
    data = {"x": np.ones(2)}
    problem = hg.BilevelProblem(chaotic, end, data, data)
    inner = hg.OptaxSolver(optax.sgd(1.0), 60)
    params = jnp.array([0.31, 0.57, 0.62, 0.44])
    for rate, verdict in ((-2.7, "ill-conditioned"), (0.5, "wrong")):
        hparams = jnp.linspace(rate, rate + 0.1, 4)
        estimator = hg.DrMAD(inner, max_growth=1e300) if rate < 0 else Opposite(inner)
        found = hg.diagnose(problem, estimator, params, hparams, key=laws.KEY).findings[0]
        assert found.verdict == verdict
        assert ("chaotic" in found.warning) is (verdict == "ill-conditioned")
        assert ("with ES" in found.warning) is (verdict == "ill-conditioned")


class Opposite(hg.AbstractEstimator):
    """The exact hypergradient with the wrong sign."""

    inner: hg.AbstractInnerSolver

    def init(self, problem, params, hparams):
        return hg.Reverse(self.inner).init(problem, params, hparams)

    def step(self, problem, hparams, state, key):
        estimate, state = hg.Reverse(self.inner).step(problem, hparams, state, key)
        turned = jax.tree.map(jnp.negative, estimate.hypergradient)
        return eqx.tree_at(lambda e: e.hypergradient, estimate, turned), state


@pytest.mark.slow
def test_the_fewest_knots_within_tolerance_are_found():
    case = net()
    for cubic, most in ((False, 8), (True, 4)):
        drmad = hg.DrMAD(solver(8, 0.3, 0.8), cubic=cubic, check=None)
        knots, result = hg.fewest_knots(case.problem, drmad, case.params, case.hparams, key=laws.KEY, cosine=1 - 1e-9)
        assert knots <= most and result.findings[-1].cosine >= 1 - 1e-9
        assert all(f.cosine < 1 - 1e-9 for f in result.findings[:-1])


@pytest.mark.slow
def test_a_shorter_horizon_is_judged_on_its_own():
    case = ridge()
    short, direct = one(case, hg.Reverse(solver(50)), num_steps=5), one(case, hg.Reverse(solver(5)))
    assert short.steps == 5 and short.gradients == direct.gradients


@pytest.mark.slow
def test_a_diagnosis_has_rows_and_a_plot(tmp_path):
    case, inner = ridge(), solver(6)
    estimators = [hg.Reverse(inner), hg.DrMAD(inner, knots=2), Opposite(inner)]
    result = hg.diagnose(case.problem, estimators, case.params, case.hparams, key=laws.KEY)
    assert [row["name"] for row in result.rows()] == ["Reverse()", "DrMAD(knots=2)", "Opposite()"]
    assert result.rows()[2]["verdict"] == "wrong" and set(result.rows()[0]) > set(
        field.name for field in dataclasses.fields(result.findings[0])
    )
    result.plot(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000


def test_diagnose_refuses_bad_input_by_name():
    case = ridge()
    with pytest.raises(ValueError, match="estimators must be an estimator, or several"):
        hg.diagnose(case.problem, [], case.params, case.hparams, key=laws.KEY)
    still = hg.BilevelProblem(
        case.problem.inner_loss, lambda w, h, d, k: 0 * (jnp.sum(w) + h["unused"]), *[case.problem.train] * 2
    )
    with pytest.raises(ValueError, match="nothing to compare"):
        hg.diagnose(still, hg.Reverse(solver(3)), case.params, case.hparams, key=laws.KEY)


@pytest.mark.sweep
def test_cubics_hold_where_the_straight_line_explodes():
    """A network 64-64-64-10 on the digits, 300 steps at rate 0.1 and momentum 0.9."""
    rows = digits()
    order = np.random.default_rng(0).permutation(len(rows.y))
    train, valid = (rows.take(part) for part in (order[:1000], order[1000:1400]))
    with jax.enable_x64(False):
        model = eqx.nn.MLP(64, 10, 64, 2, activation=jnp.tanh, key=jax.random.key(0))
        hparams = jax.tree.map(lambda w: jnp.full_like(w, -7.0), eqx.filter(model, eqx.is_inexact_array))
        problem = hg.BilevelProblem(digits_inner, digits_outer, tuple(train), tuple(valid))
        inner = solver(300)
        candidates = {
            "line": hg.DrMAD(inner, check=None),
            "a quarter": hg.DrMAD(inner, knots=75, cubic=True),
            "half": hg.DrMAD(inner, knots=150, cubic=True),
            "half precision": hg.Reverse(inner, storage=jnp.float16),
        }
        found = hg.diagnose(problem, candidates, model, hparams, key=jax.random.key(1)).findings
    line, quarter, half, precision = found
    assert line.verdict == "wrong" and line.growth > 1e3 and line.status == hg.Status.ADJOINT_GROWTH
    assert quarter.cosine >= 0.95 and half.cosine >= 0.99 and precision.cosine >= 0.999
    assert min(f.stability for f in found) > 0.99


@pytest.mark.slow
def test_weights_that_start_at_zero_are_disturbed_too():
    """A chaotic training from zero: disturbed relative to the weights alone it would look stable."""
    inner_loss = lambda w, h, data, key: jnp.sum(1 - jnp.cos(w * data["f"])) / 2 - jnp.sum(w * jnp.exp(h)) / 10
    problem = hg.BilevelProblem(inner_loss, lambda w, h, d, k: jnp.sum(w**2), {"f": np.full(3, 7.0)}, np.ones(1))
    inner = hg.OptaxSolver(optax.sgd(0.6), 60)
    for start in (0.0, 1e-3):
        found = hg.diagnose(problem, Opposite(inner), jnp.full(3, start), jnp.zeros(3), key=laws.KEY).findings[0]
        assert found.stability < 0.99


@pytest.mark.slow
def test_one_hyperparameter_in_chaos_is_no_stable_one():
    """A cosine of two numbers is their sign alone."""
    inner_loss = lambda w, h, data, key: jnp.sum(1 - jnp.cos(w * data["f"])) / 2 - jnp.sum(w) * jnp.exp(h) / 10
    problem = hg.BilevelProblem(inner_loss, lambda w, h, d, k: jnp.sum(w**2), {"f": np.full(3, 7.0)}, np.ones(1))
    inner = hg.OptaxSolver(optax.sgd(0.6), 60)
    found = hg.diagnose(problem, Opposite(inner), jnp.zeros(3), jnp.zeros(()), key=laws.KEY).findings[0]
    assert found.stability < 0.95 and found.verdict == "ill-conditioned"


@pytest.mark.slow
def test_the_spread_over_keys_is_shown_where_there_is_any():
    inner = solver(5, 0.05)
    case = net()
    found = one(case, hg.Reverse(inner), num_keys=3)
    expected = hg.spread(case.problem, hg.Reverse(inner), case.params, case.hparams, key=laws.KEY, num_keys=3)
    std, mean = (np.linalg.norm(jax.tree.leaves(tree)) for tree in (expected.hypergradient_std, expected.hypergradient))
    assert found.spread == pytest.approx(std / mean, rel=1e-6) and found.spread > 0
    assert np.isnan(one(case, hg.Reverse(inner), num_keys=0).spread)
    assert one(ridge(), hg.Reverse(inner), num_keys=0).spread == 0  # read from the jaxpr: nothing is drawn


@pytest.mark.slow
def test_who_errs_with_a_good_status_is_called_silent():
    case, inner = net(), solver(12, 0.05)
    estimators = {"opposite": Opposite(inner), "greedy": hg.Greedy(inner, warm_start=False), "exact": hg.Reverse(inner)}
    result = hg.diagnose(case.problem, estimators, case.params, case.hparams, key=laws.KEY, num_keys=0)
    assert [found.is_silent for found in result.findings] == [True, False, False]
    assert [text.startswith("opposite") and "its own status is OK" in text for text in result.warnings] == [True]
    assert str(result).splitlines()[0].split()[-2:] == ["status", "verdict"]


def test_estimators_without_names_are_called_by_what_makes_them():
    inner = solver(12, 0.05)
    found = named_estimators([hg.DrMAD(inner), hg.Reverse(inner, horizon=3), hg.Implicit(inner, hg.CG(4))])
    assert list(found)[:2] == ["DrMAD()", "Reverse(horizon=3)"] and "outside" not in "".join(found)


@pytest.mark.slow
def test_estimators_are_ranked_by_their_error_and_measure_it_alike():
    case, inner = net(), solver(12, 0.05)
    estimators = {"greedy": hg.Greedy(inner, warm_start=False), "line": hg.DrMAD(inner), "reverse": hg.Reverse(inner)}
    result = hg.diagnose(case.problem, estimators, case.params, case.hparams, key=laws.KEY)
    assert [found.name for found in result.ranked] == ["reverse", "line", "greedy"]
    for found in result.findings[:2]:
        assert found.measured_error == pytest.approx(found.error, rel=1e-5)
    assert np.isnan(result.findings[2].measured_error)
