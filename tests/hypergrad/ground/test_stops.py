"""Stops of a gradient: found where they cut a derivative, and not where they change nothing."""

import warnings

import jax
import jax.numpy as jnp
import optax
import pytest

import hypergrad as hg
from hypergrad.ground.stops import cut_by_stops, holds_stops
from hypergrad.testing import laws, problems

stop = jax.lax.stop_gradient
POINT, DIRECTION = jnp.array([0.3, -0.7, 1.1]), jnp.array([1.0, 2.0, -0.5])
on_the_host = lambda w: jax.pure_callback(abs, jax.ShapeDtypeStruct((), w.dtype), w)
MATRIX = lambda w: jnp.outer(w, w) + 3 * jnp.eye(3)
CUT = {
    "product": lambda w: jnp.sum(w**2 * stop(w)),
    "compiled": lambda w: jax.jit(lambda w: jnp.sum(w**2 * stop(w)))(w),
    "again": jax.checkpoint(lambda w: jnp.sum(w**2 * stop(w))),
    "carried": lambda w: jax.lax.scan(lambda c, _: (c * stop(c), None), jnp.sum(w), None, length=3)[0],
    "branch": lambda w: jax.lax.cond(w[0] > 0, lambda w: jnp.sum(w**2 * stop(w)), jnp.sum, w),
    "pseudo-labels": lambda w: jnp.sum((jnp.tanh(2 * w) - stop(jnp.tanh(w))) ** 2),
    "straight through": lambda w: jnp.sum((w + stop(jnp.round(w) - w) - 1) ** 4),
    "norm": lambda w: jnp.sum((w / stop(jnp.linalg.norm(w)) - 1) ** 2),
}
HARMLESS = {
    "none": lambda w: jnp.sum(w**4),
    "softmax": lambda w: jax.nn.softmax(w)[0] ** 2 + jax.nn.logsumexp(w) ** 2,
    "cross-entropy": lambda w: optax.softmax_cross_entropy_with_integer_labels(w, 0) ** 2,
    "linear systems": lambda w: (
        jnp.sum(jnp.linalg.solve(MATRIX(w), w)) + jnp.sum(jax.scipy.linalg.solve(MATRIX(w), w, assume_a="pos"))
    ),
    "labels": lambda w: -jax.nn.log_softmax(w)[stop(jnp.argmax(w))],
    "a callback": lambda w: jnp.sum(w**4) * on_the_host(stop(w[0])),
    "a part": lambda w: w[0] ** 4 + stop(jnp.max(w)) * w[1] ** 2,
}


@pytest.mark.parametrize("name", CUT)
def test_a_stop_that_cuts_a_derivative_is_found(name):
    gradient = jax.grad(CUT[name])
    assert holds_stops(jax.make_jaxpr(gradient)(POINT))
    assert cut_by_stops(gradient, POINT, DIRECTION)


@pytest.mark.parametrize("name", HARMLESS)
def test_others_are_passed_over(name):
    assert not holds_stops(jax.make_jaxpr(jax.grad(HARMLESS[name]))(POINT))


def test_a_stop_that_changes_nothing_is_measured_as_such():
    gradient = jax.grad(lambda w: jnp.sum(w**4) + stop(jnp.sum(w)) - jnp.sum(w) * stop(0 * jnp.sum(w)))
    assert holds_stops(jax.make_jaxpr(gradient)(POINT)) and not cut_by_stops(gradient, POINT, DIRECTION)


def test_without_a_stop_there_may_be_no_derivative():
    gradient = jax.grad(lambda w: jnp.sum(w**2 * stop(w)) * on_the_host(2 * stop(w[0])))
    assert holds_stops(jax.make_jaxpr(gradient)(POINT)) and not cut_by_stops(gradient, POINT, DIRECTION)


def halves(w, hparams, data, key):
    """A ridge problem one of whose weights in every square is stopped: another derivative of the same gradient."""
    return jnp.mean((data["x"] @ w - data["y"]) ** 2) + 2 * jnp.sum(jnp.exp(hparams) * w * stop(w))


def ridge(w, hparams, data, key):
    return jnp.mean((data["x"] @ w - data["y"]) ** 2) + jnp.sum(jnp.exp(hparams) * w**2)


def distance(w, hparams, data, key):
    return jnp.mean((data["x"] @ w - data["y"]) ** 2)


CASE = problems.ridge()
ARGUMENTS = CASE.params, CASE.hparams["log_l2"]
SGD, LBFGS = hg.OptaxSolver(optax.sgd(0.1), 3), hg.OptaxSolver(optax.lbfgs(0.1, linesearch=None), 3)
MAKE = {
    "reverse": hg.Reverse,
    "forward": hg.Forward,
    "implicit": hg.Implicit,
    "maid": hg.MAID,
    "soba": lambda inner: hg.SOBA(*[optax.sgd(0.1)] * 3),
}


def problem(inner_loss):
    return hg.BilevelProblem(inner_loss, distance, CASE.problem.train, CASE.problem.valid)


@pytest.mark.parametrize("name", MAKE)
def test_training_whose_derivative_is_cut_is_named(name):
    with pytest.warns(UserWarning, match="inner_loss holds a stop_gradient that cuts"):
        MAKE[name](SGD).init(problem(halves), *ARGUMENTS)
    MAKE[name](SGD).init(problem(ridge), *ARGUMENTS)


STOPPED_OUTER = {
    "by weights": lambda w, h, data, key: jnp.sum(w * stop(w)) + jnp.sum(h),
    "by hyperparameters": lambda w, h, data, key: distance(w, h, data, key) + jnp.sum(h**2 * stop(h)),
}


@pytest.mark.parametrize("kind", STOPPED_OUTER)
@pytest.mark.parametrize("name", MAKE)
def test_an_outer_loss_whose_derivative_is_cut_is_named(name, kind):
    stopped = hg.BilevelProblem(ridge, STOPPED_OUTER[kind], CASE.problem.train, CASE.problem.valid)
    with pytest.warns(UserWarning, match="outer_loss holds a stop_gradient that cuts its derivative"):
        MAKE[name](SGD).init(stopped, *ARGUMENTS)


def test_training_whose_derivative_by_hyperparameters_is_cut_is_named():
    """The penalty is straight through: it acts as one rounded, and its derivative is that of one that is not."""
    rounded = lambda h: h + stop(jnp.round(h) - h)
    with pytest.warns(UserWarning, match="inner_loss holds a stop_gradient that cuts"):
        hg.Reverse(SGD).init(problem(lambda w, h, data, key: ridge(w, rounded(h), data, key)), *ARGUMENTS)
    fast = hg.OptaxSolver(lambda h: optax.sgd(0.1 * jnp.exp(h[0] * stop(h[0]))), 3)
    with pytest.warns(UserWarning, match="optimiser .* holds a stop_gradient that cuts"):
        hg.Reverse(fast).init(problem(ridge), *ARGUMENTS)


def test_the_way_to_freeze_weights_is_named():
    """Weights that are stopped, and decayed by the optimiser, are not constant; frozen ones are."""
    frozen = lambda w, h, data, key: ridge(w["moved"] + stop(w["held"]), h, data, key)
    outer = lambda w, h, data, key: distance(w["moved"] + w["held"], h, data, key)
    rows, params = (CASE.problem.train, CASE.problem.valid), {"moved": CASE.params, "held": CASE.params + 1}
    with pytest.warns(UserWarning, match=r"freeze weights by BilevelProblem\(trainable="):
        hg.Reverse(SGD).init(hg.BilevelProblem(frozen, outer, *rows), params, ARGUMENTS[1])
    fixed = hg.BilevelProblem(frozen, outer, *rows, trainable={"moved": True, "held": False})
    hg.Reverse(SGD).init(fixed, params, ARGUMENTS[1])


@pytest.mark.slow
def test_a_line_search_is_refused_before_its_stops_are_measured():
    with pytest.raises(ValueError, match="loop of unknown length"):
        hg.Reverse(hg.OptaxSolver(optax.lbfgs(), 2)).init(problem(ridge), *ARGUMENTS)


@pytest.mark.slow
def test_inside_a_transformation_too():
    with pytest.warns(UserWarning, match="inner_loss holds a stop_gradient that cuts"):
        jax.jit(lambda h: hg.value_and_hypergrad(problem(halves), hg.Reverse(SGD))(h, CASE.params, laws.KEY))(
            ARGUMENTS[1]
        )


@pytest.mark.slow
def test_an_optimiser_that_stops_is_named():
    with pytest.warns(UserWarning, match="optimiser .* holds a stop_gradient that cuts"):
        hg.Reverse(LBFGS).init(problem(ridge), *ARGUMENTS)


def test_what_takes_no_derivative_of_training_does_not_warn():
    with warnings.catch_warnings(action="error"):
        hg.ES(SGD, 2).init(problem(halves), *ARGUMENTS)
        hg.evaluate(SGD, problem(halves), *ARGUMENTS, laws.KEY)
        hg.Implicit(LBFGS).init(problem(ridge), *ARGUMENTS)
