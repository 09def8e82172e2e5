"""A tanh network, its hyperparameters, and the optimiser that reads its schedules from them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

import hypergrad as hg

WIDTHS = (50, 50, 50, 10)  # published


class Hparams(NamedTuple):
    """One schedule and one scale per group; a group is the weights or the biases of one layer."""

    log_rate: PyTree  # leaves of shape (steps,)
    logit_momentum: PyTree  # leaves of shape (steps,)
    log_scale: PyTree  # scalar leaves: log standard deviation of the initial values


class MomentumState(NamedTuple):
    """The number of steps done, and the velocity of every parameter."""

    done: Array
    velocity: PyTree


def scheduled_momentum(hparams: Hparams) -> optax.GradientTransformation:
    """Returns the optimiser v <- γ_t v - (1 - γ_t) g, w <- w + α_t v, with an α_t and γ_t for every group and step.

    **Source**: Maclaurin, Duvenaud, Adams (2015), Algorithm 1.
    """

    def init(params):
        return MomentumState(jnp.zeros((), jnp.int32), optax.tree.zeros_like(params))

    def update(updates, state, params=None):
        rate = jax.tree.map(lambda schedule: jnp.exp(schedule[state.done]), hparams.log_rate)
        momentum = jax.tree.map(lambda schedule: jax.nn.sigmoid(schedule[state.done]), hparams.logit_momentum)
        velocity = jax.tree.map(lambda m, v, g: m * v - (1 - m) * g, momentum, state.velocity, updates)
        return jax.tree.map(jnp.multiply, rate, velocity), MomentumState(state.done + jnp.int32(1), velocity)

    return optax.GradientTransformation(init, update)


def draw(num_inputs: int, key: Array) -> PyTree:
    """Draws standard Gaussian values for all layers: initial weights before they are scaled."""
    shapes = [
        {"weight": (rows, columns), "bias": (columns,)}
        for rows, columns in zip((num_inputs, *WIDTHS), WIDTHS, strict=False)
    ]
    leaves, treedef = jax.tree.flatten(shapes, is_leaf=lambda node: isinstance(node, tuple))
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(treedef, [jax.random.normal(k, shape) for k, shape in zip(keys, leaves, strict=True)])


def weights(displacement: PyTree, hparams: Hparams, noise: PyTree) -> PyTree:
    """Returns exp(log_scale) · noise + displacement.

    The displacement is trained, from zero. Gradient steps on it are those on the weights, and the initial scale
    becomes a hyperparameter of the losses, differentiable like any other.
    """
    return jax.tree.map(lambda d, h, z: d + jnp.exp(h) * z, displacement, hparams.log_scale, noise)


def log_probs(layers: PyTree, x: Array) -> Array:
    """Returns the log-probabilities of the classes, of shape (rows, classes)."""
    for layer in layers[:-1]:
        x = jnp.tanh(x @ layer["weight"] + layer["bias"])
    return jax.nn.log_softmax(x @ layers[-1]["weight"] + layers[-1]["bias"])


def cross_entropy(layers: PyTree, rows: PyTree) -> Array:
    """Returns the mean of -log p(y | x)."""
    x, y = rows
    return -jnp.mean(jnp.take_along_axis(log_probs(layers, x), y[:, None], axis=1))


def losses(batch: int) -> tuple[hg.problem.Loss, hg.problem.Loss]:
    """Returns the cross-entropy of a minibatch, and of all rows; the data are (rows, noise)."""

    def inner_loss(displacement, hparams, data, key):
        rows, noise = data
        return cross_entropy(weights(displacement, hparams, noise), hg.minibatch(key, rows, batch))

    def outer_loss(displacement, hparams, data, key):
        rows, noise = data
        return cross_entropy(weights(displacement, hparams, noise), rows)

    return inner_loss, outer_loss


@jax.jit
def measure(layers: PyTree, rows: PyTree) -> tuple[Array, Array]:
    """Returns cross-entropy and accuracy."""
    x, y = rows
    return cross_entropy(layers, rows), jnp.mean(jnp.argmax(log_probs(layers, x), axis=1) == y)


def constant(like: PyTree, num_steps: int, log_rate: float, logit_momentum: float, log_scale: PyTree) -> Hparams:
    """Returns the same rate and momentum for all groups and steps."""
    full = lambda value: jax.tree.map(lambda _: jnp.full(num_steps, value), like)
    return Hparams(full(log_rate), full(logit_momentum), jax.tree.map(jnp.asarray, log_scale))
