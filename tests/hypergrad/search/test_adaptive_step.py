"""The step without tuning: its size, its failures, and what excuses a rise."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypergrad as hg


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_the_first_step_has_unit_size_whatever_the_scale(scale):
    optimiser, h = hg.adaptive_step(), jnp.asarray([3.0, -4.0])
    updates, _ = optimiser.update(scale * h, optimiser.init(h), h, value=jnp.asarray(scale))
    np.testing.assert_allclose(jnp.sqrt(jnp.mean(updates**2)), 1)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
@pytest.mark.parametrize("in_value", [True, False])
def test_adaptive_step_backtracks_from_what_is_not_finite(bad, in_value):
    optimiser, h = hg.adaptive_step(), jnp.asarray([1.0])
    updates, state = optimiser.update(h, optimiser.init(h), h, value=jnp.asarray(0.5))
    there = h + updates
    value, gradient = (jnp.asarray(bad), there) if in_value else (jnp.asarray(0.0), there * bad)
    back, state = optimiser.update(gradient, state, there, value=value)
    np.testing.assert_allclose(there + back, h + updates / 2)
    start, untouched = optimiser.init(h), optimiser.update(h * bad, optimiser.init(h), h, value=jnp.asarray(bad))
    assert untouched[0] == 0 and eqx.tree_equal(untouched[1], start)


def quadratic_descent(step, start, steps, curvature):
    params, state, values = start, step.init(start), []
    for _ in range(steps):
        value, gradient = jax.value_and_grad(lambda p: jnp.sum(curvature * p**2) / 2)(params)
        values.append(float(value))
        updates, state = jax.jit(step.update)(gradient, state, params, value=value)
        params = optax.apply_updates(params, updates)
    return params, state, values


@pytest.mark.slow
def test_adaptive_step_converges_without_tuning():
    for scale in (1e-2, 1.0, 1e3):
        curvature = scale * jnp.array([1.0, 4.0, 9.0])
        _, _, values = quadratic_descent(hg.adaptive_step(), jnp.array([3.0, -2.0, 1.0]), 80, curvature)
        assert min(values) < 1e-4 * values[0]


def test_adaptive_step_returns_after_a_failure():
    step, start = hg.adaptive_step(), jnp.array([1.0, 1.0])
    gradient = jnp.array([1.0, 2.0])
    updates, state = step.update(gradient, step.init(start), start, value=jnp.asarray(1.0))
    failed = start + updates
    for value in (5.0, jnp.nan):
        back, again = step.update(jnp.array([7.0, 7.0]), state, failed, value=jnp.asarray(value))
        np.testing.assert_allclose(failed + back, start - gradient / (2 * state.lipschitz))
        assert again.lipschitz == 2 * state.lipschitz and again.value == 1
    with pytest.raises(ValueError, match="params"):
        step.update(gradient, state, value=1.0)


@pytest.mark.variants(quick=["10.0"], slow=["1e-06", "0.01"])
@pytest.mark.parametrize("error", [1e-6, 1e-2, 10.0])
def test_adaptive_step_goes_on_where_the_first_value_was_too_low(error):
    """The value of a training that was coarser than those after it: every point near it then looks worse."""
    step, params = hg.adaptive_step(), jnp.array([3.0, -2.0])
    state = step.init(params)
    for index in range(80):
        value, gradient = jax.value_and_grad(lambda p: jnp.sum(jnp.array([1.0, 9.0]) * p**2) / 2)(params)
        updates, state = step.update(gradient, state, params, value=value - error * value * (index == 0))
        params = optax.apply_updates(params, updates)
    assert np.linalg.norm(params) < 1e-2


@pytest.mark.parametrize("gaps", [(jnp.nan, 0.1), (0.1, jnp.nan), (jnp.inf, 0.1), (0.1, jnp.inf)])
def test_a_gap_that_is_not_told_excuses_no_rise(gaps):
    step, start = hg.adaptive_step(), jnp.array([1.0])
    updates, state = step.update(jnp.array([1.0]), step.init(start), start, value=1.0, outer_gap=gaps[0])
    assert updates == -1
    back, state = step.update(jnp.array([1e11]), state, start + updates, value=5.0, outer_gap=gaps[1])
    assert start + updates + back == start - 0.5 and state.value == 1


def test_points_excuse_a_rise_by_their_gaps():
    step, start = hg.adaptive_step(), jnp.array([1.0])
    updates, state = step.update(jnp.array([1.0]), step.init(start), start, value=1.0, outer_gap=0.1)
    _, state = step.update(jnp.array([1.0]), state, start + updates, value=1.1, outer_gap=0.1)
    assert state.value == 1.1


def test_adaptive_step_does_not_return_to_where_it_is_held_by_a_bound():
    """A step that was clipped to the same point as before looks no worse there than before."""
    step, start, bound = hg.adaptive_step(), jnp.array([1.0]), jnp.array([0.5])
    _, state = step.update(jnp.array([1.0]), step.init(start), start, value=1.0)
    for _ in range(2):
        back, state = step.update(jnp.array([1.0]), state, bound, value=5.0)
        assert bound + back < start and state.params == start
