"""Totals are integers beyond 32 bits, in both precisions, compiled or not."""

import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypergrad.ground.total import Total

NUMBERS = st.one_of(st.integers(0, 2**62 - 1), st.integers(2**32 - 3, 2**32 + 3), st.integers(0, 5))
COMPARISONS = [operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne]


@pytest.mark.parametrize("wide", [True, False])
@given(a=NUMBERS, b=NUMBERS)
def test_sums_and_comparisons_are_those_of_integers(wide, a, b):
    with jax.enable_x64(wide):
        one, other = Total.of(a), Total.of(b)
        assert int(one) == a and int(one + other) == a + b and int(one + b) == a + b
        assert one - other == a - b and b - one == b - a
        compiled = jax.jit(lambda x, y: (x + y, [compare(x, y) for compare in COMPARISONS]))
        total, found = compiled(one, other)
        assert int(total) == a + b
        for compare, result in zip(COMPARISONS, found, strict=True):
            assert compare(one, other) is compare(a, b) is compare(one, b) is bool(result)


@given(count=st.integers(0, 2**31 - 1), factor=st.integers(0, 2**31 - 1))
def test_products_are_those_of_integers(count, factor):
    with jax.enable_x64(False):
        assert int(Total.product(jnp.int32(count), factor)) == count * factor


@given(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=6))
def test_steps_of_32_bits_add_up(steps):
    with jax.enable_x64(False):
        start = Total.of(2**32 - 7)
        end, _ = jax.lax.scan(lambda total, step: (total + step, None), start, jnp.asarray(steps, jnp.int32))
        assert int(end) == 2**32 - 7 + sum(steps)
        assert float(end) == float(int(end)) and f"{end:,}" == f"{int(end):,}" and str(end) == str(int(end))


def test_numpy_and_floats_leave_the_comparison_to_it():
    total = Total.of(2**33)
    assert np.int64(2**33) == total and np.int64(2**33 - 1) < total and total > np.float64(2**33 - 0.5)
    assert 2**33 <= total < 2**33 + 0.5 and total < np.inf and total > -1
    assert np.asarray(total).dtype == np.int64 and bool(total) and not Total.of(0)
    assert list(range(10))[Total.of(3)] == 3
    for total in (Total.of(2**40 + 3), Total.argument(2**40 + 3)):
        assert int(total) == 2**40 + 3 == jax.jit(lambda x: x.rounded)(total)
    with jax.enable_x64(False):
        assert float(jax.jit(lambda x: x.rounded)(Total.of(2**40))) == 2.0**40


def test_batches():
    totals = jax.vmap(lambda x: Total.of(2**32 - 2) + x)(jnp.arange(4))
    np.testing.assert_array_equal(np.asarray(totals), 2**32 - 2 + np.arange(4))
    np.testing.assert_array_equal(totals > 2**32 - 1, [False, False, True, True])
    assert "4294967298" in str(jax.vmap(lambda x: x + 1)(totals))


def test_negative_numbers_are_refused():
    with pytest.raises(ValueError, match="not negative, got -1"):
        Total.of(-1)


def test_it_prints_its_shape_where_it_has_no_value():
    assert repr(jax.eval_shape(lambda: Total.of(3) + 1)) == "int64[]"
