"""Three bilevel problems of different kinds, all trained on the full batch by SGD with momentum 0.9.

| | inner problem | hyperparameters | steps T |
|---|---|---|---|
| P1 | l2-logistic regression, convex, converges | 1000: one penalty per feature | 200 |
| P2 | MLP 784-128-10, not convex, stops early | 101,770: one penalty per weight and bias | 100 |
| P3 | softmax regression on half wrong labels, convex | 1000: one weight per example | 100 |

The data are synthetic, in float32.
"""

import dataclasses
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, PyTree

import hypergrad as hg

MOMENTUM = 0.9


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A bilevel problem with its start and its training:  v <- 0.9 v + g,  w <- w - learning_rate v,  T times."""

    name: str
    problem: hg.BilevelProblem
    params: PyTree
    hparams: PyTree
    learning_rate: float
    num_steps: int

    @property
    def convex(self) -> bool:
        """True if the inner problem has one solution, which training comes near to."""
        return self.name in ("P1", "P3")

    def with_train(self, train: PyTree) -> "Benchmark":
        """Returns the same problem on other training data."""
        problem = eqx.tree_at(lambda problem: problem.train, self.problem, train)
        return dataclasses.replace(self, problem=problem)


def l2(params: PyTree, log_penalty: PyTree) -> ArrayLike:
    """Returns ½ Σ_j exp(λ_j) w_j²."""
    terms = jax.tree.map(lambda w, penalty: jnp.sum(jnp.exp(penalty) * w**2), params, log_penalty)
    return 0.5 * sum(jax.tree.leaves(terms))


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns -log p(label) of every row."""
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)[:, 0]


def logistic(seed: int, num_steps: int = 200) -> Benchmark:
    """Returns P1: (Σ_i log(1 + exp(-y_i x_i·w)) + ½ Σ_j exp(λ_j) w_j²)/n on sparse non-negative unit rows, λ = 0."""
    rng = np.random.default_rng(seed)
    features, rows = 1000, {"train": 2000, "valid": 1000}
    truth = rng.normal(size=features) * (rng.random(features) < 0.1)

    def draw(count):
        x = rng.exponential(size=(count, features)) * (rng.random((count, features)) < 0.05)
        x[:, 0] += 1e-3
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        y = np.where(rng.random(count) < 1 / (1 + np.exp(-10 * x @ truth)), 1.0, -1.0)
        return x.astype(np.float32), y.astype(np.float32)

    def misfit(w, data):
        x, y = data
        return jnp.sum(jax.nn.softplus(-y * (x @ w)))

    def inner_loss(w, log_penalty, data, key):
        return (misfit(w, data) + l2(w, log_penalty)) / len(data[1])

    def outer_loss(w, log_penalty, data, key):
        return misfit(w, data) / len(data[1])

    train, valid = draw(rows["train"]), draw(rows["valid"])
    largest = np.linalg.eigvalsh(train[0].T @ train[0])[-1]  # in a tenth of the time of the norm
    smoothness = (largest / 4 + 1) / rows["train"]
    problem = hg.BilevelProblem(inner_loss, outer_loss, train, valid)
    zeros = jnp.zeros(features, jnp.float32)
    return Benchmark("P1", problem, zeros, zeros, float(1 / smoothness), num_steps)


def mlp(seed: int, num_steps: int = 100) -> Benchmark:
    """Returns P2: mean cross-entropy + ½ Σ exp(λ) w² of a tanh network on noisy prototypes, λ = log 0.01."""
    rng = np.random.default_rng(seed)
    draw = prototypes(rng, noise=3.0)
    train, valid = draw(128, 0.1), draw(300, 0.1)
    losses, params = tanh_network(rng, (784, 128, 10))
    hparams = jax.tree.map(lambda w: jnp.full_like(w, np.log(0.01)), params)
    return Benchmark("P2", hg.BilevelProblem(*losses, train, valid), params, hparams, 0.1, num_steps)


def tanh_network(
    rng: np.random.Generator, widths: Sequence[int]
) -> tuple[tuple[Callable[..., Any], Callable[..., Any]], PyTree]:
    """Returns the losses of a tanh network with one penalty per weight and bias, and its initial weights."""

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

    return (inner_loss, outer_loss), [dense(*sizes) for sizes in pairwise(widths)]


def softmax(seed: int, num_steps: int = 100) -> Benchmark:
    """Returns P3: mean_i sigmoid(λ_i) · cross-entropy_i + 0.005 |w|², half of the training labels wrong, λ = 0."""
    rng = np.random.default_rng(seed)
    draw = prototypes(rng, noise=3.0)
    train, valid = draw(1000, 0.5), draw(500, 0.0)

    def inner_loss(w, log_odds, data, key):
        return jnp.mean(jax.nn.sigmoid(log_odds) * cross_entropy(data[0] @ w, data[1])) + 0.005 * jnp.sum(w**2)

    def outer_loss(w, log_odds, data, key):
        return jnp.mean(cross_entropy(data[0] @ w, data[1]))

    problem = hg.BilevelProblem(inner_loss, outer_loss, train, valid)
    return Benchmark("P3", problem, jnp.zeros((784, 10)), jnp.zeros(1000), 0.5, num_steps)


def prototypes(rng: np.random.Generator, noise: float) -> Callable[..., Any]:
    """Returns a function `(rows, wrong) -> (x, labels)` that draws noise around ten Gaussian centres in 784 dimensions.

    A fraction `wrong` of the labels is replaced by another class.
    """
    centres = rng.normal(size=(10, 784))

    def draw(rows, wrong):
        labels = rng.integers(10, size=rows)
        x = (centres[labels] + noise * rng.normal(size=(rows, 784))) / np.sqrt(784)
        shift = np.where(rng.random(rows) < wrong, rng.integers(1, 10, size=rows), 0)
        return x.astype(np.float32), ((labels + shift) % 10).astype(np.int32)

    return draw


PROBLEMS: dict[str, Callable[..., Benchmark]] = {"P1": logistic, "P2": mlp, "P3": softmax}
