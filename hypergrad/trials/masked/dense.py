"""A multilayer perceptron whose widths and depth are data."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from ensembles.ground.kinds import LARGEST

from ...ground.checks import checked, integer
from . import units


class MaskedMLP(eqx.Module):
    """A multilayer perceptron of up to `max_depth` hidden layers of up to `max_width` units, of which some are active.

        h_0 = m_0 act(W_0 x + b_0),   h_l = m_l act(W_l h_{l-1} + b_l)  if l < depth, else h_{l-1},   y = V h + c

    with m_l = 1 for the first `widths[l]` units. The hidden layers are one stacked array, scanned over.
    Inactive weights are zero and get no gradient, so that the network, its gradients, and sums over its weights are
    those of the smaller one, `narrow()`. `widths` of shape (max_depth,) and `depth` are traced integers:
    networks of different sizes train under one `vmap`.

    *Cost*: that of the largest network, whatever is active. It pays where compilation costs more than training.

    The initial weights are uniform in ±gain/√fan_in with the fan-in of the smaller network, as in `eqx.nn.Linear` with
    gain 1. Deep networks start to learn sooner with √6 (He et al. 2015).

    **Example**

        >>> model = hg.trials.MaskedMLP(3, 1, max_width=8, max_depth=2, widths=jnp.array([4, 2]), depth=2, key=key)
        >>> model(jnp.ones(3)).shape, int(hg.trials.count_params(3, 1, jnp.array([4, 2]), 2))
        ((1,), 29)
    """

    first: Array  # (max_width, in_size)
    hidden: Array  # (max_depth - 1, max_width, max_width)
    biases: Array  # (max_depth, max_width)
    last: Array  # (out_size, max_width)
    last_bias: Array
    widths: Array
    depth: Array
    activation: Callable[[Array], Array] = eqx.field(static=True)

    @checked(integer("in_size", least=1), *units.SIZES, *units.START)
    def __init__(
        self,
        in_size: int,
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
        shapes: list[tuple[int, ...]] = [
            (max_width, in_size),
            (max_depth - 1, max_width, max_width),
            (max_depth, max_width),
        ]
        shapes += [(out_size, max_width), (out_size,)]
        units.refuse_too_large(shapes, in_size=in_size, out_size=out_size, max_width=max_width, max_depth=max_depth)
        self.widths, self.depth = units.as_arrays(widths, depth, max_width, max_depth)
        self.activation = activation
        masks = units.masks(self.widths, self.depth, max_width)
        fans = units.fans(in_size, self.widths)
        bounds = gain / jnp.sqrt(fans)
        ends = np.cumsum([np.prod(shape, dtype=int) for shape in shapes])
        drawn = jnp.split(jax.random.uniform(key, (ends[-1],), minval=-1.0, maxval=1.0), ends[:-1])
        first, hidden, biases, last, last_bias = (jnp.reshape(d, s) for d, s in zip(drawn, shapes, strict=True))
        self.first = first * bounds[0] * masks[0][:, None]
        self.hidden = hidden * bounds[1:, None, None] * (masks[1:, :, None] & masks[:-1, None, :])
        self.biases = biases / jnp.sqrt(fans)[:, None] * masks
        width = self.widths[self.depth - 1]
        self.last = gain * last / jnp.sqrt(width) * (jnp.arange(max_width) < width)
        self.last_bias = last_bias / jnp.sqrt(width)

    def __call__(self, x: Array) -> Array:
        """Returns outputs of shape (out_size,) for inputs of shape (in_size,)."""
        masks = units.masks(self.widths, self.depth, self.first.shape[0])
        h = jnp.where(masks[0], self.activation(self.first @ x + self.biases[0]), 0)

        def layer(h: Array, part: tuple[Array, ...]) -> tuple[Array, None]:
            weight, bias, mask, index = part
            after = jnp.where(mask, self.activation(weight @ h + bias), 0)
            return jnp.where(index < self.depth, after, h), None

        layers = jnp.arange(1, self.widths.shape[0])
        h, _ = jax.lax.scan(layer, h, (self.hidden, self.biases[1:], masks[1:], layers))
        return self.last @ h + self.last_bias

    @property
    def active_weights(self) -> "MaskedMLP":
        """A tree like the floating arrays, `True` where a weight is one of the smaller network."""
        masks = units.masks(self.widths, self.depth, self.first.shape[0])
        last = jnp.arange(self.first.shape[0]) < self.widths[self.depth - 1]
        return units.flagged(self, (masks[0][:, None], masks[1:, :, None] & masks[:-1, None, :], masks, last, True))

    @property
    def num_params(self) -> Array:
        """Weights and biases of the smaller network."""
        return count_params(self.first.shape[1], self.last.shape[0], self.widths, self.depth)

    def narrow(self) -> eqx.nn.Sequential:
        """Returns the smaller network by itself, to be used where size matters. Not under `jit`."""
        depth, widths = int(self.depth), [int(width) for width in self.widths]
        weights = [self.first, *self.hidden[: depth - 1]]
        layers: list[Any] = []
        sizes = [self.first.shape[1], *widths[:depth]]
        for weight, bias, fan, width in zip(weights, self.biases, sizes, sizes[1:], strict=False):
            layers += [linear(weight[:width, :fan], bias[:width]), eqx.nn.Lambda(self.activation)]
        return eqx.nn.Sequential([*layers, linear(self.last[:, : sizes[-1]], self.last_bias)])


@checked(integer("in_size", least=1), integer("out_size", least=1))
def count_params(in_size: int, out_size: int, widths: ArrayLike, depth: ArrayLike) -> Array:
    """Counts the weights and biases of a perceptron whose first `depth` hidden layers have `widths` units."""
    widths = units.integers("widths", widths, LARGEST)
    depth = units.integers("depth", depth, widths.size, ((),))
    fans = units.fans(in_size, widths)
    active = jnp.arange(widths.shape[0]) < depth
    return jnp.sum(active * (fans + 1) * widths) + (widths[depth - 1] + 1) * out_size


def linear(weight: Array, bias: Array) -> eqx.nn.Linear:
    """Returns an affine layer with given weights."""
    layer = eqx.nn.Linear(weight.shape[1], weight.shape[0], key=jax.random.key(0))
    return eqx.tree_at(lambda layer: (layer.weight, layer.bias), layer, (weight, bias))
