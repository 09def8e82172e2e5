"""Weights in half precision: sums in float32, and hypergradients that point where those of float32 do."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import hypergrad as hg
from experiments.common.data import digits
from hypergrad.ground.tree import pairing, vdot
from hypergrad.ground.units import norm
from hypergrad.linear.base import solve
from hypergrad.testing import laws

from tests.helpers import digits_inner, digits_outer

STEPS = 12
SGD = hg.OptaxSolver(optax.sgd(0.1, 0.9), STEPS)
LONG = hg.OptaxSolver(optax.sgd(0.1, 0.9), 60)
EVOLUTION = hg.ES(SGD, 8, sigma=1.0)  # a width at which differences of values are well above their rounding
ESTIMATORS = {
    "reverse": hg.Reverse(SGD),
    "reverse, sqrt, averaged": hg.Reverse(hg.OptaxSolver(optax.sgd(0.1, 0.9), STEPS, average=0.8), checkpoints="sqrt"),
    "reverse, adam": hg.Reverse(hg.OptaxSolver(optax.adam(0.01, eps_root=1e-6), STEPS)),
    "reverse, horizon": hg.Reverse(SGD, horizon=4, check=None, remat=False),
    "drmad": hg.DrMAD(SGD, knots=4, check=None),
    "greedy": hg.Greedy(SGD, decay=0.9, check=None),
    "one step": hg.OneStep(SGD, check=None),
    "reversible": hg.Reversible(hg.OptaxSolver(hg.MomentumSGD(0.1, 0.9), STEPS), check=None),
    "implicit cg": hg.Implicit(LONG, hg.CG(5, damping=0.1)),
    "implicit minres": hg.Implicit(LONG, hg.MINRES(5, damping=0.1)),
    "implicit neumann": hg.Implicit(LONG, hg.Neumann(10, step_size=0.1)),
    "implicit levenberg": hg.Implicit(LONG, hg.linear.LevenbergMarquardt(5)),
    "implicit sgd": hg.Implicit(LONG, hg.linear.SGD(10, step_size=0.1)),
    "hoag": hg.HOAG(LONG, hg.CG(5, damping=0.1)),
    "forward": hg.Forward(SGD),
    "es": EVOLUTION,
    "combined": hg.Combined(hg.Reverse(SGD), EVOLUTION),
    "pes": hg.PES(SGD, STEPS // 2, 8, sigma=1.0),
    "nres": hg.NRES(SGD, STEPS // 2, 8, sigma=1.0),
}


def network(kind):
    model = eqx.nn.MLP(64, 10, 16, 1, activation=jnp.tanh, key=jax.random.key(0))
    return jax.tree.map(lambda leaf: leaf.astype(kind) if eqx.is_inexact_array(leaf) else leaf, model)


@pytest.fixture(scope="module")
def problem():
    single = lambda rows: (jnp.asarray(rows[0], jnp.float32), jnp.asarray(rows[1]))
    x, y = digits()
    return hg.BilevelProblem(digits_inner, digits_outer, single((x[:150], y[:150])), single((x[150:300], y[150:300])))


def test_every_estimator_is_among_them():
    classes = {
        found for found in vars(hg).values() if isinstance(found, type) and issubclass(found, hg.AbstractEstimator)
    }
    assert classes - {hg.AbstractEstimator} == {type(estimator) for estimator in ESTIMATORS.values()}


@pytest.mark.variants(slow=["reverse"])
@pytest.mark.parametrize(
    "estimator",
    ESTIMATORS.values(),
    ids=ESTIMATORS,
)
def test_bfloat16_weights_have_the_hypergradients_of_float32(problem, estimator):
    """One penalty per weight, in float32, on the digits."""
    found = []
    for kind in (jnp.float32, jnp.bfloat16):
        model = network(kind)
        hparams = jax.tree.map(lambda w: jnp.full(w.shape, -5, jnp.float32), eqx.filter(model, eqx.is_inexact_array))
        state = estimator.init(problem, model, hparams)
        estimate, _ = estimator.step(problem, hparams, state, laws.KEY)
        assert all(leaf.dtype == kind for leaf in jax.tree.leaves(eqx.filter(estimate.params, eqx.is_inexact_array)))
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(estimate.hypergradient))
        found.append(np.asarray(ravel_pytree(estimate.hypergradient)[0], np.float64))
    single, half = found
    assert single @ half > 0.99 * np.linalg.norm(single) * np.linalg.norm(half)


@pytest.mark.parametrize("kind", [jnp.bfloat16, jnp.float16])
def test_sums_of_half_precision_are_in_float32(kind):
    """Terms far below the spacing of their sum, and squares beyond the range of float16."""
    ones, large = jnp.ones(70_000, kind), jnp.full(4, 300, kind)
    for total in (vdot(ones, ones), pairing(ones, ones)):
        assert total.dtype == jnp.float32 and total == 70_000
    assert norm(large) == 600


def test_linear_systems_in_half_precision_are_solved_in_float32():
    """The products are as exact as half precision allows; the recursion loses nothing more."""
    diagonal = jnp.linspace(1, 100, 64).astype(jnp.bfloat16)
    product, b = lambda v: diagonal * v, jnp.ones(64, jnp.bfloat16)
    found = solve(hg.CG(64), product, b, None, 0.0)
    assert found.value.dtype == jnp.bfloat16 and found.residual.dtype == jnp.float32
    np.testing.assert_allclose(found.value, 1 / diagonal, rtol=2**-6)


def test_hyperparameters_in_half_precision_are_accumulated_in_float32():
    """Every step adds 1 to a hypergradient of 256 or more, whose spacing in bfloat16 is 2."""
    steps = 600
    inner_loss = lambda w, h, data, key: -w * h.astype(jnp.float32)
    problem = hg.BilevelProblem(inner_loss, lambda w, h, data, key: w, 1.0, 1.0)
    found = hg.value_and_hypergrad(problem, hg.Reverse(hg.OptaxSolver(optax.sgd(1.0), steps)))(
        jnp.asarray(0.5, jnp.bfloat16), jnp.zeros((), jnp.float32), laws.KEY
    )[1]
    assert found.dtype == jnp.bfloat16 and float(found) == 600
