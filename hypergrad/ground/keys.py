"""The keys of one training run, all folded from one: the only module that says which evaluation draws with which."""

from typing import NamedTuple

import jax
from jaxtyping import Array, ArrayLike

PRODUCT = 2**31 - 3  # folded into the key of a linear system for the draws of its products


class EndKeys(NamedTuple):
    """The keys of the losses at the end of training."""

    outer: Array  # of the outer loss
    inner: Array  # of the inner loss in a linear system: one draw, so that its Hessian is symmetric


def step_key(key: Array, t: ArrayLike) -> Array:
    """Returns the key of training step t = 0, 1, ..., so that a backward pass draws what training drew."""
    return jax.random.fold_in(key, t)


def end_keys(key: Array, num_steps: int) -> EndKeys:
    """Returns the keys that follow those of `num_steps` training steps."""
    return EndKeys(jax.random.fold_in(key, num_steps), jax.random.fold_in(key, num_steps + 1))


def product_key(key: Array, j: ArrayLike) -> Array:
    """Returns the key of draw j of the operator in a linear system whose fixed operator has the key `key`."""
    return jax.random.fold_in(jax.random.fold_in(key, PRODUCT), j)


def sign_key(key: Array, num_steps: int) -> Array:
    """Returns the key of the random directions along which the error of a hypergradient is measured."""
    return jax.random.fold_in(key, num_steps + 2)


def perturbation_key(key: Array, num_steps: int) -> Array:
    """Returns the key of what perturbs the hyperparameters of a run of `num_steps` training steps."""
    return jax.random.fold_in(key, num_steps + 3)
