"""More problems: a convolutional network on images, and an LSTM on sequences, with one penalty per weight."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

import hypergrad as hg

from ...common.convolution import patches
from ...common.data import INPUTS, split
from ..problems import Benchmark, cross_entropy, l2

ROWS, CHANNELS, CLASSES, HIDDEN = 64, 8, 10, 16


def penalised(predict: Callable) -> tuple[Callable, Callable]:
    """Returns inner and outer loss of a classifier."""

    def outer_loss(params, log_penalty, data, key):
        return jnp.mean(cross_entropy(predict(params, data[0]), data[1]))

    def inner_loss(params, log_penalty, data, key):
        return outer_loss(params, log_penalty, data, key) + l2(params, log_penalty)

    return inner_loss, outer_loss


def benchmark(name: str, predict: Callable, params: dict, train: tuple, valid: tuple, num_steps: int) -> Benchmark:
    """Returns the problem of these training and validation rows, λ = log 0.01."""
    hparams = jax.tree.map(lambda w: jnp.full_like(w, np.log(0.01)), params)
    return Benchmark(name, hg.BilevelProblem(*penalised(predict), train, valid), params, hparams, 0.1, num_steps)


def normal(rng: np.random.Generator, *shape: int) -> jax.Array:
    """Returns weights of variance 1 / (number of inputs)."""
    return jnp.asarray(rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1])), jnp.float32)


def by_xla(x: Array, kernel: Array) -> Array:
    """Returns the convolution, with strides of 2 and padded by one, as XLA has it."""
    return jax.lax.conv_general_dilated(x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC"))


def by_patches(x: Array, kernel: Array) -> Array:
    """Returns the same as a product of patches."""
    return jax.vmap(partial(patches, stride=2))(x) @ kernel.reshape(-1, kernel.shape[-1])


def convolutional(
    name: str,
    convolve: Callable[[Array, Array], Array],
    seed: int,
    num_steps: int = 50,
    data: str = "digits",
    data_dir: Path | None = None,
) -> Benchmark:
    """Returns two convolutions of 3 x 3 with strides of 2 and a dense layer, on handwritten digits."""
    rng, side = np.random.default_rng(seed), math.isqrt(INPUTS[data])
    params = {
        "first": normal(rng, 3, 3, 1, CHANNELS),
        "second": normal(rng, 3, 3, CHANNELS, CHANNELS),
        "dense": normal(rng, (side // 4) ** 2 * CHANNELS, CLASSES),
    }

    def predict(params, x):
        for layer in ("first", "second"):
            x = jnp.tanh(convolve(x, params[layer]))
        return x.reshape(len(x), -1) @ params["dense"]

    parts = split(data, data_dir, seed, ROWS, ROWS)
    train, valid = ((rows.x.reshape(-1, side, side, 1), rows.y) for rows in (parts.train, parts.valid))
    return benchmark(name, predict, params, train, valid, num_steps)


def recurrent(seed: int, num_steps: int = 50) -> Benchmark:
    """Returns an LSTM of 16 units that tells the class of noisy sequences of 12 vectors in 4 dimensions."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(CLASSES, 12, 4))
    params = {"inputs": normal(rng, 4, 4 * HIDDEN), "state": normal(rng, HIDDEN, 4 * HIDDEN)}
    params["dense"] = normal(rng, HIDDEN, CLASSES)

    def predict(params, x):
        def cell(carry, x):
            h, c = carry
            i, f, o, g = jnp.split(x @ params["inputs"] + h @ params["state"], 4, axis=-1)
            c = jax.nn.sigmoid(f + 1) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

        first = jnp.zeros((len(x), HIDDEN), x.dtype)
        (h, _), _ = jax.lax.scan(cell, (first, first), x.swapaxes(0, 1))
        return h @ params["dense"]

    def draw():
        labels = rng.integers(CLASSES, size=ROWS)
        sequences = centres[labels] + rng.normal(size=(ROWS, 12, 4))
        return sequences.astype(np.float32), labels.astype(np.int32)

    return benchmark("LSTM", predict, params, draw(), draw(), num_steps)


CONVOLUTIONS = {"CNN": by_patches, "CNN-XLA": by_xla}
NETWORKS: dict[str, Callable[..., Benchmark]] = {
    **{name: partial(convolutional, name, convolve) for name, convolve in CONVOLUTIONS.items()},
    "LSTM": recurrent,
}
