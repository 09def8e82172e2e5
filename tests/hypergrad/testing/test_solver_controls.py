"""Planted mistakes about the inner solver's state, number types and hidden hyperparameters are caught."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypergrad as hg
import hypergrad.estimators.base
import hypergrad.estimators.common.accuracy
import hypergrad.estimators.common.implicit
import hypergrad.estimators.common.refusals
import hypergrad.estimators.common.tangents
import hypergrad.estimators.drmad
import hypergrad.estimators.forward
import hypergrad.estimators.reverse
import hypergrad.linear.base
import hypergrad.problem.checks
import hypergrad.stats
from hypergrad.ground.tree import vdot
from hypergrad.testing import BrokenLawsError, Claim, check_estimator, laws, solver_laws


def broken(law, make, claim, **options):
    """The law is broken, with all optimisers at hand."""
    with pytest.raises(BrokenLawsError) as info:
        check_estimator(make, claim=claim, only=[law], examples=2, shrink=0, **options)
    assert [broken.law.law for broken in info.value.broken] == [law]


@pytest.mark.slow
def test_what_a_warm_start_takes_from_the_hyperparameters_left_out(plant):
    """A learning rate kept in the optimiser's state counts as a constant (optax, inject_hyperparams)."""
    nothing = lambda right: lambda training, *_: jax.tree.map(jnp.zeros_like, training.hparams)
    plant(hypergrad.estimators.reverse, "through_start", nothing)
    warm = lambda inner: hg.Reverse(inner, warm_start=True)
    broken(solver_laws.derivative_from_any_state, warm, Claim.EXACT)


@pytest.mark.slow
def test_counters_left_at_the_knot(plant):
    """Gradients are accumulated to another rhythm than in training."""
    plant(hypergrad.estimators.drmad, "with_discrete", lambda right: lambda state, leaves: state)
    broken(laws.is_reverse, hg.DrMAD, Claim.QUADRATIC)


def test_conjugate_of_a_derivative(plant):
    """A Hermitian product stands where a derivative is applied to a direction."""
    plant(hypergrad.estimators.forward, "pairing", lambda right: lambda g, z: jnp.real(vdot(g, z)))
    broken(solver_laws.complex_weights, hg.Forward, Claim.EXACT)


@pytest.mark.slow
def test_complex_system_solved_as_if_it_were_linear(plant):
    whole = lambda right: lambda solve, matvec, b, init, rtol, sign: solve(matvec, b, init, rtol)
    plant(hypergrad.linear.base, "_in_pairs", whole)
    broken(solver_laws.complex_closed_form, lambda inner: hg.Implicit(inner, hg.Dense()), Claim.STATIONARY)


def test_hyperparameters_looked_at_by_leaf_alone(plant):
    nothing = lambda right: lambda *arguments: [np.zeros(leaf.shape, bool) for leaf in jax.tree.leaves(arguments[-1])]
    plant(hypergrad.estimators.common.refusals, "_unseen_entries", nothing)
    broken(solver_laws.unseen_is_refused, hg.Implicit, Claim.STATIONARY)


def test_a_setting_of_the_first_state_that_a_warm_start_forgets(plant):
    plant(hypergrad.estimators.base, "refuse_warm", lambda right: lambda *arguments: None)
    broken(solver_laws.forgotten_is_refused, lambda inner: hg.Reverse(inner, warm_start=True), Claim.EXACT)


@pytest.mark.slow
def test_error_measured_along_the_hypergradient_alone(plant):
    def mutation(right):
        def along(directions, training, state, warm_start, found):
            size = optax.tree.norm(found)
            unit = optax.tree.scale(1 / size, found)
            true = hypergrad.estimators.common.tangents.slope(training, state, warm_start, unit)
            return hypergrad.estimators.common.accuracy.Accuracy(jnp.abs(size - true) / jnp.abs(true), jnp.sign(true))

        return along

    plant(hypergrad.estimators.common.accuracy, "measure", mutation)
    broken(solver_laws.measured_error, hg.DrMAD, Claim.QUADRATIC)


def test_a_criterion_that_counts_taken_for_a_smooth_one(plant):
    plant(hypergrad.problem.checks, "refuse_flat_loss", lambda right: lambda *arguments: None)
    broken(solver_laws.flat_loss_is_refused, hg.Reverse, Claim.EXACT)


def test_counts_summed_in_the_precision_of_the_machine(plant):
    """A sum of 32-bit words has 64 bits where JAX has them, and no state of a search is like the one before."""
    plant(hypergrad.stats.Counts, "summed", lambda right: property(lambda counts: jax.tree.map(jnp.sum, counts)))
    broken(laws.steps_are_counted, lambda inner: hg.ES(inner, 2), Claim.UNBIASED)


def test_kinks_passed_over_in_silence(plant):
    nothing = lambda right: property(lambda point: jnp.bool_(False))
    plant(hypergrad.estimators.common.implicit.StationaryPoint, "unconverged", nothing)
    broken(solver_laws.kinks_are_flagged, lambda inner: hg.Implicit(inner, hg.CG(10)), Claim.STATIONARY)
