"""The noisy quadratic: exact moments, and the same process by simulation."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

import hypergrad as hg


class Quadratic(NamedTuple):
    """L(w) = ½ Σ_i c_i (w_i - ξ_i)², ξ_i ~ N(0, s²) drawn anew at every step; w_i starts with E[w_i²] = A_i."""

    curvature: Array  # c
    noise: Array  # s²
    start: Array  # A


def expected_loss(quadratic: Quadratic, moments: Array) -> Array:
    """Returns ½ Σ_i c_i A_i, the loss above its irreducible part ½ Σ_i c_i s²."""
    return 0.5 * jnp.sum(quadratic.curvature * moments)


def advance(quadratic: Quadratic, moments: Array, rate: Array) -> Array:
    """Takes one step of SGD at learning rate α:  A_i <- (1 - α c_i)² A_i + α² c_i² s²."""
    c, noise, _ = quadratic
    return (1 - rate * c) ** 2 * moments + rate**2 * c**2 * noise


def greedy_rate(quadratic: Quadratic, moments: Array) -> Array:
    """Returns the learning rate that is best one step ahead:  α = Σ c² A / Σ c³ (A + s²)."""
    c, noise, _ = quadratic
    return jnp.sum(c**2 * moments) / jnp.sum(c**3 * (moments + noise))


def greedy_schedule(quadratic: Quadratic, num_steps: int) -> tuple[Array, Array]:
    """Returns learning rates and expected losses after each step."""

    def step(moments, _):
        rate = greedy_rate(quadratic, moments)
        moments = advance(quadratic, moments, rate)
        return moments, (rate, expected_loss(quadratic, moments))

    return jax.lax.scan(step, quadratic.start, None, length=num_steps)[1]


def losses_of(quadratic: Quadratic, rates: Array) -> Array:
    """Returns the expected losses after each step of a schedule."""

    def step(moments, rate):
        moments = advance(quadratic, moments, rate)
        return moments, expected_loss(quadratic, moments)

    return jax.lax.scan(step, quadratic.start, rates)[1]


class StepState(NamedTuple):
    """The number of steps done."""

    done: Array


def follow_moments(quadratic: Quadratic, log_rates: Array) -> optax.GradientTransformation:
    """Returns training in expectation: an optimiser of the moments A whose update is `advance`."""

    def update(updates, state, params=None):
        after = advance(quadratic, params, jnp.exp(log_rates[state.done]))
        return after - params, StepState(state.done + jnp.int32(1))

    return optax.GradientTransformation(lambda params: StepState(jnp.zeros((), jnp.int32)), update)


def scheduled_sgd(log_rates: Array) -> optax.GradientTransformation:
    """Returns SGD with the learning rate exp(log_rates[t]) at step t."""
    return optax.sgd(lambda count: jnp.exp(log_rates[count]))


def expected_problem(quadratic: Quadratic) -> hg.BilevelProblem:
    """Returns the problem whose parameters are the moments; both losses are the expected loss."""

    def loss(moments, log_rates, data, key):
        return expected_loss(data, moments)

    return hg.BilevelProblem(loss, loss, quadratic, quadratic)


def simulated_problem(quadratic: Quadratic) -> hg.BilevelProblem:
    """Returns the problem of many weights, of shape (particles, dimensions), each with its own noise at every step.

    The inner loss is the sum over particles, so that each takes its own SGD step; the outer loss is their mean, without
    noise.
    """

    def inner_loss(w, log_rates, data, key):
        target = jnp.sqrt(data.noise) * jax.random.normal(key, w.shape, w.dtype)
        return 0.5 * jnp.sum(data.curvature * (w - target) ** 2)

    def outer_loss(w, log_rates, data, key):
        return expected_loss(data, jnp.mean(w**2, axis=0))

    return hg.BilevelProblem(inner_loss, outer_loss, quadratic, quadratic)


def particles(quadratic: Quadratic, count: int, key: Array) -> PyTree:
    """Draws Gaussian weights with E[w_i²] = A_i."""
    start = jnp.sqrt(quadratic.start)
    return start * jax.random.normal(key, (count, *start.shape), start.dtype)
