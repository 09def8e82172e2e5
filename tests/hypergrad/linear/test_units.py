"""Linear solvers in any unit of the operator and of the right-hand side."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

import hypergrad as hg
from hypergrad.ground.units import exponent
from hypergrad.linear import base
from hypergrad.testing.problems import positive

ITERATIVE = [hg.CG(), hg.NormalCG(), hg.MINRES(), hg.GMRES(), hg.Neumann(), hg.linear.SGD(50)]
SOLVERS = [*ITERATIVE, hg.Nystrom(2), hg.Dense(), hg.linear.LevenbergMarquardt(50)]
MATRIX = jnp.asarray(positive(np.random.default_rng(1), 4), jnp.float32)
RIGHT = {"v": jnp.asarray(np.random.default_rng(1).normal(size=4), jnp.float32)}


@eqx.filter_jit
def solve(solver, size, b, init=None):
    """The solution of a multiple of H v = b."""
    return solver.solve(lambda v, *_: {"v": size * (MATRIX @ v["v"])}, b, init)


def times(tree, power):
    return {"v": jnp.ldexp(tree["v"], power)}


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)
@pytest.mark.parametrize("power", [-100, 80])
def test_the_unit_of_the_right_hand_side_changes_no_digit(solver, power):
    """Squares are no numbers of float32 any more."""
    for init in (None, {"v": jnp.full(4, 0.1, jnp.float32)}):
        found = solve(solver, jnp.float32(1), times(RIGHT, power), None if init is None else times(init, power))
        expected = solve(solver, jnp.float32(1), RIGHT, init)
        np.testing.assert_array_equal(found.value["v"], times(expected.value, power)["v"])
        assert found.residual == expected.residual and jnp.all(expected.value["v"] != 0)


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)
@pytest.mark.parametrize("power", [-40, 40])
def test_the_unit_of_the_operator_changes_no_digit(solver, power):
    """A multiple c H has the solution v / c, of the same residual."""
    found, expected = (solve(solver, jnp.float32(2.0**k), RIGHT) for k in (power, 0))
    np.testing.assert_array_equal(times(found.value, power)["v"], expected.value["v"])
    assert found.residual == expected.residual and jnp.all(expected.value["v"] != 0)


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)
def test_a_system_is_put_into_its_unit_once(monkeypatch, solver):
    """`NormalCG` solves another system besides."""
    calls = []
    monkeypatch.setattr(base, "exponent", lambda tree: (calls.append(1), exponent(tree))[1])
    base.solve(solver, lambda v, *_: 2 * v, jnp.ones(2), None, 0.0)
    assert len(calls) == (2 if isinstance(solver, hg.NormalCG) else 1)
