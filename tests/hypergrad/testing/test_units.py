"""The law of units holds for what adapts its own steps, and catches rules that depend on a unit or a constant."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest

import hypergrad as hg
from hypergrad.ground.units import norm
from hypergrad.testing import units_of_the_losses
from hypergrad.testing.changes import in_single_precision
from hypergrad.testing.problems import ridge

CG = hg.CG(20, rtol=1e-12)
SEARCHES = {
    "HOAG": lambda c: hg.GradientSearch(hg.HOAG(hg.OptaxSolver(optax.sgd(0.3 / c), 300), CG), hg.adaptive_step()),
    "Implicit, far from solved": lambda c: hg.GradientSearch(
        hg.Implicit(hg.OptaxSolver(optax.sgd(0.3 / c), 4), CG), hg.adaptive_step()
    ),
    "Nystrom": lambda c: hg.GradientSearch(
        hg.Implicit(hg.OptaxSolver(optax.sgd(0.3 / c), 300), hg.Nystrom(2)), hg.adaptive_step()
    ),
    "Reverse": lambda c: hg.GradientSearch(hg.Reverse(hg.OptaxSolver(optax.sgd(0.3 / c), 5)), hg.adaptive_step()),
    "signs": lambda c: hg.GradientSearch(hg.DrMAD(hg.OptaxSolver(optax.sgd(0.3 / c), 5)), optax.sign_sgd(0.1)),
    "MAID": lambda c: hg.MAID(hg.OptaxSolver(optax.sgd(0.3 / c), 300), CG),
}


@pytest.mark.variants(slow=["Reverse"])
@pytest.mark.parametrize("make", SEARCHES.values(), ids=SEARCHES)
def test_units_do_not_matter(make):
    units_of_the_losses(make, ridge())


@pytest.mark.variants(slow=["Reverse"])
@pytest.mark.parametrize("make", SEARCHES.values(), ids=SEARCHES)
def test_units_do_not_matter_in_single_precision(make):
    with jax.enable_x64(False):
        units_of_the_losses(make, in_single_precision(ridge()), steps=6)


def step_with_a_unit():
    """`adaptive_step`, but its first step is the gradient itself where that is small."""
    inner = hg.adaptive_step()

    def update(updates, state, params=None, **extra):
        found, after = inner.update(updates, state, params, **extra)
        small = (state.lipschitz == 0) & (norm(updates) < 1e-3)
        return optax.tree.where(small, optax.tree.scale(-1, updates), found), after

    return optax.GradientTransformationExtraArgs(inner.init, update)


class HiddenByAConstant(hg.AbstractEstimator):
    """An implicit estimator that compares its gap with the outer loss."""

    implicit: hg.Implicit

    def init(self, problem, params, hparams):
        return self.implicit.init(problem, params, hparams)

    def step(self, problem, hparams, state, key):
        estimate, state = self.implicit.step(problem, hparams, state, key)
        near = estimate.stats.diagnostics["outer_gap"] <= 1e-2 * jnp.abs(estimate.value)
        status = jnp.where(near, hg.Status.OK, hg.Status.INNER_UNCONVERGED)
        return eqx.tree_at(lambda e: e.stats.status, estimate, jnp.int32(status)), state


@pytest.mark.slow
def test_a_step_that_depends_on_the_unit_is_caught():
    make = lambda c: hg.GradientSearch(hg.Reverse(hg.OptaxSolver(optax.sgd(0.3 / c), 5)), step_with_a_unit())
    with pytest.raises(AssertionError, match=r"in Units\(outer=7\.45.*relative error"):
        units_of_the_losses(make, ridge())


@pytest.mark.slow
def test_a_status_that_a_constant_hides_is_caught():
    make = lambda c: hg.GradientSearch(
        HiddenByAConstant(hg.Implicit(hg.OptaxSolver(optax.sgd(0.3 / c), 4), CG)), optax.sign_sgd(0.1)
    )
    with pytest.raises(AssertionError, match=r"constant=10000\.0.*statuses"):
        units_of_the_losses(make, ridge())


@pytest.mark.slow
def test_an_optimiser_that_follows_the_gradients_size_is_caught():
    make = lambda c: hg.GradientSearch(hg.Reverse(hg.OptaxSolver(optax.sgd(0.3 / c), 5)), optax.sgd(0.1))
    with pytest.warns(RuntimeWarning), pytest.raises(AssertionError, match=r"in Units\(outer=134217728"):
        units_of_the_losses(make, ridge())
