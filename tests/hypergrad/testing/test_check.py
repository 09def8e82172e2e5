"""The harness: every law can be broken, what is said then, and what it does not need."""

import itertools
import subprocess
import sys
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest
from hypothesis import given, settings

import hypergrad as hg
from hypergrad.estimators.common.accuracy import first_state
from hypergrad.testing import (
    BrokenLawsError,
    Claim,
    check,
    check_estimator,
    laws,
    problems,
    solver_laws,
    strategies,
)

from tests.helpers import ROOT, some_slow

calls = itertools.count(1)


class Spoilt(hg.AbstractEstimator):
    """Reverse mode with one mistake: `spoil` maps (problem, hparams, estimate, state) to the last two."""

    inner: hg.AbstractInnerSolver
    spoil: Callable

    def init(self, problem, params, hparams):
        return hg.Reverse(self.inner).init(problem, params, hparams)

    def step(self, problem, hparams, state, key):
        estimate, state = hg.Reverse(self.inner).step(problem, hparams, state, key)
        return self.spoil(problem, hparams, estimate, state)


@jax.custom_batching.custom_vmap
def unbatched(x):
    return x


@unbatched.def_vmap
def _(size, batched, x):
    return 2 * x, batched[0]


def each(change):
    """Spoil every leaf of the hypergradient."""

    def spoil(problem, hparams, estimate, state):
        changed = jax.tree.map(lambda g: change(g, problem), estimate.hypergradient)
        return eqx.tree_at(lambda e: e.hypergradient, estimate, changed), state

    return spoil


def other(where, change):
    """Spoil another part of the estimate."""
    return lambda problem, hparams, estimate, state: (eqx.tree_at(where, estimate, replace_fn=change), state)


def other_state(problem, hparams, estimate, state):
    return estimate, optax.tree.cast(state, jnp.float32)


class Careless(Spoilt):
    """It never looks at its hyperparameters before the first step."""

    def init(self, problem, params, hparams):
        partitioned = hg.problem.check_model(problem, params, hparams)
        return first_state(self.inner.start(problem, partitioned, hparams), hparams)


def wrong_in_halves(problem, hparams, estimate, state):
    half = jax.tree.leaves(estimate.params)[0].dtype.itemsize == 2
    return each(lambda g, problem: -g if half else g)(problem, hparams, estimate, state)


TOO_LARGE = each(lambda g, problem: 1.5 * g)
NO_MISTAKE = each(lambda g, problem: g)
SPOILT = {
    laws.finite_differences: TOO_LARGE,
    laws.plain_scan: TOO_LARGE,
    laws.is_reverse: TOO_LARGE,
    laws.is_reverse_on_average: TOO_LARGE,
    laws.closed_form: TOO_LARGE,
    laws.scale_of_the_inner_loss: each(lambda g, problem: g * problem.train.get("scale", 1.0)),
    laws.chain_rule: each(lambda g, problem: g * jnp.abs(g)),
    laws.any_pytree: each(lambda g, problem: g / jnp.linalg.norm(g)),
    laws.constants_and_scale: each(lambda g, problem: g + 1e-3),
    laws.unused_is_zero: each(lambda g, problem: g + 1e-3),
    laws.order_of_rows: each(lambda g, problem: g * problem.train["x"][0, 0]),
    laws.order_of_weights: each(lambda g, problem: g * problem.train["x"][0, 0]),
    laws.batched_is_one_by_one: each(lambda g, problem: unbatched(g)),
    laws.compiled_is_not_compiled: each(lambda g, problem: g * (1 + isinstance(g, jax.core.Tracer))),
    laws.float32_is_near_float64: each(lambda g, problem: g.astype(jnp.float64)),
    laws.state_is_a_fixed_point: other_state,
    laws.value_is_measured: other(lambda e: e.value, lambda value: value + 1e-3),
    laws.steps_are_counted: other(lambda e: e.stats.counts, lambda counts: hg.Counts()),
    laws.same_call_same_bits: each(lambda g, problem: g * (1 + 1e-12 * next(calls))),
    solver_laws.derivative_from_any_state: TOO_LARGE,
    solver_laws.unused_is_refused: NO_MISTAKE,
    solver_laws.flat_is_refused: NO_MISTAKE,
    solver_laws.flat_loss_is_refused: NO_MISTAKE,
    solver_laws.unseen_is_refused: NO_MISTAKE,
    solver_laws.forgotten_is_refused: other(lambda e: e.value, jnp.zeros_like),
    solver_laws.complex_weights: TOO_LARGE,
    solver_laws.complex_closed_form: TOO_LARGE,
    solver_laws.kinks_are_flagged: TOO_LARGE,
    solver_laws.half_precision: wrong_in_halves,
    solver_laws.measured_error: other(
        lambda e: e.stats.diagnostics, lambda found: {"relative_error": jnp.asarray(0.1)}
    ),
}
CARELESS = (
    solver_laws.unused_is_refused,
    solver_laws.flat_is_refused,
    solver_laws.flat_loss_is_refused,
    solver_laws.unseen_is_refused,
)


def test_every_law_has_a_mistake():
    assert {law.law for law in check.CONTRACT} == set(SPOILT)


LONG = ("compiled_is_not_compiled", "measured_error", "any_pytree", "chain_rule", "constants_and_scale")


@pytest.mark.parametrize("law", some_slow({str(law): (law,) for law in check.CONTRACT}, *LONG))
def test_every_law_catches_its_mistake(law):
    claim = next(claim for claim in Claim if claim in law.claims)
    kind = Careless if law.law in CARELESS else Spoilt
    spoilt, few = (
        lambda inner: kind(inner, SPOILT[law.law]),
        {"examples": 2, "num_steps": 1, "optimisers": SGD, "shrink": 0},
    )
    with pytest.raises(BrokenLawsError) as info:
        check_estimator(spoilt, claim=claim, only=[law.law], **few)
    assert [broken.law for broken in info.value.broken] == [law]
    assert isinstance(info.value.broken[0].error, AssertionError), info.value


SGD = {"sgd": problems.OPTIMISERS["sgd"]}
SMALL = {"optimisers": SGD, "num_steps": 1, "shrink": 0}
CHEAP = [laws.unused_is_zero, laws.steps_are_counted, laws.constants_and_scale]


@pytest.mark.slow
def test_a_broken_law_says_its_name_meaning_and_smallest_example():
    def biased(inner):
        return Spoilt(inner, SPOILT[laws.unused_is_zero])

    with jax.enable_x64(False), pytest.raises(BrokenLawsError) as info:
        check_estimator(biased, only=CHEAP, shrink=4)
    message = str(info.value)
    assert message.startswith("biased breaks 2 of 3 laws\n")
    assert "\nunused_is_zero: A hyperparameter that changes nothing" in message
    assert " on ridge(0, 1, 4), sgd, T = 1\n" in message  # the smallest there is
    assert "found 0.001" in message
    assert "\nconstants_and_scale: " in message and " > 1e-09\n" in message
    with pytest.raises(BrokenLawsError, match="breaks 1 of 2 laws"):
        check_estimator(biased, only=CHEAP, without=[laws.constants_and_scale], **SMALL)
    with pytest.raises(BrokenLawsError) as info:
        check_estimator(biased, only=CHEAP, fail_fast=True, **SMALL)
    assert len(info.value.broken) == 1


@pytest.mark.slow
def test_what_holds_is_returned_and_a_tolerance_can_be_loosened():
    almost = each(lambda g, problem: g + 1e-10)
    options = {"only": [laws.constants_and_scale], **SMALL}
    assert check_estimator(hg.Reverse, **options) == ("constants_and_scale",)
    with pytest.raises(BrokenLawsError):
        check_estimator(lambda inner: Spoilt(inner, almost), **options)
    check_estimator(lambda inner: Spoilt(inner, almost), **options, loosened=1e8)


def test_an_estimator_that_raises_is_reported():
    def refuses(inner):
        raise RuntimeError("no such solver")

    with pytest.raises(BrokenLawsError, match=r"RuntimeError\('no such solver'\)") as info:
        check_estimator(refuses, only=[laws.steps_are_counted])
    assert isinstance(info.value.__cause__, RuntimeError)


@pytest.mark.slow
def test_optimisers_can_be_restricted():
    seen = []

    def picky(inner):
        seen.append(inner.options["opt"])
        return hg.Reverse(inner)

    mine = optax.sgd(0.05, 0.5)
    check_estimator(picky, claim=Claim.EXACT, optimisers={"mine": mine}, only=[laws.plain_scan, laws.unused_is_zero])
    assert seen and all(optimiser is mine for optimiser in seen)


def test_a_check_without_laws_is_refused():
    with pytest.raises(ValueError, match=r"no law of Claim.APPROXIMATE is left.*only and without"):
        check_estimator(hg.Reverse, only=[laws.finite_differences])


@pytest.mark.slow
@settings(max_examples=4)
@given(layout=strategies.hyperparameters(4), optimiser=strategies.optimisers())
def test_hyperparameters_are_pytrees_of_so_many_numbers(layout, optimiser):
    assert sum(leaf.size for leaf in jax.tree.leaves(layout)) == 4
    laws.any_pytree(hg.Reverse(hg.OptaxSolver(optimiser, 3)), problems.ridge(), layout)


@pytest.mark.slow
@settings(max_examples=4)
@given(case=strategies.problems(), schedule=strategies.schedules())
def test_values_are_measured_on_all_problems_and_schedules(case, schedule):
    laws.value_is_measured(hg.Reverse(hg.OptaxSolver(optax.sgd(schedule), 3)), case)


MISSING = """
import sys, hypergrad
print({'hypothesis', 'hypergrad.testing'} & set(sys.modules))
sys.modules['hypothesis'] = None
import hypergrad.testing
"""


@pytest.mark.slow
def test_the_library_does_not_import_it_and_a_missing_hypothesis_is_named():
    found = subprocess.run([sys.executable, "-c", MISSING], capture_output=True, text=True, cwd=ROOT)
    assert found.stdout.strip() == "set()"
    assert "ImportError: hypergrad.testing needs hypothesis: pip install 'hypergrad-jax[testing]'" in found.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("make", None),
        ("claim", "exact"),
        ("optimisers", {"sgd": 0.1}),
        ("num_steps", 0),
        ("examples", 10**9),
        ("loosened", -1.0),
        ("only", ["closed_form"]),
        ("without", laws.closed_form),
        ("fail_fast", 1),
        ("shrink", 0.5),
    ],
)
def test_wrong_arguments_are_named(name, value):
    arguments = {"make": hg.Reverse, "optimisers": problems.TRAINING} | {name: value}
    with pytest.raises((TypeError, ValueError), match=f"^{name} must be"):
        check_estimator(**arguments)
