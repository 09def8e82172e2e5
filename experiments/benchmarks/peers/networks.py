"""Two more problems: a convolutional network on images, and an LSTM on sequences, with one penalty per weight."""

import jax
import jax.numpy as jnp
import numpy as np

import hypergrad as hg

from ..problems import Benchmark, cross_entropy, l2

SIDE, CHANNELS, CLASSES, HIDDEN = 14, 8, 10, 16


def penalised(predict):
    """Returns inner and outer loss of a classifier."""

    def outer_loss(params, log_penalty, data, key):
        return jnp.mean(cross_entropy(predict(params, data[0]), data[1]))

    def inner_loss(params, log_penalty, data, key):
        return outer_loss(params, log_penalty, data, key) + l2(params, log_penalty)

    return inner_loss, outer_loss


def benchmark(name, predict, params, draw, num_steps) -> Benchmark:
    """Returns the problem of 64 training and 64 validation rows, λ = log 0.01."""
    hparams = jax.tree.map(lambda w: jnp.full_like(w, np.log(0.01)), params)
    return Benchmark(name, hg.BilevelProblem(*penalised(predict), draw(64), draw(64)), params, hparams, 0.1, num_steps)


def normal(rng: np.random.Generator, *shape: int) -> jax.Array:
    """Returns weights of variance 1 / (number of inputs)."""
    return jnp.asarray(rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1])), jnp.float32)


def convolutional(seed: int, num_steps: int = 50) -> Benchmark:
    """Returns two convolutions of 3 x 3 with strides of 2 and a dense layer, on noisy class images of 14 x 14."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(CLASSES, SIDE, SIDE, 1))
    params = {
        "first": normal(rng, 3, 3, 1, CHANNELS),
        "second": normal(rng, 3, 3, CHANNELS, CHANNELS),
        "dense": normal(rng, (SIDE // 4 + 1) ** 2 * CHANNELS, CLASSES),
    }

    def predict(params, x):
        for name in ("first", "second"):
            layout = ("NHWC", "HWIO", "NHWC")
            x = jnp.tanh(jax.lax.conv_general_dilated(x, params[name], (2, 2), "SAME", dimension_numbers=layout))
        return x.reshape(len(x), -1) @ params["dense"]

    def draw(rows):
        labels = rng.integers(CLASSES, size=rows)
        images = centres[labels] + 2 * rng.normal(size=(rows, SIDE, SIDE, 1))
        return images.astype(np.float32), labels.astype(np.int32)

    return benchmark("CNN", predict, params, draw, num_steps)


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

    def draw(rows):
        labels = rng.integers(CLASSES, size=rows)
        sequences = centres[labels] + rng.normal(size=(rows, 12, 4))
        return sequences.astype(np.float32), labels.astype(np.int32)

    return benchmark("LSTM", predict, params, draw, num_steps)


NETWORKS = {"CNN": convolutional, "LSTM": recurrent}
