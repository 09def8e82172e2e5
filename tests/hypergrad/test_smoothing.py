"""The range to smooth over is found where a slope lies under a rough surface, and only there."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypergrad as hg
from hypergrad.smoothing import PAIRS, Smoothing, smoothing
from hypergrad.testing.laws import KEY

ROUGH = 1e-3  # the length of the bumps


def moved(w, h, data, key):
    """One step of gradient descent at rate 1 takes w to h."""
    return (w - h) ** 2 / 2 + 0 * jnp.sum(data)


def ladder(outer, h=1.0):
    problem = hg.BilevelProblem(moved, lambda w, h, data, key: outer(w) + 0 * jnp.sum(data), np.ones(2), np.ones(2))
    return smoothing(hg.OptaxSolver(optax.sgd(1.0), 1), problem, jnp.asarray(0.0), jnp.asarray(h), KEY)


bumps = lambda w: jnp.sin(w / ROUGH)


@pytest.mark.variants(quick=["*-1.0"], slow=["*-0.01"])
@pytest.mark.parametrize(
    ("outer", "width"),
    [
        (lambda w: w + 0.1 * bumps(w), 1.0),
        (lambda w: jnp.where(jnp.abs(w - 1) < 0.05, w, jnp.nan) + 1e-3 * bumps(w), 0.01),  # not defined far away
    ],
)
def test_the_widest_range_with_a_slope_is_found(outer, width):
    found = ladder(outer)
    np.testing.assert_allclose(found.sigma, width)
    assert f"ES(inner, {PAIRS}, sigma={width:.2g})" in found.advice
    hidden = [noise for sigma, noise in zip(found.sigmas, found.noises, strict=True) if ROUGH < sigma < width / 50]
    assert len(hidden) == (2 if width == 1 else 0) and min(hidden, default=1.0) > 0.48


def test_bumps_alone_have_no_slope_wider_than_themselves():
    found = ladder(bumps, 0.0)
    assert found.sigmas[0] == 1.0  # the unit of hyperparameters that are zero
    assert found.sigma <= 1.001 * ROUGH


def test_more_pairs_are_asked_for_where_the_noise_is_too_large():
    found = Smoothing((1.0, 0.1), (0.96, 2.0))
    assert found.sigma is None and f"sigma=1, asks for about {4 * PAIRS} pairs" in found.advice
    assert "no signal" in Smoothing((1.0,), (float("inf"),)).advice
