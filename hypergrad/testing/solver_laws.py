"""Laws on the inner solver under an estimator: its state, its number types, and hyperparameters that it hides.

As in `laws`, each function raises AssertionError where its law is broken.
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

import hypergrad as hg

from .changes import in_single_precision
from .laws import KEY, Make, answer, closed_form, differences, finite_differences, first_step
from .problems import Case
from .tolerances import assert_close, ensure, relative_error

MISSED_AT_KINKS = 0.2  # relative error of a hypergradient at kinks that need not be flagged
COSINE_OF_HALVES = 0.99  # of a hypergradient in half precision with the one in float32


def derivative_from_any_state(estimator: hg.AbstractEstimator, case: Case) -> None:
    """The hypergradient from a new, a used or a resumed state is the derivative of the value of the next step."""
    state = estimator.init(case.problem, case.params, case.hparams)
    elsewhere = jax.tree.map(lambda h: h + 0.1, case.hparams)
    for k, hparams in enumerate((None, case.hparams, elsewhere)):
        if hparams is not None:
            _, state = estimator.step(case.problem, hparams, state, jax.random.fold_in(KEY, k))
        value = lambda h, state=state: estimator.step(case.problem, h, state, KEY)[0].value
        found = estimator.step(case.problem, case.hparams, state, KEY)[0].hypergradient
        assert_close(found, differences(value, case.hparams), "difference")


def unused_is_refused(estimator: hg.AbstractEstimator, case: Case) -> None:
    """A hyperparameter that enters neither training nor the outer loss is refused by its path."""
    stray = case.hparams | {"stray": jnp.zeros(2)}
    _is_refused(lambda: estimator.init(case.problem, case.params, stray), "hparams['stray']")


def flat_is_refused(estimator: hg.AbstractEstimator, case: Case) -> None:
    """A hyperparameter that enters through a comparison alone, whose derivative is zero, is refused by its path."""
    loss = lambda w, h, d, key: case.problem.inner_loss(w, h, d, key) * jnp.where(h["stray"] > 0, 1.0, 2.0)
    problem = hg.BilevelProblem(loss, case.problem.outer_loss, case.problem.train, case.problem.valid)
    stray = case.hparams | {"stray": jnp.ones(())}
    _is_refused(lambda: estimator.init(problem, case.params, stray), "hparams['stray']")


def flat_loss_is_refused(estimator: hg.AbstractEstimator, case: Case) -> None:
    """An outer loss that depends on the weights through a comparison alone, as a number of errors, is refused."""
    old = case.problem
    count = lambda loss: jnp.sum(loss > 0).astype(loss.dtype)
    loss = lambda w, h, d, key: count(old.outer_loss(w, h, d, key)) + jnp.sum(h["log_l2"] ** 2) + h["unused"]
    problem = hg.BilevelProblem(old.inner_loss, loss, old.train, old.valid)
    _is_refused(lambda: estimator.init(problem, case.params, case.hparams), "outer_loss")


def unseen_is_refused(make: Make, inner: hg.AbstractInnerSolver, case: Case) -> None:
    """An entry of an array that acts through the optimiser alone is refused by its path and index."""
    flat = jnp.concatenate([jnp.ravel(case.hparams["log_l2"]), jnp.zeros(1)])
    given = lambda h: {"log_l2": h[:-1], "unused": 0.0}
    old, opt = case.problem, lambda h: optax.sgd(0.1 * jnp.exp(h[-1]))
    inner_loss, outer_loss = (
        lambda w, h, d, key, loss=loss: loss(w, given(h), d, key) for loss in (old.inner_loss, old.outer_loss)
    )
    problem = hg.BilevelProblem(inner_loss, outer_loss, old.train, old.valid)
    estimator = make(hg.OptaxSolver(opt, inner.num_steps))
    _is_refused(lambda: estimator.init(problem, case.params, flat), f"hparams[{len(flat) - 1}]")


def _is_refused(call: Callable[[], Any], path: str) -> None:
    try:
        call()
    except (TypeError, ValueError) as error:
        ensure(path in str(error), f"refused without naming {path}: {error}")
    else:
        ensure(False, f"{path} was accepted")


def forgotten_is_refused(make: Make, inner: hg.AbstractInnerSolver, case: Case) -> None:
    """A hyperparameter of the optimiser's first state moves the value of every step, or is refused by its path."""
    optimiser = lambda h: optax.adagrad(0.1, initial_accumulator_value=jnp.exp(h["unused"]))
    estimator = make(hg.OptaxSolver(optimiser, inner.num_steps))
    try:
        state = estimator.init(case.problem, case.params, case.hparams)
    except ValueError as error:
        ensure("hparams['unused']" in str(error), f"refused without naming hparams['unused']: {error}")
        return
    _, state = estimator.step(case.problem, case.hparams, state, KEY)
    moved = case.hparams | {"unused": case.hparams["unused"] + 1}
    values = [estimator.step(case.problem, h, state, KEY)[0].value for h in (case.hparams, moved)]
    ensure(values[0] != values[1], "hparams['unused'] was accepted and changes nothing at the second step")


def complex_weights(estimator: hg.AbstractEstimator, case: Case) -> None:
    """Complex weights have the derivative of the value as hypergradient, or are refused by name."""
    _right_or_refused(lambda: finite_differences(estimator, case))


def complex_closed_form(estimator: hg.AbstractEstimator, case: Case) -> None:
    """Complex weights have the hypergradient of the solved inner problem, or are refused by name."""
    _right_or_refused(lambda: closed_form(estimator, case))


def _right_or_refused(law: Callable[[], None]) -> None:
    try:
        law()
    except TypeError as error:
        ensure("params" in str(error) and "complex" in str(error), f"refused without a name: {error}")


def kinks_are_flagged(make: Make, inner: hg.AbstractInnerSolver, case: Case) -> None:
    """Weights that kinks of the inner loss hold at zero have the response zero, or the status tells.

    The Hessian sees no kink of |w|, and the hypergradient through it moves the weights.
    """
    old, settling = case.problem, optax.sgd(optax.exponential_decay(0.1, 50, 0.8))
    kinks = lambda w, h: 40 * jnp.sum(jnp.exp(h["log_l2"]) * jnp.abs(w))
    inner_loss = lambda w, h, data, key: old.inner_loss(w, h, data, key) + kinks(w, h)
    problem = hg.BilevelProblem(inner_loss, old.outer_loss, old.train, old.valid)
    estimator = make(hg.OptaxSolver(settling, inner.num_steps))
    estimate, _ = first_step(estimator, dataclasses.replace(case, problem=problem))
    direct = jax.grad(old.outer_loss, argnums=1)(jnp.zeros_like(case.params), case.hparams, old.valid, KEY)
    error = relative_error(estimate.hypergradient, direct)
    fine = error <= MISSED_AT_KINKS or int(estimate.stats.status) != hg.Status.OK
    ensure(fine, f"relative error {error:.3g}, and status OK")


def half_precision(make: Make, inner: hg.AbstractInnerSolver, case: Case) -> None:
    """Weights in bfloat16 and float16 point where those in float32 do, or the status tells, or they are refused.

    So they do where the outer loss is in a unit in which its gradient is hardly a number of float16, or none.
    """
    case = in_single_precision(case)
    params, hparams, old = case.params, case.hparams, case.problem
    expected = ravel_pytree(answer(make(inner), case)[1])[0]
    # The unit is data, so that all units share their compiled code.
    outer_loss = lambda w, h, data, key: data["unit"] * old.outer_loss(w, h, data, key).astype(jnp.float32)
    for kind, unit in itertools.product((jnp.bfloat16, jnp.float16), (1.0, 2.0**-24, 2.0**-40)):
        valid = old.valid | {"unit": jnp.float32(unit)}
        problem = hg.BilevelProblem(old.inner_loss, outer_loss, old.train, valid)
        estimator = make(inner)
        try:
            state = estimator.init(problem, params.astype(kind), hparams)
        except TypeError as error:
            ensure("params" in str(error), f"refused without a name: {error}")
            continue
        estimate, _ = estimator.step(problem, hparams, state, KEY)
        found = ravel_pytree(estimate.hypergradient)[0]
        cosine = float(found @ expected / (jnp.linalg.norm(found) * jnp.linalg.norm(expected)))
        fine = cosine >= COSINE_OF_HALVES or int(estimate.stats.status) != hg.Status.OK
        ensure(fine, f"cosine {cosine:.3g} with float32 in {kind.__name__}, loss in units of {unit:g}, and status OK")


def measured_error(make: Make, inner: hg.AbstractInnerSolver, case: Case) -> None:
    """An estimator that measures its error finds the true one; with few hyperparameters to rounding."""
    estimate, _ = first_step(make(inner), case)
    if "relative_error" not in estimate.stats.diagnostics:
        return
    error = relative_error(estimate.hypergradient, answer(hg.Reverse(inner), case)[1])
    found = float(estimate.stats.diagnostics["relative_error"])
    ensure(np.isclose(found, error, rtol=1e-6, atol=1e-8), f"measured {found:.6g}, in truth {error:.6g}")
    flagged = bool(hg.Status(int(estimate.stats.status)) & hg.Status.INACCURATE)
    ensure(flagged == (error > 0.2), f"error {error:.3g}, flagged {flagged}")
