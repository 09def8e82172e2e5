"""Estimators in any unit of the outer loss, also where squares of its gradient are no numbers of float32."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypergrad as hg
from hypergrad.testing import laws
from hypergrad.testing.changes import in_single_precision
from hypergrad.testing.problems import ridge

SGD, MOMENTUM = (hg.OptaxSolver(optax.sgd(0.2, 0.5), 9), hg.OptaxSolver(hg.MomentumSGD(0.2, 0.5), 9))
ESTIMATORS = {
    "Reverse": hg.Reverse(SGD),
    "Reverse, residuals": hg.Reverse(SGD, remat=False),
    "Reverse, horizon": hg.Reverse(SGD, horizon=4, checkpoints="sqrt", check=None),
    "DrMAD": hg.DrMAD(SGD, knots=2, check=None),
    "DrMAD, cut off": hg.DrMAD(hg.OptaxSolver(optax.sgd(2.0), 9), knots=2, check=None),
    "Reversible": hg.Reversible(MOMENTUM, check=None),
    "Greedy": hg.Greedy(SGD, decay=0.5, check=None),
    "Forward": hg.Forward(SGD),
    "Implicit": hg.Implicit(SGD),
    "HOAG": hg.HOAG(SGD),
}


@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
@pytest.mark.parametrize("power", [-70, 70])
def test_the_unit_of_the_outer_loss_changes_no_digit(estimator, power):
    case = in_single_precision(ridge())
    found, expected = (
        laws.first_step(estimator, case.replace(valid={"scale": jnp.float32(2.0**k)}))[0] for k in (power, 0)
    )
    np.testing.assert_array_equal(found.hypergradient["log_l2"], jnp.ldexp(expected.hypergradient["log_l2"], power))
    assert hg.Status(int(found.stats.status)) == hg.Status(int(expected.stats.status))
    if "growth" in expected.stats.diagnostics:
        assert found.stats.diagnostics["growth"] == expected.stats.diagnostics["growth"]
