"""Training that diverges, or has no loss, in a call of tune."""

import jax.numpy as jnp
import pytest

import hypergrad as hg

from .test_tune import noisy_inner, noisy_quadratic, quadratic_outer, tune


def test_training_that_never_has_a_loss_says_so():
    problem, params = noisy_quadratic()
    blind = hg.BilevelProblem(noisy_inner, lambda *args: jnp.nan * quadratic_outer(*args), problem.train, problem.valid)
    with pytest.raises(FloatingPointError, match="no start has a finite loss"):
        tune(blind, params, {"log_rate": jnp.log(0.01)}, budget=200)


@pytest.mark.parametrize("holdout", [False, True])
def test_training_that_is_worse_than_none_says_so(holdout):
    """The loss is finite for some updates from a rate of 9, and grows at each."""
    problem, params = noisy_quadratic()
    options = {"starts": [], "budget": 200, "scale": {"log_rate": 0.01}, "holdout": problem.valid if holdout else None}
    with pytest.warns(RuntimeWarning, match="the best loss, .*, is above that of the params given, .*: no start"):
        tuned = tune(problem, params, {"log_rate": jnp.log(9.0)}, **options)
    assert float(tuned.value) > float(quadratic_outer(params, None, problem.valid, None))
