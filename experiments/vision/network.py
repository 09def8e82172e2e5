"""A residual network with batch normalisation."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..common.convolution import Convolution

AXIS = "batch"  # over which batch normalisation takes its means


class Normalised(eqx.Module):
    """A convolution followed by batch normalisation."""

    convolution: Convolution
    norm: eqx.nn.BatchNorm

    def __init__(self, channels_in: int, channels_out: int, key: Array, stride: int = 1):
        self.convolution = Convolution(channels_in, channels_out, key, stride, use_bias=False)
        self.norm = eqx.nn.BatchNorm(channels_out, AXIS, momentum=0.9, mode="batch")

    def __call__(self, x: Array, state: eqx.nn.State) -> tuple[Array, eqx.nn.State]:
        """Maps an image of shape (height, width, channels)."""
        x, state = self.norm(jnp.moveaxis(self.convolution(x), -1, 0), state)
        return jnp.moveaxis(x, 0, -1), state


class Block(eqx.Module):
    """Two convolutions beside a short cut, which halve the image and double the channels.

    The short cut takes every second pixel, and zeros for the new channels.

    **Source**: He, Zhang, Ren, Sun (2016), option A.
    """

    first: Normalised
    second: Normalised

    def __init__(self, channels: int, key: Array):
        first_key, second_key = jax.random.split(key)
        self.first = Normalised(channels, 2 * channels, first_key, stride=2)
        self.second = Normalised(2 * channels, 2 * channels, second_key)

    def __call__(self, x: Array, state: eqx.nn.State) -> tuple[Array, eqx.nn.State]:
        """Maps (height, width, channels) to (⌈height/2⌉, ⌈width/2⌉, 2 · channels)."""
        short = jnp.pad(x[::2, ::2], ((0, 0), (0, 0), (0, x.shape[-1])))
        x, state = self.first(x, state)
        x, state = self.second(jax.nn.relu(x), state)
        return jax.nn.relu(x + short), state


class ResNet(eqx.Module):
    """A convolution, blocks that halve the image, a mean over pixels, and a linear layer."""

    stem: Normalised
    blocks: list[Block]
    head: eqx.nn.Linear

    def __init__(self, channels: int, num_blocks: int, classes: int, key: Array):
        stem_key, head_key, *keys = jax.random.split(key, 2 + num_blocks)
        self.stem = Normalised(1, channels, stem_key)
        self.blocks = [Block(channels * 2**n, block_key) for n, block_key in enumerate(keys)]
        self.head = eqx.nn.Linear(channels * 2**num_blocks, classes, key=head_key)

    def __call__(self, x: Array, state: eqx.nn.State) -> tuple[Array, eqx.nn.State]:
        """Returns the logits of one image of shape (height, width), and the running averages."""
        x, state = self.stem(x[..., None], state)
        x = jax.nn.relu(x)
        for block in self.blocks:
            x, state = block(x, state)
        return self.head(x.mean((0, 1))), state
