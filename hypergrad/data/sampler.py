"""The protocol by which a training step, a linear solve, the criterion and the choice of the best read data."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

Reading = Callable[[PyTree, Array], PyTree]  # (data, key) -> arrays, such as a loss at some weights


class AbstractSampler(eqx.Module):
    """Data that are read in parts.

    Training step t reads `batch`, the same one whenever the step is repeated. The state of training carries a `feed`,
    `None` or an array, which `begin` renews before the first step of a training; the solver counts the updates.
    """

    @property
    @abc.abstractmethod
    def num_rows(self) -> int:
        """The number of rows that make an epoch."""

    @property
    @abc.abstractmethod
    def rows_per_step(self) -> int:
        """The number of rows that the gradient of a training step reads."""

    @property
    @abc.abstractmethod
    def batches_per_mean(self) -> int:
        """The number of gradients of a training step that one of `mean` is worth, rounded up."""

    @property
    @abc.abstractmethod
    def changes(self) -> bool:
        """True if the steps of a training read different rows."""

    @property
    @abc.abstractmethod
    def whole(self) -> "AbstractSampler":
        """The sampler of the same data whose `mean` is over all rows."""

    @abc.abstractmethod
    def first_feed(self) -> Array | None:
        """Returns a feed of the structure of that of `begin`, without a draw."""

    @abc.abstractmethod
    def begin(self, feed: Array | None, key: Array, count: Array) -> Array | None:
        """Returns the feed of a training that begins after `count` updates; `key` is that of the training."""

    @abc.abstractmethod
    def batch(self, feed: Array | None, count: Array, key: Array) -> PyTree:
        """Returns the data of the step that follows `count` updates; `key` is that of the step."""

    @abc.abstractmethod
    def mean(self, function: Reading, key: Array) -> PyTree:
        """Returns the mean of a function of data over rows that depend on `key` alone."""


class AbstractPlainSampler(AbstractSampler):
    """Data that are read without a feed, as many rows for a mean as for a training step."""

    @property
    def rows_per_step(self) -> int:
        """The number of rows, all of which a step reads."""
        return self.num_rows

    @property
    def batches_per_mean(self) -> int:
        """One: a mean is over as many rows as a training step."""
        return 1

    @property
    def whole(self) -> "AbstractPlainSampler":
        """This sampler itself: it holds no more rows."""
        return self

    def first_feed(self) -> None:
        """Returns `None`."""

    def begin(self, feed: Array | None, key: Array, count: Array) -> None:
        """Returns `None`."""


class Whole(AbstractPlainSampler):
    """Data that are read whole."""

    data: PyTree

    @property
    def num_rows(self) -> int:
        """The length of the leading axis that all arrays share, 1 where they do not."""
        sizes = {leaf.shape[:1] for leaf in jax.tree.leaves(eqx.filter(self.data, eqx.is_array)) if leaf.ndim}
        return sizes.pop()[0] if len(sizes) == 1 else 1

    @property
    def changes(self) -> bool:
        """False: every step reads all rows."""
        return False

    def batch(self, feed: Array | None, count: Array, key: Array) -> PyTree:
        """Returns the data."""
        return self.data

    def mean(self, function: Reading, key: Array) -> PyTree:
        """Returns the value of the function on the data."""
        return function(self.data, key)


def as_sampler(data: Any) -> AbstractSampler:
    """Returns a sampler of the data; one that is a sampler already passes."""
    return data if isinstance(data, AbstractSampler) else Whole(data)


def refuse_sampler(data: Any, name: str, reason: str) -> None:
    """Raises `TypeError` naming an argument that is a sampler where arrays are needed."""
    if isinstance(data, AbstractSampler):
        raise TypeError(f"{name} must be arrays, got {type(data).__name__}: {reason}")


def mean_over(function: Callable[[Array], PyTree], number: int) -> PyTree:
    """Returns the mean of `function(0), ..., function(number - 1)`, one after the other.

    Derivatives compute each call again instead of storing its intermediate values. Half precision is summed in single.
    What is no floating number, such as a counter or a random key in the state of layers, is that of the last call.
    """
    shapes, _ = eqx.partition(jax.eval_shape(function, jnp.int32(0)), _has_mean)
    wide = lambda leaf: jnp.promote_types(leaf.dtype, jnp.float32)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, wide(leaf)), shapes)

    def body(total: PyTree, j: Array) -> tuple[PyTree, PyTree]:
        found, others = eqx.partition(function(j), _has_mean)
        return optax.tree.add(total, jax.tree.map(lambda leaf: leaf.astype(wide(leaf)), found)), others

    total, others = jax.lax.scan(jax.checkpoint(body), zeros, jnp.arange(number, dtype=jnp.int32))
    mean = jax.tree.map(lambda leaf, like: (leaf / number).astype(like.dtype), total, shapes)
    return eqx.combine(mean, jax.tree.map(lambda leaf: leaf[-1], others))


def weighted(one: PyTree, other: PyTree, share: float) -> PyTree:
    """Returns (1 - share) · one + share · other, and `other` where a leaf is no floating number."""
    mix = lambda a, b: ((1 - share) * a + share * b).astype(b.dtype) if _has_mean(b) else b
    return jax.tree.map(mix, one, other)


def _has_mean(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)
