"""The status of an estimate: every flag is raised where it should be, and only there."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import optax
import pytest

import hypergrad as hg
from hypergrad.testing import assert_close, laws
from hypergrad.testing.problems import quadratic, ridge

LONG = hg.OptaxSolver(optax.sgd(0.3), 2000)


def status(estimator, case):
    state = estimator.init(case.problem, case.params, case.hparams)
    estimate, _ = estimator.step(case.problem, case.hparams, state, laws.KEY)
    return hg.Status(int(estimate.stats.status)), estimate


def with_hessian(eigenvalues):
    case = quadratic()
    return case.replace(train={"A": jnp.diag(jnp.asarray(eigenvalues))})


@pytest.mark.parametrize("make", [hg.Implicit, hg.HOAG])
def test_a_solved_problem_raises_no_flag(make):
    found, estimate = status(make(LONG, hg.CG(10)), ridge())
    assert found == hg.Status.OK
    assert estimate.stats.residual <= 1e-3


@pytest.mark.row(21)
@pytest.mark.parametrize("solver", [hg.CG(1), hg.Neumann(1, step_size=0.1)])
def test_an_unfinished_linear_solve_is_flagged(solver):
    found, estimate = status(hg.Implicit(LONG, solver), ridge())
    assert found == hg.Status.LINEAR_UNCONVERGED
    assert estimate.stats.residual > 1e-2


def test_unfinished_training_is_flagged():
    found, estimate = status(hg.Implicit(hg.OptaxSolver(optax.sgd(0.3), 1), hg.CG(10)), ridge())
    assert found == hg.Status.INNER_UNCONVERGED
    assert estimate.stats.diagnostics["inner_gradient_norm"] > 1e-2


def test_the_outer_gap_is_what_the_value_would_still_change():
    case, inner = ridge(), hg.OptaxSolver(optax.sgd(0.3), 40)
    _, estimate = status(hg.Implicit(inner, hg.CG(10, rtol=1e-14)), case)
    _, solved = status(hg.Implicit(LONG, hg.CG(10)), case)
    change = jnp.abs(solved.value - estimate.value)
    assert change > 1e-7
    # a first-order statement: the second order is the square of the remaining error
    np.testing.assert_allclose(estimate.stats.diagnostics["outer_gap"], change, rtol=0.05)


@pytest.mark.row(21)
def test_a_saddle_is_flagged():
    found, estimate = status(hg.Implicit(hg.OptaxSolver(optax.sgd(0.1), 3), hg.CG(10)), with_hessian([1.0, -0.5, 2, 1]))
    assert hg.Status.NEGATIVE_CURVATURE in found
    assert hg.Status.NONFINITE not in found and jnp.all(jnp.isfinite(estimate.hypergradient))


@pytest.mark.parametrize(("limit", "kept"), [(2.0, 1), (5.0, 2), (1e3, 6)])
def test_drmad_leaves_out_the_steps_where_its_adjoint_outgrows_the_limit(limit, kept):
    """The adjoint doubles at every step with H = 3I and rate 1: only the last steps count."""
    case, inner = with_hessian([3.0] * 4), hg.OptaxSolver(optax.sgd(1.0), 6)
    found, estimate = status(hg.DrMAD(inner, max_growth=limit, check=None), case)
    assert found == (hg.Status.OK if kept == 6 else hg.Status.ADJOINT_GROWTH)
    expected_growth = 2.0 ** (6 if kept == 6 else np.floor(np.log2(limit)) + 1)
    assert_close(estimate.stats.diagnostics["growth"], jnp.asarray(expected_growth))
    swept = int(np.log2(expected_growth))
    assert estimate.stats.counts.step_vjps == swept
    assert_close(estimate.hypergradient, laws.answer(hg.Reverse(inner, horizon=swept), case)[1], "gradient")


@pytest.mark.slow
def test_flags_are_each_members_own():
    case, estimator = quadratic(), hg.Implicit(hg.OptaxSolver(optax.sgd(0.1), 400), hg.CG(10))
    hessians = jnp.stack([jnp.eye(4), jnp.diag(jnp.array([1.0, -0.01, 1, 1])), 2 * jnp.eye(4)])

    def one(hessian):
        member = case.replace(train={"A": hessian})
        return estimator.step(
            member.problem, case.hparams, estimator.init(member.problem, case.params, case.hparams), laws.KEY
        )[0]

    together = jax.vmap(one)(hessians)
    codes = [hg.Status(int(code)) for code in together.stats.status]
    assert codes[0] == codes[2] == hg.Status.OK and hg.Status.NEGATIVE_CURVATURE in codes[1]
    for i in (0, 2):
        assert_close(together.hypergradient[i], one(hessians[i]).hypergradient, "gradient")


# Printing

INTERNAL = ("i32[", "f64[", "Partitioned", "Array(", "ShapeDtypeStruct", "Traced", "<class", "ScaleBy")


def printed():
    case, inner = ridge(), hg.OptaxSolver(optax.adam(0.1), 3)
    search = hg.GradientSearch(hg.Reverse(inner), optax.adam(0.1))
    state = search.init(case.problem, case.params, case.hparams)
    after, record = search.step(case.problem, state, laws.KEY)
    estimate, inner_state = status_of_step(case, inner)
    return {
        "Estimate": estimate,
        "Stats": estimate.stats,
        "Counts": estimate.stats.counts,
        "SearchState": after,
        "Best": after.best,
        "Record": record,
        "InnerState": inner_state.inner,
        "TrajectoryState": inner_state,
    }


def status_of_step(case, inner):
    estimator = hg.Reverse(inner, warm_start=True)
    return estimator.step(case.problem, case.hparams, estimator.init(case.problem, case.params, case.hparams), laws.KEY)


@pytest.mark.slow
def test_what_prints_tells():
    for name, thing in printed().items():
        text = str(thing)
        assert text.startswith(name) and repr(thing) == text and 1 <= len(text.splitlines()) <= 6, text
        assert not any(word in text for word in INTERNAL), text
        assert all(line[:2] == "  " != line[1:3] for line in text.splitlines()[1:]), text  # one indentation for all
    found = printed()
    assert f"value {float(found['Estimate'].value):.6g}, OK" in str(found["Estimate"])
    assert "iterations 3" in str(found["Counts"]) and "gradients 10" in str(found["Counts"])
    assert f"growth {float(found['Stats'].diagnostics['growth']):.6g}" in str(found["Stats"])
    assert "1 steps" in str(found["SearchState"]) and "1 array, 3 numbers (float64)" in str(found["SearchState"])
    assert "updates: 3" in str(found["InnerState"])


def test_inner_solvers_print_as_they_are_made():
    line = lambda thing: eqx.tree_pformat(thing, width=200)
    inner = hg.OptaxSolver(hg.MomentumSGD(0.1, 0.5), 3)
    made = "OptaxSolver(optimiser=MomentumSGD(learning_rate=0.1, momentum=0.5), num_steps=3)"
    assert line(inner) == made and line(hg.Reverse(inner)) == f"Reverse(inner={made})"
    assert line(inner.with_num_steps(4)) == made.replace("3)", "4)")
    lbfgs = hg.JaxoptSolver(jaxopt.LBFGS, maxiter=3, average=0.5)
    assert line(lbfgs) == f"JaxoptSolver(solver_class={jaxopt.LBFGS.__module__}.LBFGS, maxiter=3, average=0.5)"
    assert line(lbfgs.with_num_steps(4)) == line(lbfgs).replace("maxiter=3", "maxiter=4")


def test_statuses_print_their_names():
    assert str(hg.Status(3)) == f"{hg.Status(3)}" == "NONFINITE|INNER_UNCONVERGED"
    assert str(hg.Status(0)) == "OK"
    found, _ = status(hg.Implicit(hg.OptaxSolver(optax.sgd(0.3), 1), hg.CG(10)), ridge())
    assert f"{found}" == "INNER_UNCONVERGED"


def test_batches_print_ranges_and_how_often_each_status_occurs():
    stats = jax.vmap(lambda x: hg.Stats(hg.Counts(iterations=x.astype(int)), jnp.where(x > 7, 5, 0), x))(
        jnp.arange(10.0)
    )
    text = str(stats)
    assert text.startswith("Stats: OK (8), NONFINITE|LINEAR_UNCONVERGED (2)")
    assert "iterations int32[10] from 0 to 9" in text and "residual float64[10] from 0 to 9" in text
    assert "all 0" in text
    broken = hg.Estimate(jnp.arange(8.0).at[2].set(jnp.nan), jnp.asarray(1.0), jnp.zeros(2), hg.Stats(hg.Counts()))
    assert "float64[8] from 0 to 7, 1 not finite" in str(broken) and "NONFINITE" in str(broken)


@pytest.mark.slow
def test_printing_under_a_transformation_shows_shapes():
    texts = []

    @jax.jit
    def trace(things):
        texts.extend(map(str, things))
        return 0

    trace(list(printed().values()))
    assert len(texts) == 8 and all("int32[]" in text for text in texts if not text.startswith(("Best", "Inner")))
    assert not any("Traced" in text for text in texts)
    assert "float64[3]" in str(jax.eval_shape(lambda: printed()["Estimate"]))


def test_printing_after_donation():
    state = printed()["SearchState"]
    jax.jit(lambda h: jax.tree.map(lambda leaf: leaf + 1, h), donate_argnums=0)(state.hparams)
    assert "float64[3]" in str(state)


def test_counts_are_exact_beyond_32_bits():
    big = hg.Counts(iterations=2**31 - 1, step_vjps=2**31 - 1, inner_gradients=2**31 - 1)
    spent = hg.Counts().totals + big + big + big
    assert spent.iterations == 3 * (2**31 - 1) and spent.gradients == 9 * (2**31 - 1)
    assert "iterations 6442450941" in str(spent) and "gradients 19327352823" in str(spent)


@pytest.mark.parametrize("wrong", [np.nan, 1.0, "1", None, True, [1], np.ma.masked, 10**30])
@pytest.mark.parametrize("name", ["iterations", "rows"])
def test_counts_that_are_no_integers_are_named(name, wrong):
    with pytest.raises((TypeError, ValueError), match=f"^{name} (must be an integer|cannot be counted)"):
        hg.Counts(**{name: wrong})
