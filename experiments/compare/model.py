"""The model and the losses of both criteria."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, PyTree

import hypergrad as hg
from ensembles import MeanField, negative_elbo, predictive_log_probs

EVALUATION_ROWS = 5000
EVALUATION_SAMPLES = 16
TEST_SAMPLES = 64


def network(num_inputs: int, hidden: int, key: Array) -> eqx.nn.MLP:
    """One hidden layer of tanh units and ten outputs."""
    return eqx.nn.MLP(num_inputs, 10, hidden, 1, activation=jnp.tanh, key=key)


def log_probs(model: eqx.nn.MLP, x: Array) -> Array:
    """Log-probabilities of the classes, of shape (rows, classes)."""
    return jax.nn.log_softmax(jax.vmap(model)(x))


def log_likelihood(model: eqx.nn.MLP, rows: tuple[Array, Array]) -> Array:
    """log p(y | x) of every row."""
    x, y = rows
    return jnp.take_along_axis(log_probs(model, x), y[:, None], axis=1)[:, 0]


class Criterion(NamedTuple):
    """What is trained and what is optimised; `hparams` is the log-variance h of a Gaussian prior N(0, exp(h)).

    One h per weight, or any prefix of the tree of weights.
    """

    wrap: Callable[[eqx.nn.MLP], PyTree]  # network -> what is trained
    inner_loss: hg.problem.Loss
    outer_loss: hg.problem.Loss
    evaluate: Callable[[PyTree, PyTree, PyTree, Array], Array]  # the criterion, measured accurately
    predict: Callable[[PyTree, ArrayLike, Array], Array]  # (trained, x, key) -> log-probabilities
    uses_valid: bool


def some_rows(key: Array, rows: PyTree, size: int) -> PyTree:
    """All rows if there are no more than `size`, else a random `size` of them."""
    return rows if len(rows[1]) <= size else hg.minibatch(key, rows, size)


def elbo(num_examples: int, batch: int, outer_batch: int) -> Criterion:
    """Evidence lower bound of a mean-field posterior; training and criterion are the same loss on the same data."""

    def loss(size, num_samples):
        def negative(posterior, hparams, rows, key):
            row_key, weight_key = jax.random.split(key)
            rows = some_rows(row_key, rows, size)
            likelihood = lambda model: log_likelihood(model, rows)
            return negative_elbo(posterior, hparams, likelihood, weight_key, num_examples, num_samples)

        return negative

    def predict(posterior, x, key):
        return predictive_log_probs(posterior, lambda model: log_probs(model, x), key, TEST_SAMPLES)

    evaluate = loss(EVALUATION_ROWS, EVALUATION_SAMPLES)
    return Criterion(MeanField, loss(batch, 1), loss(outer_batch, 1), evaluate, predict, uses_valid=False)


def validation(num_examples: int, batch: int, outer_batch: int) -> Criterion:
    """Cross-entropy on held-out data of the most probable weights under the prior."""

    def inner_loss(model, hparams, rows, key):
        weights = eqx.filter(model, eqx.is_inexact_array)
        decay = jax.tree.map(
            lambda w, h: jnp.sum(w**2 * jnp.exp(-h)) / 2, weights, jax.tree.broadcast(hparams, weights)
        )
        rows = some_rows(key, rows, batch)
        return -jnp.mean(log_likelihood(model, rows)) + sum(jax.tree.leaves(decay)) / num_examples

    def outer_loss(size):
        return lambda model, hparams, rows, key: -jnp.mean(log_likelihood(model, some_rows(key, rows, size)))

    def predict(model, x, key):
        return log_probs(model, x)

    keep = lambda model: model
    return Criterion(keep, inner_loss, outer_loss(outer_batch), outer_loss(EVALUATION_ROWS), predict, uses_valid=True)


CRITERIA = {"elbo": elbo, "validation": validation}
