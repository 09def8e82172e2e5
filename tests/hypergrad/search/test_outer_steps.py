"""Outer steps that optax has: quasi-Newton, and free of the scale of the outer loss."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypergrad as hg
from hypergrad.testing import laws

INNER = hg.OptaxSolver(optax.sgd(1.0), 1)  # ends at w = λ
CURVATURES, BEST = np.geomspace(1.0, 100.0, 6), np.arange(6) / 3
START = CURVATURES @ BEST**2 / 2
STEPS = 30
QUASI_NEWTON = optax.chain(optax.scale_by_lbfgs(), optax.scale(-1.0))


def run(optimiser, unit=1.0):
    """Moves λ from 0 on the outer loss c/2 Σ a_i (λ_i - λ*_i)², and returns its course."""
    follow = lambda w, h, data, key: jnp.sum((w - h) ** 2) / 2
    outer = lambda w, h, data, key: unit * jnp.sum(data * (w - BEST) ** 2) / 2
    problem = hg.BilevelProblem(follow, outer, CURVATURES, CURVATURES)
    search = hg.GradientSearch(hg.Reverse(INNER), optimiser)
    state = search.init(problem, jnp.zeros(6), jnp.zeros(6))
    return hg.run(search, problem, state, key=laws.KEY, budget=STEPS)[1]


@pytest.mark.slow
def test_quasi_newton_steps_are_far_below_the_best_fixed_step():
    """Descent at its best rate, 2/(a_1 + a_n), keeps (κ - 1)²/(κ + 1)² of the loss along the flattest direction."""
    assert run(QUASI_NEWTON).value[-1] < 1e-12 * START
    rate = 2 / (CURVATURES[0] + CURVATURES[-1])
    kept = (1 - rate * CURVATURES) ** (2 * (STEPS - 1))
    descent = run(optax.sgd(rate)).value[-1]
    assert descent == pytest.approx(np.sum(kept * CURVATURES * BEST**2) / 2) and descent > 0.2 * START


@pytest.mark.variants(quick=["Adam"], slow=["adaptive_step", "L-BFGS", "DoG"])
@pytest.mark.parametrize(
    "optimiser",
    [hg.adaptive_step(), QUASI_NEWTON, optax.contrib.dog(1.0), optax.adam(0.1, eps=1e-12)],
    ids=["adaptive_step", "L-BFGS", "DoG", "Adam"],
)
def test_the_course_does_not_depend_on_the_unit_of_the_outer_loss(optimiser):
    courses = [run(optimiser, unit).hparams for unit in (1.0, 1e4)]
    np.testing.assert_allclose(*courses, rtol=1e-3, atol=1e-6)
    assert np.ptp(courses[0]) > 1e-3


def test_descent_depends_on_it():
    assert np.max(np.abs(np.diff([run(optax.sgd(1e-4), unit).hparams[-1] for unit in (1.0, 10.0)], axis=0))) > 0.01


@pytest.mark.parametrize("optimiser", [optax.lbfgs(), optax.chain(optax.sgd(1.0), optax.scale_by_zoom_linesearch(5))])
def test_a_line_search_is_refused_by_name(optimiser):
    with pytest.raises(
        ValueError, match="optimiser, that of the hyperparameters, fails .*value_fn.* take adaptive_step"
    ):
        run(optimiser)


def test_gradients_are_accumulated_outside_as_inside():
    every_other, both = run(optax.MultiSteps(optax.sgd(0.01), 2)), run(optax.sgd(0.01))
    assert (every_other.hparams[1] == every_other.hparams[0]).all()
    np.testing.assert_allclose(every_other.hparams[::2], both.hparams[: STEPS // 2], rtol=1e-6)
