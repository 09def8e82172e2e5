"""Losses without a derivative, or with one that is zero, and numbers of several types."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypergrad as hg
from hypergrad.testing import laws, problems

SGD = hg.OptaxSolver(optax.sgd(0.1), 5)
SOBA, MAID = hg.SOBA(*[optax.sgd(0.1)] * 3), hg.MAID(SGD)


def counting():
    """A ridge problem whose outer loss is a share of errors."""
    case = problems.ridge()
    inner = lambda w, h, d, key: jnp.mean((d["x"] @ w - d["y"]) ** 2) + jnp.sum(jnp.exp(h) * w**2)
    errors = lambda w, h, d, key: jnp.mean((d["x"] @ w > 0) != (d["y"] > 0))
    return hg.BilevelProblem(inner, errors, case.problem.train, case.problem.valid), case


def until(v):
    return jax.lax.while_loop(lambda carry: carry[0] < 3, lambda carry: (carry[0] + 1, carry[1] * 1.1), (0, v))[1]


def on_the_host(v):
    return jax.pure_callback(lambda v: np.asarray(v) * 1.1, jax.ShapeDtypeStruct(v.shape, v.dtype), v)


@jax.custom_vjp
def once_only(v):
    return v * 1.1


once_only.defvjp(lambda v: (v * 1.1, v), lambda v, g: (g * until(v) / v,))
LOST = {"inner_loss": until, "outer_loss": until, "the gradient of inner_loss": once_only}


@pytest.mark.parametrize("named", LOST)
@pytest.mark.parametrize("make", [hg.Reverse(SGD), hg.Implicit(SGD), SOBA])
def test_a_loss_that_has_no_derivative_is_named(make, named):
    """The error comes before anything is compiled, and names a loss that would have a derivative."""
    case = problems.ridge()
    inner_loss, outer_loss = case.problem.inner_loss, case.problem.outer_loss
    if named == "outer_loss":
        outer_loss = lambda *args: LOST[named](case.problem.outer_loss(*args))
    else:
        inner_loss = lambda *args: LOST[named](case.problem.inner_loss(*args))
    problem = hg.BilevelProblem(inner_loss, outer_loss, case.problem.train, case.problem.valid)
    with pytest.raises(ValueError, match=rf"^{named} cannot be differentiated: .*lax.scan.*custom_jvp"):
        state = make.init(problem, case.params, case.hparams)
        hparams = () if make is SOBA else (case.hparams,)
        make.step(problem, *hparams, state, laws.KEY)


def test_a_criterion_computed_on_the_host_is_named_or_needs_no_derivative():
    case = problems.ridge()
    outer_loss = lambda *args: on_the_host(case.problem.outer_loss(*args))
    problem = hg.BilevelProblem(case.problem.inner_loss, outer_loss, case.problem.train, case.problem.valid)
    with pytest.raises(ValueError, match=r"^outer_loss cannot be differentiated: .*custom_jvp"):
        hg.Reverse(SGD).init(problem, case.params, case.hparams)
    hg.ES(SGD, 2).init(problem, case.params, case.hparams)


@pytest.mark.parametrize("make", [hg.Reverse(SGD), hg.Implicit(SGD), SOBA, MAID])
def test_a_number_of_errors_is_refused_as_outer_loss(make):
    problem, case = counting()
    with pytest.raises(ValueError, match="outer_loss depends on the weights through comparisons"):
        make.init(problem, case.params, case.hparams["log_l2"])


def test_evolution_strategies_accept_a_number_of_errors():
    problem, case = counting()
    for make in (hg.ES(SGD, 2), hg.Combined(hg.Reverse(SGD), hg.ES(SGD, 2))):
        make.init(problem, case.params, case.hparams["log_l2"])


def test_an_outer_loss_that_reads_no_weights_reaches_what_it_reads_itself():
    case = problems.ridge()
    outer = lambda w, h, d, key: jnp.sum((h["log_l2"] - 1) ** 2)
    problem = hg.BilevelProblem(case.problem.inner_loss, outer, case.problem.train, case.problem.valid)
    alone = {"log_l2": case.hparams["log_l2"]}
    estimate = laws.first_step(hg.Reverse(SGD), problems.Case(problem, case.params, alone))[0]
    np.testing.assert_allclose(estimate.hypergradient["log_l2"], 2 * (alone["log_l2"] - 1))
    nowhere = hg.BilevelProblem(
        case.problem.inner_loss, lambda w, h, d, key: jnp.sum(d["y"]), *[case.problem.train] * 2
    )
    with pytest.raises(
        ValueError, match=r"hparams\['log_l2'\] does not enter the outer loss, which does not depend on"
    ):
        hg.Reverse(SGD).init(nowhere, case.params, alone)


def test_weights_of_two_types_are_named():
    loss = lambda w, h, d, key: jnp.sum(w["a"] ** 2) + jnp.exp(h) * jnp.sum(w["b"].astype(w["a"].dtype) ** 2)
    problem = hg.BilevelProblem(loss, loss, jnp.ones(1), jnp.ones(1))
    params = {"a": jnp.ones(2), "b": jnp.ones(2, jnp.float32)}
    with pytest.raises(TypeError, match=r"params\['a'\] is float64, params\['b'\] is float32"):
        hg.Reverse(SGD).init(problem, params, jnp.zeros(()))


@pytest.mark.parametrize("make", [hg.DrMAD(SGD), MAID])
def test_hyperparameters_of_another_precision_than_the_weights(make):
    case = problems.ridge()
    hparams = jax.tree.map(lambda h: jnp.asarray(h, jnp.float32), case.hparams)
    fit = lambda w, d: jnp.mean((d["x"] @ w - d["y"]) ** 2)
    wide = lambda h: jnp.asarray(h["log_l2"], jnp.float64)
    inner = lambda w, h, d, key: fit(w, d) + jnp.sum(jnp.exp(wide(h)) * w**2)
    problem = hg.BilevelProblem(inner, lambda w, h, d, key: fit(w, d), case.problem.train, case.problem.valid)
    hparams = {"log_l2": hparams["log_l2"]}
    state = make.init(problem, case.params, hparams)
    if make is MAID:
        after, _ = make.step(problem, state, laws.KEY)
        assert after.hparams["log_l2"].dtype == jnp.float32
    else:
        estimate, _ = make.step(problem, hparams, state, laws.KEY)
        assert estimate.hypergradient["log_l2"].dtype == jnp.float32


@pytest.mark.parametrize("convert", [float, np.asarray])
def test_a_loss_that_takes_a_traced_number_to_the_host_is_named(convert):
    case = problems.ridge()
    penalty = lambda w, h, d, key: case.problem.inner_loss(w, h, d, key) + convert(h["log_l2"][0]) * jnp.sum(w**2)
    problem = hg.BilevelProblem(penalty, case.problem.outer_loss, case.problem.train, case.problem.valid)
    with pytest.raises(ValueError, match=r"^inner_loss(?s:.*)jax.numpy") as caught:
        hg.Reverse(SGD).init(problem, case.params, case.hparams)
    assert "lax.while_loop" not in str(caught.value)


@pytest.mark.slow
def test_an_inner_step_leaks_no_tracer():
    case = problems.ridge()
    with jax.checking_leaks():
        hg.Reverse(hg.OptaxSolver(optax.sgd(0.1), 6)).init(case.problem, case.params, case.hparams)
