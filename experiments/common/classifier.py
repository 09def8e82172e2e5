"""Losses and measures of classifiers, which map one row to the logits of its classes."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from .data import Rows


def cross_entropy(model: Callable[..., Any], x: Array, y: Array) -> Array:
    """Returns -log p(y | x) of every row."""
    return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(x), y)


@eqx.filter_jit
def _num_right(model, x, y):
    return jnp.sum(jnp.argmax(jax.vmap(model)(x), -1) == y)


def accuracy(model: Callable[..., Any], rows: Rows) -> float:
    """Returns the fraction of rows whose class has the largest logit."""
    x, y = rows
    return int(_num_right(model, jnp.asarray(x), jnp.asarray(y))) / len(y)
