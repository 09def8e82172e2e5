"""A convolution that is quick inside compiled loops."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


def patches(x: Array, stride: int = 1) -> Array:
    """Returns the 3 x 3 neighbourhoods of an image of shape (height, width, channels), padded by one.

    The result has the shape (⌈height/stride⌉, ⌈width/stride⌉, 9 · channels): row by row, the channels last.
    """
    height, width, _ = x.shape
    down, across = ((size - 1) // stride * stride + 1 for size in (height, width))
    padded = jnp.pad(x, ((1, 1), (1, 1), (0, 0)))
    shifted = [padded[i : i + down : stride, j : j + across : stride] for i in range(3) for j in range(3)]
    return jnp.concatenate(shifted, -1)


class Convolution(eqx.Module):
    """A 3 x 3 convolution as one matrix product of patches, padded by one.

    XLA's own convolution is several times slower inside a loop on a CPU; see `experiments.benchmarks.convolution`.
    """

    weight: Array  # (9 · channels in, channels out)
    bias: Array | None
    stride: int = eqx.field(static=True)

    def __init__(self, channels_in: int, channels_out: int, key: Array, stride: int = 1, use_bias: bool = True):
        weight_key, bias_key = jax.random.split(key)
        bound = 1 / np.sqrt(9 * channels_in)
        self.weight = jax.random.uniform(weight_key, (9 * channels_in, channels_out), minval=-bound, maxval=bound)
        self.bias = jax.random.uniform(bias_key, (channels_out,), minval=-bound, maxval=bound) if use_bias else None
        self.stride = stride

    def __call__(self, x: Array) -> Array:
        """Maps (height, width, channels_in) to (⌈height/stride⌉, ⌈width/stride⌉, channels_out)."""
        found = patches(x, self.stride) @ self.weight
        return found if self.bias is None else found + self.bias
