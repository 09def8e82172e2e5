"""A network of any size with one penalty per weight, on full batches: P2 of the cost table, larger."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

import hypergrad as hg

from ..problems import Benchmark, prototypes, tanh_network

INPUTS, CLASSES = 784, 10
LOG_PENALTY = np.log(1e-4)


def network(seed: int, hidden: Sequence[int], rows: int, num_steps: int) -> Benchmark:
    """Returns the mean cross-entropy + ½ Σ exp(λ) w² of a tanh network on noisy prototypes, a λ per weight and bias."""
    rng = np.random.default_rng(seed)
    draw = prototypes(rng, noise=3.0)
    widths = (INPUTS, *hidden, CLASSES)
    losses, params = tanh_network(rng, widths)
    hparams = jax.tree.map(lambda array: jnp.full_like(array, LOG_PENALTY), params)
    train, valid = (jax.tree.map(jnp.asarray, draw(rows, 0.1)) for _ in range(2))  # on the device once
    name = f"{'-'.join(map(str, widths))}, {rows} rows, T = {num_steps}"
    return Benchmark(name, hg.BilevelProblem(*losses, train, valid), params, hparams, 0.05, num_steps)


def num_weights(case: Benchmark) -> int:
    """Counts weights and biases."""
    return sum(array.size for layer in case.params for array in layer.values())
