"""A small convolutional network whose channels and depth are data."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike


class MaskedCNN(eqx.Module):
    """One or two 3 x 3 convolutions of up to `max_width` channels, of which some are active.

        h_0 = m_0 pool(act(W_0 * x + b_0)),   h_1 = m_1 act(W_1 * h_0 + b_1)  if depth is 2, else h_0,   y = V h_1 + c

    with zeros around the image, and for pool the mean of 2 x 2 pixels. `widths` of shape (2,) and `depth` are traced;
    inactive weights are zero, and initial weights are drawn, as in `hg.trials.MaskedMLP`.
    """

    first: Array  # (9, max_width)
    second: Array  # (9 max_width, max_width)
    biases: Array  # (2, max_width)
    last: Array  # (out_size, pooled pixels, max_width)
    last_bias: Array
    widths: Array
    depth: Array
    shape: tuple[int, int] = eqx.field(static=True)

    def __init__(
        self,
        shape: tuple[int, int],
        out_size: int,
        max_width: int,
        *,
        widths: ArrayLike,
        depth: ArrayLike,
        key: Array,
        gain: float = 1.0,
    ):
        self.shape, self.widths, self.depth = shape, jnp.asarray(widths, jnp.int32), jnp.asarray(depth, jnp.int32)
        places, masks = (shape[0] // 2) * (shape[1] // 2), self._masks(max_width)
        width = self.widths[self.depth - 1]
        fans = jnp.array([9, 9 * self.widths[0], places * width])
        shapes = [
            (9, max_width),
            (9 * max_width, max_width),
            (2, max_width),
            (out_size, places, max_width),
            (out_size,),
        ]
        drawn = [
            jax.random.uniform(k, shape, minval=-1.0, maxval=1.0)
            for k, shape in zip(jax.random.split(key, len(shapes)), shapes, strict=True)
        ]
        self.first = gain * drawn[0] / jnp.sqrt(fans[0]) * masks[0]
        self.second = gain * drawn[1] / jnp.sqrt(fans[1]) * (jnp.tile(masks[0], 9)[:, None] & masks[1])
        self.biases = drawn[2] / jnp.sqrt(fans[:2])[:, None] * masks
        self.last = gain * drawn[3] / jnp.sqrt(fans[2]) * (jnp.arange(max_width) < width)
        self.last_bias = drawn[4] / jnp.sqrt(fans[2])

    def _masks(self, max_width: int) -> Array:
        """(2, max_width): which channels there are."""
        return (jnp.arange(max_width) < self.widths[:, None]) & (jnp.arange(2) < self.depth)[:, None]

    def __call__(self, x: Array) -> Array:
        """Outputs of shape (out_size,) for the pixels of one image, row by row."""
        masks = self._masks(self.biases.shape[1])
        h = jax.nn.silu(patches(jnp.reshape(x, (*self.shape, 1))) @ self.first + self.biases[0]) * masks[0]
        rows, columns = self.shape
        h = jnp.mean(jnp.reshape(h, (rows // 2, 2, columns // 2, 2, -1)), (1, 3))
        after = jax.nn.silu(patches(h) @ self.second + self.biases[1]) * masks[1]
        h = jnp.reshape(jnp.where(self.depth > 1, after, h), self.last.shape[1:])
        return jnp.tensordot(self.last, h, 2) + self.last_bias

    @property
    def active_weights(self) -> "MaskedCNN":
        """A tree like the floating arrays, `True` where a weight is one of the smaller network."""
        masks = self._masks(self.biases.shape[1])
        last = jnp.arange(self.biases.shape[1]) < self.widths[self.depth - 1]
        flags = (masks[0], jnp.tile(masks[0], 9)[:, None] & masks[1], masks, last, jnp.bool_(True))
        arrays = lambda model: (model.first, model.second, model.biases, model.last, model.last_bias)
        spread = [jnp.broadcast_to(flag, like.shape) for flag, like in zip(flags, arrays(self), strict=True)]
        return eqx.tree_at(arrays, eqx.filter(self, eqx.is_inexact_array), spread)

    @property
    def num_params(self) -> Array:
        """Weights and biases of the smaller network."""
        first, second = self.widths
        convolutions = 10 * first + (self.depth > 1) * (9 * first + 1) * second
        return convolutions + (self.last.shape[1] * self.widths[self.depth - 1] + 1) * self.last.shape[0]


def patches(image: Array) -> Array:
    """(rows, columns, channels) to (rows, columns, 9 channels): every pixel's neighbours, zeros beyond the border."""
    rows, columns, _ = image.shape
    padded = jnp.pad(image, ((1, 1), (1, 1), (0, 0)))
    return jnp.concatenate([padded[i : i + rows, j : j + columns] for i in range(3) for j in range(3)], -1)
