"""The clock of the benchmarks, and the products whose cost they measure."""

import jax
import numpy as np
import pytest

from experiments.benchmarks import cost
from experiments.benchmarks.measure import Rounds
from experiments.benchmarks.problems import PROBLEMS


def test_ratios_are_within_a_round():
    ticks = iter(range(1000))
    timed = Rounds({"a": lambda: next(ticks), "b": lambda: None}, 4, clock=lambda: next(ticks))
    assert (timed.seconds("a"), timed.seconds("b"), timed.ratio("a", "b")) == (2.0, 1.0, 2.0)


@pytest.mark.slow
def test_products_are_along_training():
    case, number = PROBLEMS["P1"](0, num_steps=2), 2
    products = cost.single_products(case, jax.random.key(0), number)
    assert set(products) == set(cost.DOCUMENTED)
    assert np.isfinite(products["hvp"]()).all()
    cotangent, hypergradient = products["step_vjp"]()
    assert hypergradient.shape == case.hparams.shape
    assert cotangent.partitioned.arrays.shape == case.params.shape
