"""A network of any size with one penalty per weight, on full batches: P2 of the cost table, larger."""

from collections.abc import Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np

import hypergrad as hg

from ..problems import Case, cross_entropy, l2, prototypes

INPUTS, CLASSES = 784, 10
LOG_PENALTY = np.log(1e-4)


def network(seed: int, hidden: Sequence[int], rows: int, num_steps: int) -> Case:
    """Mean cross-entropy + ½ Σ exp(λ) w² of a tanh network on noisy prototypes, a λ per weight and bias."""
    rng = np.random.default_rng(seed)
    draw = prototypes(rng, noise=3.0)
    widths = (INPUTS, *hidden, CLASSES)

    def predict(params, x):
        *first, last = params
        for layer in first:
            x = jnp.tanh(x @ layer["w"] + layer["b"])
        return x @ last["w"] + last["b"]

    def outer_loss(params, log_penalty, data, key):
        return jnp.mean(cross_entropy(predict(params, data[0]), data[1]))

    def inner_loss(params, log_penalty, data, key):
        return outer_loss(params, log_penalty, data, key) + l2(params, log_penalty)

    def dense(inputs, outputs):
        weights = rng.normal(size=(inputs, outputs)) / np.sqrt(inputs)
        return {"w": jnp.asarray(weights, jnp.float32), "b": jnp.zeros(outputs, jnp.float32)}

    params = [dense(*sizes) for sizes in pairwise(widths)]
    hparams = [{name: jnp.full_like(array, LOG_PENALTY) for name, array in layer.items()} for layer in params]
    train, valid = (jax.tree.map(jnp.asarray, draw(rows, 0.1)) for _ in range(2))  # on the device once
    problem = hg.BilevelProblem(inner_loss, outer_loss, train, valid)
    name = f"{'-'.join(map(str, widths))}, {rows} rows, T = {num_steps}"
    return Case(name, problem, params, hparams, 0.05, num_steps)


def num_weights(case: Case) -> int:
    """Weights and biases."""
    return sum(array.size for layer in case.params for array in layer.values())
