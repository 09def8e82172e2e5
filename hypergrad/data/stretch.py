"""The part of a stream that is on the device."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .sampler import AbstractPlainSampler, Reading


class Stretch(AbstractPlainSampler):
    """The batches of a stream for some steps of a search, `num_steps` for each.

    Training step t of search step k reads batch (k - first) · `num_steps` + t, where t is counted by the solver.
    """

    data: PyTree  # leading axes: batches, rows
    num_steps: int = eqx.field(static=True)
    first: Array  # the first search step that it is for
    offset: Array  # the first batch of this search step

    @staticmethod
    def of(data: PyTree, num_steps: int, first: Array) -> "Stretch":
        """Returns the batches for search steps from `first` on."""
        return Stretch(data, num_steps, first, jnp.zeros_like(first))

    def at(self, step: Array) -> "Stretch":
        """Returns the same stretch as it is read in one step of the search."""
        return dataclasses.replace(self, offset=(step - self.first) * self.num_steps)

    @property
    def num_rows(self) -> int:
        """The rows of a batch; the number of all is not known."""
        return jax.tree.leaves(self.data)[0].shape[1]

    @property
    def changes(self) -> bool:
        """True: every step reads another batch."""
        return True

    def batch(self, feed: Array | None, count: Array, key: Array) -> PyTree:
        """Returns the batch of the training step that follows `count` updates."""
        return self._at(count % self.num_steps)

    def mean(self, function: Reading, key: Array) -> PyTree:
        """Returns the value of the function on one of the batches of this search step, drawn with `key`."""
        return function(self._at(jax.random.randint(key, (), 0, self.num_steps)), key)

    def _at(self, index: Array) -> PyTree:
        take = lambda leaf: jax.lax.dynamic_index_in_dim(leaf, self.offset + index, keepdims=False)
        return jax.tree.map(take, self.data)
