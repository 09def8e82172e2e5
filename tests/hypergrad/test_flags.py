"""The flags of an estimate are said where value and hypergradient are all that comes back."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypergrad as hg
from hypergrad.testing import laws, problems

FEW = hg.OptaxSolver(optax.sgd(0.1), 3)
CASE = problems.ridge()
PROBLEM = hg.BilevelProblem(
    CASE.problem.inner_loss, lambda w, hparams, data, key: jnp.sum((w - 1) ** 2), CASE.problem.train, CASE.problem.valid
)
HPARAMS = {"log_l2": CASE.hparams["log_l2"]}


def answer(estimator, hparams=HPARAMS):
    return hg.value_and_hypergrad(PROBLEM, estimator)(hparams, CASE.params, laws.KEY)


FLAGGED = {"INNER_UNCONVERGED": hg.Implicit(FEW), "INACCURATE": hg.Greedy(hg.OptaxSolver(optax.sgd(0.01), 20))}


@pytest.mark.parametrize("flag", FLAGGED)
def test_flags_are_said_with_the_numbers(flag):
    estimator = FLAGGED[flag]
    with pytest.warns(RuntimeWarning, match=f"the hypergradient is flagged .*{flag}.* see hypergrad.Status") as caught:
        value, found = answer(estimator)
    assert caught[0].filename == __file__
    state = estimator.init(PROBLEM, CASE.params, HPARAMS)
    estimate, _ = estimator.step(PROBLEM, HPARAMS, state, laws.KEY)
    assert value == estimate.value
    np.testing.assert_array_equal(found["log_l2"], estimate.hypergradient["log_l2"])


def test_nothing_is_said_of_a_good_estimate_or_inside_a_transformation():
    with warnings.catch_warnings(action="error"):
        answer(hg.Reverse(FEW))
        jax.jit(lambda h: answer(hg.Implicit(FEW), h))(HPARAMS)
        jax.vmap(lambda h: answer(hg.Implicit(FEW), h)[0])(jax.tree.map(lambda h: jnp.stack([h, h]), HPARAMS))
