"""A convolutional network whose channels and depth are data."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from ...ground.checks import Rule, checked, integer
from . import units
from .dense import linear

NEIGHBOURS = 9  # of a pixel, itself included


class MaskedCNN(eqx.Module):
    """A network of up to `max_depth` 3 x 3 convolutions of up to `max_width` channels, of which some are active.

        h_0 = m_0 pool(act(W_0 * x + b_0)),   h_l = m_l act(W_l * h_{l-1} + b_l)  if l < depth, else h_{l-1},
        y = V h + c

    with zeros around the image, and the mean of 2 x 2 pixels for pool. `shape` is (rows, columns) or (rows, columns,
    channels) of the image, rows and columns even; inputs are arrays of that shape or flat. `widths` of shape
    (max_depth,) and `depth` are traced integers. Inactive weights are zero and get no gradient, and initial weights are
    drawn, as in `MaskedMLP`.

    *Cost*: that of the largest network, whatever is active.
    """

    first: Array  # (9 channels, max_width)
    hidden: Array  # (max_depth - 1, 9 max_width, max_width)
    biases: Array  # (max_depth, max_width)
    last: Array  # (out_size, pooled pixels, max_width)
    last_bias: Array
    widths: Array
    depth: Array
    shape: tuple[int, int, int] = eqx.field(static=True)
    activation: Callable[[Array], Array] = eqx.field(static=True)

    @checked(*units.SIZES, *units.START)
    def __init__(
        self,
        shape: tuple[int, ...],
        out_size: int,
        max_width: int,
        max_depth: int,
        *,
        widths: ArrayLike,
        depth: ArrayLike,
        key: Array,
        activation: Callable[[Array], Array] = jax.nn.relu,
        gain: float = 1.0,
    ):
        rows, columns, channels = self.shape = SHAPE(shape)
        pixels = (rows // 2) * (columns // 2)
        shapes = [
            (NEIGHBOURS * channels, max_width),
            (max_depth - 1, NEIGHBOURS * max_width, max_width),
            (max_depth, max_width),
            (out_size, pixels, max_width),
            (out_size,),
        ]
        sizes = {"shape": rows * columns * channels, "out_size": out_size}
        units.refuse_too_large(shapes, max_width=max_width, max_depth=max_depth, **sizes)
        self.widths, self.depth = units.as_arrays(widths, depth, max_width, max_depth)
        self.activation = activation
        masks = units.masks(self.widths, self.depth, max_width)
        width = self.widths[self.depth - 1]
        fans = NEIGHBOURS * units.fans(channels, self.widths)
        draw = lambda k, shape: jax.random.uniform(k, shape, minval=-1.0, maxval=1.0)
        first, hidden, biases, last, last_bias = map(draw, jax.random.split(key, len(shapes)), shapes)
        before = jnp.tile(masks[:-1], NEIGHBOURS)
        self.first = gain * first / jnp.sqrt(fans[0]) * masks[0]
        self.hidden = gain * hidden / jnp.sqrt(fans[1:, None, None]) * (before[:, :, None] & masks[1:, None])
        self.biases = biases / jnp.sqrt(fans)[:, None] * masks
        self.last = gain * last / jnp.sqrt(pixels * width) * (jnp.arange(max_width) < width)
        self.last_bias = last_bias / jnp.sqrt(pixels * width)

    def __call__(self, x: Array) -> Array:
        """Returns outputs of shape (out_size,) for one image."""
        rows, columns, _ = self.shape
        masks = units.masks(self.widths, self.depth, self.biases.shape[1])
        h = patches(jnp.reshape(x, self.shape)) @ self.first + self.biases[0]
        h = jnp.where(masks[0], self.activation(h), 0)
        h = jnp.mean(jnp.reshape(h, (rows // 2, 2, columns // 2, 2, -1)), (1, 3))

        def layer(h: Array, part: tuple[Array, ...]) -> tuple[Array, None]:
            weight, bias, mask, index = part
            after = jnp.where(mask, self.activation(patches(h) @ weight + bias), 0)
            return jnp.where(index < self.depth, after, h), None

        layers = jnp.arange(1, self.widths.shape[0])
        h, _ = jax.lax.scan(layer, h, (self.hidden, self.biases[1:], masks[1:], layers))
        return jnp.tensordot(self.last, jnp.reshape(h, self.last.shape[1:]), 2) + self.last_bias

    @property
    def active_weights(self) -> "MaskedCNN":
        """A tree like the floating arrays, `True` where a weight is one of the smaller network."""
        masks = units.masks(self.widths, self.depth, self.biases.shape[1])
        last = jnp.arange(self.biases.shape[1]) < self.widths[self.depth - 1]
        before = jnp.tile(masks[:-1], NEIGHBOURS)
        return units.flagged(self, (masks[0], before[:, :, None] & masks[1:, None], masks, last, True))

    @property
    def num_params(self) -> Array:
        """Weights and biases of the smaller network."""
        fans = NEIGHBOURS * units.fans(self.shape[2], self.widths)
        active = jnp.arange(self.widths.shape[0]) < self.depth
        out_size, pixels, _ = self.last.shape
        return jnp.sum(active * (fans + 1) * self.widths) + (pixels * self.widths[self.depth - 1] + 1) * out_size

    def narrow(self) -> eqx.nn.Sequential:
        """Returns the smaller network by itself, to be used where size matters. Not under `jit`."""
        depth, widths = int(self.depth), [int(width) for width in self.widths]
        sizes = [self.shape[2], *widths[:depth]]
        layers: list[Any] = [eqx.nn.Lambda(lambda x: jnp.moveaxis(jnp.reshape(x, self.shape), 2, 0))]
        for index, (weight, bias) in enumerate(zip([self.first, *self.hidden[: depth - 1]], self.biases, strict=False)):
            layers += [_convolution(weight, bias, sizes[index], sizes[index + 1]), eqx.nn.Lambda(self.activation)]
            layers += [eqx.nn.AvgPool2d(2, 2)] * (index == 0)
        flat = eqx.nn.Lambda(lambda h: jnp.ravel(jnp.moveaxis(h, 0, 2)))
        last = jnp.reshape(self.last[..., : sizes[-1]], (len(self.last), -1))
        return eqx.nn.Sequential([*layers, flat, linear(last, self.last_bias)])


def _image(shape: Any) -> tuple[int, int, int]:
    """Returns rows, columns and channels."""
    if isinstance(shape, str | bytes | dict | set):
        raise TypeError
    found = tuple(map(integer("shape", least=1).convert, shape))
    if len(found) not in (2, 3) or any(side % 2 for side in found[:2]):
        raise ValueError
    return found if len(found) == 3 else (*found, 1)


SHAPE = Rule("shape", "(rows, columns) or (rows, columns, channels), both sides even", _image)


def patches(image: Array) -> Array:
    """Returns the neighbours of each pixel, zeros beyond the border.

    From (rows, columns, channels) to (rows, columns, 9 channels).
    """
    rows, columns, _ = image.shape
    padded = jnp.pad(image, ((1, 1), (1, 1), (0, 0)))
    return jnp.concatenate([padded[i : i + rows, j : j + columns] for i in range(3) for j in range(3)], -1)


def _convolution(weight: Array, bias: Array, inputs: int, outputs: int) -> eqx.nn.Conv2d:
    layer = eqx.nn.Conv2d(inputs, outputs, 3, padding=1, key=jax.random.key(0))
    kernel = jnp.reshape(weight, (3, 3, -1, weight.shape[1]))[:, :, :inputs, :outputs]
    kernel, bias = jnp.transpose(kernel, (3, 2, 0, 1)), jnp.reshape(bias[:outputs], (outputs, 1, 1))
    return eqx.tree_at(lambda layer: (layer.weight, layer.bias), layer, (kernel, bias))
