"""The network, the corrupted labels and the two losses."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

import hypergrad as hg

from ..common.classifier import cross_entropy
from ..common.data import Rows

SIDE, CLASSES = 28, 10


class Convolution(eqx.Module):
    """A 3 x 3 convolution of stride 2, padded by one.

    It is one matrix product, because XLA's own convolution is three times slower in a loop on a CPU.
    """

    weight: Array
    bias: Array

    def __init__(self, channels_in: int, channels_out: int, key: Array):
        weight_key, bias_key = jax.random.split(key)
        bound = 1 / np.sqrt(9 * channels_in)
        self.weight = jax.random.uniform(weight_key, (9 * channels_in, channels_out), minval=-bound, maxval=bound)
        self.bias = jax.random.uniform(bias_key, (channels_out,), minval=-bound, maxval=bound)

    def __call__(self, x: Array) -> Array:
        """Maps (side, side, channels_in) to (⌈side/2⌉, ⌈side/2⌉, channels_out)."""
        reach = 2 * ((x.shape[0] + 1) // 2) - 1
        padded = jnp.pad(x, ((1, 1), (1, 1), (0, 0)))
        shifted = [padded[i : i + reach : 2, j : j + reach : 2] for i in range(3) for j in range(3)]
        return jnp.concatenate(shifted, -1) @ self.weight + self.bias


class ConvNet(eqx.Module):
    """Three convolutions with relu and a linear layer."""

    convolutions: list[Convolution]
    head: eqx.nn.Linear

    def __init__(self, channels: int, key: Array):
        *keys, head_key = jax.random.split(key, 4)
        widths = (1, channels, channels)
        self.convolutions = [Convolution(width, channels, k) for width, k in zip(widths, keys, strict=True)]
        self.head = eqx.nn.Linear(channels * 16, CLASSES, key=head_key)

    def __call__(self, x: Array) -> Array:
        """Returns the logits of one image of 784 pixels."""
        x = x.reshape(SIDE, SIDE, 1)
        for convolution in self.convolutions:
            x = jax.nn.relu(convolution(x))
        return self.head(jnp.ravel(x))


class Noisy(NamedTuple):
    """Training rows with their indices in `hparams`."""

    x: np.ndarray
    y: np.ndarray
    number: np.ndarray


def corrupt(rows: Rows, noise: float, seed: int) -> tuple[Noisy, np.ndarray]:
    """Gives a fraction `noise` of the rows the label of another class; returns the rows and the mask of these."""
    random = np.random.default_rng([seed, 1])
    y = rows.y.copy()
    chosen = random.permutation(len(y))[: round(noise * len(y))]
    y[chosen] = (y[chosen] + random.integers(1, CLASSES, len(chosen))) % CLASSES
    return Noisy(rows.x, y, np.arange(len(y), dtype=np.int32)), y != rows.y


def make_losses(batch: int, outer_batch: int) -> tuple[hg.problem.Loss, hg.problem.Loss]:
    """Returns cross-entropy weighted by sigmoid(λ_i) on a training batch, and cross-entropy on a validation batch."""

    def inner_loss(model, hparams, train, key):
        rows = hg.minibatch(key, train, batch)
        return jnp.mean(jax.nn.sigmoid(hparams[rows.number]) * cross_entropy(model, rows.x, rows.y))

    def outer_loss(model, hparams, valid, key):
        rows = hg.minibatch(key, valid, outer_batch)
        return jnp.mean(cross_entropy(model, rows.x, rows.y))

    return inner_loss, outer_loss
