"""What an estimate says about itself: every flag is raised where it should be, and only there."""

import jax
import jax.numpy as jnp
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
    _, estimate = status(hg.Implicit(inner, hg.CG(10, tol=1e-14)), case)
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
    """With H = 3I and rate 1 the adjoint doubles at every step: only the last steps count."""
    case, inner = with_hessian([3.0] * 4), hg.OptaxSolver(optax.sgd(1.0), 6)
    found, estimate = status(hg.DrMAD(inner, max_growth=limit), case)
    assert found == (hg.Status.OK if kept == 6 else hg.Status.ADJOINT_GROWTH)
    expected_growth = 2.0 ** (6 if kept == 6 else np.floor(np.log2(limit)) + 1)
    assert_close(estimate.stats.diagnostics["growth"], jnp.asarray(expected_growth))
    swept = int(np.log2(expected_growth))
    assert estimate.stats.counts.step_vjps == swept
    assert_close(estimate.hypergradient, laws.answer(hg.Reverse(inner, horizon=swept), case)[1], "gradient")


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
