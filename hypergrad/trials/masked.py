"""Networks whose widths and depth are data, so that one program trains them all."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike


class MaskedMLP(eqx.Module):
    """A multilayer perceptron of up to `max_depth` hidden layers of up to `max_width` units, of which some are active.

        h_0 = m_0 act(W_0 x + b_0),   h_l = m_l act(W_l h_{l-1} + b_l)  if l < depth, else h_{l-1},   y = V h + c

    with m_l = 1 for the first `widths[l]` units. The hidden layers are one stacked array, gone through by `lax.scan`.
    Inactive weights are zero and get no gradient, so that the network, its gradients, and sums over its weights are
    those of the smaller one, `narrow()`. `widths` of shape (max_depth,) and `depth` are whole numbers, traced: networks
    of different sizes train under one `vmap`.

    *Cost*: that of the largest network, whatever is active. It pays where compilation costs more than training.

    The initial weights are uniform in ±gain/√fan_in with the fan-in of the smaller network, as in `eqx.nn.Linear` with
    gain 1. Deep networks start to learn sooner with √6 (He et al. 2015).
    """

    first: Array  # (max_width, in_size)
    hidden: Array  # (max_depth - 1, max_width, max_width)
    biases: Array  # (max_depth, max_width)
    last: Array  # (out_size, max_width)
    last_bias: Array
    widths: Array
    depth: Array
    activation: Callable[[Array], Array] = eqx.field(static=True)

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
        for name, value in {"max_width": max_width, "max_depth": max_depth}.items():
            if not (isinstance(value, int) and value >= 1):
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        self.widths = jnp.broadcast_to(jnp.asarray(widths, jnp.int32), (max_depth,))
        self.depth = jnp.asarray(depth, jnp.int32)
        self.activation = activation
        masks = self._masks(max_width)
        fans = jnp.concatenate([jnp.full(1, in_size, jnp.int32), self.widths[:-1]])
        bounds = gain / jnp.sqrt(fans)
        shapes = [(max_width, in_size), (max_depth - 1, max_width, max_width), (max_depth, max_width)]
        shapes += [(out_size, max_width), (out_size,)]
        ends = np.cumsum([np.prod(shape, dtype=int) for shape in shapes])
        drawn = jnp.split(jax.random.uniform(key, (ends[-1],), minval=-1.0, maxval=1.0), ends[:-1])
        first, hidden, biases, last, last_bias = (jnp.reshape(d, s) for d, s in zip(drawn, shapes, strict=True))
        self.first = first * bounds[0] * masks[0][:, None]
        self.hidden = hidden * bounds[1:, None, None] * (masks[1:, :, None] & masks[:-1, None, :])
        self.biases = biases / jnp.sqrt(fans)[:, None] * masks
        width = self.widths[self.depth - 1]
        self.last = gain * last / jnp.sqrt(width) * (jnp.arange(max_width) < width)
        self.last_bias = last_bias / jnp.sqrt(width)

    def _masks(self, max_width: int) -> Array:
        """(max_depth, max_width): which units there are."""
        layers = jnp.arange(self.widths.shape[0])
        return (jnp.arange(max_width) < self.widths[:, None]) & (layers < self.depth)[:, None]

    def __call__(self, x: Array) -> Array:
        """Outputs of shape (out_size,) for inputs of shape (in_size,)."""
        masks = self._masks(self.first.shape[0])
        h = jnp.where(masks[0], self.activation(self.first @ x + self.biases[0]), 0)

        def layer(h, part):
            weight, bias, mask, place = part
            after = jnp.where(mask, self.activation(weight @ h + bias), 0)
            return jnp.where(place < self.depth, after, h), None

        places = jnp.arange(1, self.widths.shape[0])
        h, _ = jax.lax.scan(layer, h, (self.hidden, self.biases[1:], masks[1:], places))
        return self.last @ h + self.last_bias

    @property
    def active_weights(self) -> "MaskedMLP":
        """A tree like the floating arrays, `True` where a weight is one of the smaller network."""
        masks = self._masks(self.first.shape[0])
        last = jnp.arange(self.first.shape[0]) < self.widths[self.depth - 1]
        flags = (masks[0][:, None], masks[1:, :, None] & masks[:-1, None, :], masks, last, jnp.bool_(True))
        arrays = lambda model: (model.first, model.hidden, model.biases, model.last, model.last_bias)
        spread = [jnp.broadcast_to(flag, like.shape) for flag, like in zip(flags, arrays(self), strict=True)]
        return eqx.tree_at(arrays, eqx.filter(self, eqx.is_inexact_array), spread)

    @property
    def num_params(self) -> Array:
        """Weights and biases of the smaller network."""
        return count_params(self.first.shape[1], self.last.shape[0], self.widths, self.depth)

    def narrow(self) -> eqx.nn.Sequential:
        """The smaller network by itself, to be used where size matters. Not under `jit`."""
        depth, widths = int(self.depth), [int(width) for width in self.widths]
        weights = [self.first, *self.hidden[: depth - 1]]
        layers: list = []
        sizes = [self.first.shape[1], *widths[:depth]]
        for weight, bias, fan, width in zip(weights, self.biases, sizes, sizes[1:], strict=False):
            layers += [_linear(weight[:width, :fan], bias[:width]), eqx.nn.Lambda(self.activation)]
        return eqx.nn.Sequential([*layers, _linear(self.last[:, : sizes[-1]], self.last_bias)])


def count_params(in_size: int, out_size: int, widths: ArrayLike, depth: ArrayLike) -> Array:
    """Weights and biases of a perceptron whose first `depth` hidden layers have `widths` units."""
    widths = jnp.asarray(widths)
    fans = jnp.concatenate([jnp.full(1, in_size, widths.dtype), widths[:-1]])
    active = jnp.arange(widths.shape[0]) < depth
    return jnp.sum(active * (fans + 1) * widths) + (widths[jnp.asarray(depth) - 1] + 1) * out_size


def _linear(weight: Array, bias: Array) -> eqx.nn.Linear:
    layer = eqx.nn.Linear(weight.shape[1], weight.shape[0], key=jax.random.key(0))
    return eqx.tree_at(lambda layer: (layer.weight, layer.bias), layer, (weight, bias))
