"""Hypergradients from the spread of an ensemble: every replica is trained with its own perturbed hyperparameters."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, PyTree

from .checks import KEY, Rule, array, checked, has_shape, integer, num_replicas, real, refuse_unknown
from .counting import KEEP, kept
from .ground.memory import refuse_too_large


def _even(value: object) -> int:
    """Returns an even number of replicas."""
    number: int = integer("num", least=4).convert(value)
    if number % 2:
        raise ValueError
    return number


NUM, SIGMA = Rule("num", "an even integer of at least 4", _even), real("sigma", above=0)


class PopulationGradient(NamedTuple):
    """The gradient of the smoothed criterion, and the standard error of every entry, both like the hyperparameters."""

    gradient: PyTree
    standard_error: PyTree


@checked(KEY, SIGMA, NUM)
def perturbed_hparams(key: Array, hparams: PyTree, sigma: float, num: int) -> PyTree:
    """Returns the hyperparameters of `num` replicas, λ + ε_1 ... λ + ε_N, λ - ε_1 ... λ - ε_N with ε_i ~ N(0, σ²).

    Every array gets a leading axis of replicas, for `replicate_loss(..., hparams_axes=0)`.

    **Example**

        >>> ens.perturbed_hparams(key, jnp.zeros(3), 0.1, 8).shape
        (8, 3)
    """
    refuse_unknown(hparams, "hparams")
    arrays = jax.tree.map(array("hparams"), hparams)
    refuse_too_large(2 * num * sum(leaf.nbytes for leaf in jax.tree.leaves(arrays)), "num")
    leaves, treedef = jax.tree.flatten(arrays)

    def stacked(key: Array, leaf: Array) -> Array:
        moves = sigma * jax.random.normal(key, (num // 2, *leaf.shape), leaf.dtype)
        return jnp.concatenate([leaf + moves, leaf - moves])

    return jax.tree.unflatten(treedef, map(stacked, jax.random.split(key, len(leaves)), leaves))


@checked(array("losses", finite=False), SIGMA, KEEP)
def population_gradient(
    losses: Array, perturbed: PyTree, sigma: float, keep: ArrayLike | None = None
) -> PopulationGradient:
    """Returns the gradient of a criterion that is a mean over replicas, smoothed over σ, at no extra training:

        ∇ E_ε <F_r(λ + ε)> ≈ 1/N Σ_i (F_i(λ + ε_i) - F_{N+i}(λ - ε_i)) ε_i / 2σ²

    **Arguments**: `losses` F_r of shape (2N,), that of every replica after training; `perturbed`, their hyperparameters
    from `perturbed_hparams` with the same `sigma`; `keep`, the mask of the replicas that count: a pair counts if both
    do. At least two pairs must.

    Replicas may have their own data and initial weights. *Bias*: none for the smoothed criterion; the mean of the
    losses is smoothed too. *Variance*: that of `hypergrad.ES` with N pairs, and (variance of the losses over
    replicas)/2Nσ² more: choose σ so that it moves the losses as much as a replica does.

    **Source**: Salimans et al. (2017), with one trained model per perturbation.

    **Example**

        >>> h = ens.perturbed_hparams(key, jnp.zeros(3), 0.1, 8)
        >>> ens.population_gradient(jnp.sum(h, 1), h, 0.1).gradient.shape
        (3,)
    """
    has_shape(losses, (None,), "losses")
    number = num_replicas(perturbed, "perturbed")
    has_shape(losses, (number,), "losses", "perturbed")
    if number % 2:
        raise ValueError(f"perturbed must hold pairs, as perturbed_hparams draws them, got {number} replicas")
    counted, _ = kept(losses, keep, "losses")
    half = number // 2
    pairs = counted[:half] & counted[half:]
    count = jnp.sum(pairs, dtype=losses.dtype)
    change = jnp.where(pairs, losses[:half] - losses[half:], 0)

    def moments(stack: Array) -> tuple[Array, Array]:
        across = lambda row: row.reshape(-1, *[1] * (stack.ndim - 1))
        single = across(change).astype(stack.dtype) * (stack[:half] - stack[half:]) / (4 * sigma) / sigma
        mean = jnp.sum(single, 0) / count
        spread = jnp.sum(jnp.where(across(pairs), (single - mean) ** 2, 0), 0)
        return mean, jnp.sqrt(spread / (count * jnp.where(count > 1, count - 1, jnp.nan)))

    leaves, treedef = jax.tree.flatten(perturbed)
    gradients, errors = zip(*map(moments, leaves), strict=True)
    return PopulationGradient(jax.tree.unflatten(treedef, gradients), jax.tree.unflatten(treedef, errors))
