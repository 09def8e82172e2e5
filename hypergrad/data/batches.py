"""Data that training reads in minibatches."""

import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ..ground.arrays import taken_over
from ..ground.checks import choice, integer
from .draws import num_rows, refuse_large_batch, take
from .order import epoch_rows, new_order
from .sampler import AbstractSampler, Reading, mean_over, weighted

DRAW = 2**31 - 2  # folded into the key of a step for its rows: the loss draws with the key itself


class Batches(AbstractSampler):
    """Data that training reads in minibatches; it stands for `train` or `valid` of a `BilevelProblem`.

        problem = hg.BilevelProblem(inner_loss, outer_loss, hg.Batches((x, y), 256), valid)

    The losses receive a plain batch, a pytree like `data` whose arrays have the leading axis `size`. They must be means
    over its rows, plus terms without rows, such as a penalty. Step t of training sees the same rows in every replay.

    **Arguments**

    - `data`: a pytree of arrays with the same leading axis, the rows.
    - `size`: rows of a batch.
    - `order`: the rows of training steps.
      - `"epochs"`: every row comes once per epoch, in another order each time. A batch may straddle two epochs. The
        order is drawn from the key of the training. A cold start begins a new one; a warm start goes on in the same
        epoch, so that epochs are whole across the steps of a search.
      - `"replacement"`: rows are drawn independently from the key of the step.
      - `"all"`: every step reads all rows, in chunks of `size`, which bounds the memory of a gradient.
    - `num_batches`: the batches over which a linear solve averages the curvature, and a step of a search its criterion.
      They hold distinct rows, drawn once per solve or criterion. `None` stands for all rows, in chunks of `size`; the
      last may be shorter and weighs less.

    The best of a search is chosen on all rows of `valid`. A row index, as for a weight per example, is one more array:
    `Batches({"x": x, "row": jnp.arange(len(x))}, 256)`.

    *Cost*: one gather and O(`size`) per step, whatever the number of rows; one gradient of a batch for each chunk or
    batch of a mean. *Memory*: the data, and one batch: chunks are rematerialised. *Bias*: none in values
    and gradients. A linear solve on few batches has a bias of order 1/(`num_batches` · `size`), because the inverse of
    a mean is not the mean of inverses. *When not to use it*: where the data do not fit on the device, see `stream` of
    `run`; with solvers that carry gradients from step to step, such as LBFGS, which `init` refuses unless all rows are
    read.

    **Raises** `TypeError` or `ValueError` where rows cannot be drawn, naming the argument.

    **Example**

        >>> hg.BilevelProblem(penalised, mse, hg.Batches((x[:10], y[:10]), 5), (x[10:], y[10:])).train
        Batches(data=(f32[10,3], f32[10]), size=5)
    """

    data: PyTree = eqx.field(converter=lambda data: taken_over(data, "data"))
    size: int = eqx.field(static=True, converter=integer("size", least=1))
    order: str = eqx.field(
        static=True, converter=choice("order", "epochs", "replacement", "all"), default="epochs", kw_only=True
    )
    num_batches: int | None = eqx.field(
        static=True, converter=integer("num_batches", least=1, optional=True), default=1, kw_only=True
    )

    def __check_init__(self) -> None:
        if self.size > self.num_rows:
            raise ValueError(f"size is {self.size} but the data have {self.num_rows} rows")
        refuse_large_batch(self.data, self.size)

    @property
    def num_rows(self) -> int:
        """The number of rows, n."""
        return num_rows(self.data)

    @property
    def rows_per_step(self) -> int:
        """The number of rows that the gradient of a training step reads."""
        return self.size if self.changes else self.num_rows

    @property
    def changes(self) -> bool:
        """True if the steps of a training read different rows."""
        return self.order != "all"

    @property
    def whole(self) -> "Batches":
        """The same data, of which everything but training steps reads all rows."""
        return self if self._mean_size >= self.num_rows else dataclasses.replace(self, num_batches=None)

    @property
    def batches_per_mean(self) -> int:
        """The number of gradients of a training step that one of `mean` is worth, rounded up."""
        return math.ceil(min(self._mean_size, self.num_rows) / self.rows_per_step)

    @property
    def _mean_size(self) -> int:
        """The rows of a mean; all of them, or more, where it is over all."""
        return self.num_rows if self.num_batches is None or not self.changes else self.num_batches * self.size

    def first_feed(self) -> Array | None:
        """Returns a feed of the structure of that of `begin`, without a draw."""
        return jnp.zeros_like(new_order(jax.random.key(0))) if self.order == "epochs" else None

    def begin(self, feed: Array | None, key: Array, count: Array) -> Array | None:
        """Returns the order of the epochs, a new one before the first update of a model."""
        return None if feed is None else jnp.where(count == 0, new_order(jax.random.fold_in(key, DRAW)), feed)

    def batch(self, feed: Array | None, count: Array, key: Array) -> PyTree:
        """Returns the rows of the step that follows `count` updates."""
        if feed is not None:
            return take(self.data, epoch_rows(feed, count, self.size, self.num_rows))
        return take(self.data, jax.random.randint(jax.random.fold_in(key, DRAW), (self.size,), 0, self.num_rows))

    def mean(self, function: Reading, key: Array) -> PyTree:
        """Returns the mean of a function over `num_batches` batches of distinct rows, or over all rows."""
        if self._mean_size >= self.num_rows:
            return self._mean_of_all(function, key)
        order = new_order(jax.random.fold_in(key, DRAW))
        draw = lambda j: take(self.data, epoch_rows(order, j, self.size, self.num_rows))
        number = self._mean_size // self.size
        if number == 1:
            return function(draw(jnp.uint32(0)), key)
        return mean_over(lambda j: function(draw(j), jax.random.fold_in(key, j)), number)

    def _mean_of_all(self, function: Reading, key: Array) -> PyTree:
        chunks, rest = divmod(self.num_rows, self.size)
        if chunks == 1 and not rest:
            return function(self.data, key)
        cut = lambda c: jax.tree.map(
            lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, c * self.size, self.size), self.data
        )
        mean = mean_over(lambda c: function(cut(c), jax.random.fold_in(key, c)), chunks)
        if not rest:
            return mean
        last = function(jax.tree.map(lambda leaf: leaf[-rest:], self.data), jax.random.fold_in(key, chunks))
        return weighted(mean, last, rest / self.num_rows)
