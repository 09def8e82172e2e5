"""Gaussian perturbations of hyperparameters in antithetic pairs, and the estimates from them."""

from collections.abc import Callable
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from ensembles.ground.memory import refuse_too_large

from ...ground.checks import integer, shown
from ...ground.tree import PartitionedModel, named_leaves
from ...stats import Status, flag

Sigma: TypeAlias = PyTree  # standard deviation of the perturbations, one number or like hparams
PAIRS = integer("num_pairs", least=1)
BATCH = integer("batch_size", least=1, optional=True)


def as_sigma(sigma: Sigma) -> PyTree:
    """Returns the standard deviations. **Raises** `TypeError` or `ValueError` unless all are positive numbers."""
    leaves = named_leaves(sigma, "sigma")
    if not leaves:
        raise ValueError("sigma has no leaves: there is no range to smooth over")
    for path, leaf in leaves:
        if isinstance(leaf, jax.core.Tracer):
            continue
        if isinstance(leaf, bool) or not isinstance(leaf, int | float | np.ndarray | np.generic | jax.Array):
            raise TypeError(f"{path} must be a positive number, got {shown(leaf)}")
        if not _positive(leaf):
            raise ValueError(f"{path} must be a positive number, got {shown(leaf)}")
    return sigma


def _positive(leaf: Any) -> bool:
    try:
        numbers = np.asarray(leaf, float)
    except (TypeError, ValueError, OverflowError):
        return False
    return bool(np.all(np.isfinite(numbers) & (numbers > 0)))


def spread_sigma(sigma: Sigma, hparams: PyTree) -> PyTree:
    """Returns σ like `hparams`. **Raises** `ValueError` where it fits neither them nor a part of them."""
    try:
        whole = jax.tree.broadcast(sigma, hparams)
        return jax.tree.map(lambda s, h: jnp.broadcast_to(jnp.asarray(s, h.dtype), h.shape), whole, hparams)
    except ValueError as error:
        raise ValueError(f"sigma must be a number or like hparams: {error}") from error


def refuse_too_many(model: PartitionedModel, number: int, name: str) -> None:
    """Raises `MemoryError` naming the argument where so many copies of the model do not fit into memory."""
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(model.arrays))
    refuse_too_large(2 * number * size, name, f"{2 * number} training runs at once")


def draw(key: Array, num_pairs: int, sigma: Sigma, hparams: PyTree) -> PyTree:
    """Returns ε_1 ... ε_N ~ N(0, σ²), stacked."""
    widths = spread_sigma(sigma, hparams)
    one = lambda key: jax.tree.map(jnp.multiply, widths, optax.tree.random_like(key, hparams, jax.random.normal))
    return jax.vmap(one)(jax.random.split(key, num_pairs))


def mapped(function: Callable[..., PyTree], arguments: PyTree, batch_size: int | None) -> PyTree:
    """Returns the results for every perturbation, stacked, with at most `batch_size` of them in memory at once."""
    if batch_size is None:
        return jax.vmap(function)(*arguments)
    return jax.lax.map(lambda args: function(*args), tuple(arguments), batch_size=batch_size)


def signed(hparams: PyTree, perturbations: PyTree) -> PyTree:
    """Returns λ + ε_1 ... λ + ε_N, λ - ε_1 ... λ - ε_N, stacked."""
    return jax.tree.map(lambda h, e: jnp.concatenate([h + e, h - e]), hparams, perturbations)


def halves(stacked: PyTree) -> tuple[PyTree, PyTree]:
    """Returns the results at λ + ε and those at λ - ε."""
    part = lambda k: jax.tree.map(lambda leaf: jnp.split(leaf, 2)[k], stacked)
    return part(0), part(1)


def pair_estimates(values: Array, scores: PyTree, sigma: Sigma, hparams: PyTree) -> PyTree:
    """Returns (F(λ + ε_i) - F(λ - ε_i)) ξ_i / 2σ² for every pair, ξ_i the score, which is ε_i itself in `ES`."""
    high, low = halves(values)
    widths = spread_sigma(sigma, hparams)

    def estimate(score: Array, width: Array) -> Array:
        change = (high - low).reshape(-1, *[1] * (score.ndim - 1)).astype(score.dtype)
        return change * score / (2 * width**2)

    return jax.tree.map(estimate, scores, widths)


NOISY = 0.48  # noise from which the expected cosine 1/√(1 + noise²) with the exact direction is below 0.9


class Signal(eqx.Module):
    """The mean of the estimates of all pairs, and the variance of that mean per hyperparameter."""

    mean: PyTree
    variance: PyTree

    @property
    def noise(self) -> Array:
        """The standard error s of the mean m over the size of what it estimates, s/√(‖m‖² - s²); NaN if not known.

        ‖m‖² itself is s² too large on average: without the correction, noise alone would count as a signal of its size.
        """
        mean, variance = (ravel_pytree(tree)[0] for tree in (self.mean, self.variance))
        scale = jnp.max(jnp.abs(mean))
        scale = jnp.where(scale > 0, scale, 1)
        size, error = jnp.sum((mean / scale) ** 2), jnp.sum(variance / scale**2)
        left = jnp.maximum(size - error, 0)
        return jnp.where(error > 0, jnp.sqrt(error / left), jnp.sqrt(error))

    @property
    def status(self) -> Array:
        """INACCURATE where the noise is not known to be small."""
        return flag(~(self.noise <= NOISY), Status.INACCURATE)


def signal_of(estimates: PyTree) -> Signal:
    """Returns mean and variance over pairs; the variance is NaN for one pair."""
    number = jax.tree.leaves(estimates)[0].shape[0]
    variance = lambda e: jnp.sum((e - jnp.mean(e, 0)) ** 2, 0) / (number * jnp.where(number > 1, number - 1, jnp.nan))
    return Signal(jax.tree.map(lambda e: jnp.mean(e, 0), estimates), jax.tree.map(variance, estimates))
