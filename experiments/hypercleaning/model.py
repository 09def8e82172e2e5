"""The network, the corrupted labels and the two losses."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

import hypergrad as hg

from ..common.classifier import cross_entropy
from ..common.convolution import Convolution
from ..common.data import Rows

SIDE, CLASSES = 28, 10


class ConvNet(eqx.Module):
    """Three convolutions of stride 2 with relu and a linear layer."""

    convolutions: list[Convolution]
    head: eqx.nn.Linear

    def __init__(self, channels: int, key: Array):
        *keys, head_key = jax.random.split(key, 4)
        widths = (1, channels, channels)
        self.convolutions = [Convolution(width, channels, k, stride=2) for width, k in zip(widths, keys, strict=True)]
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
