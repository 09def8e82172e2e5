"""Text of a random source whose entropy is known, and a small transformer that reads it letter by letter."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

CONCENTRATION = 0.3  # of the Dirichlet distribution of the next letter


class Lines(NamedTuple):
    """Letters of shape (rows, length), and the letter that follows each."""

    x: np.ndarray
    y: np.ndarray

    def take(self, chosen: np.ndarray) -> "Lines":
        """Returns some of the lines."""
        return Lines(*(part[chosen] for part in self))


class Source(NamedTuple):
    """A Markov chain of second order; `next_letter[a, b]` is the distribution of the letter after a, b."""

    next_letter: np.ndarray

    @staticmethod
    def draw(letters: int, random: np.random.Generator) -> "Source":
        """Draws every distribution from a Dirichlet distribution."""
        return Source(random.dirichlet(np.full(letters, CONCENTRATION), (letters, letters)))

    def write(self, rows: int, length: int, random: np.random.Generator) -> Lines:
        """Returns lines that begin with a pair from the stationary distribution."""
        letters = len(self.next_letter)
        pairs = random.choice(letters**2, rows, p=self.stationary.ravel())
        text = [pairs // letters, pairs % letters]
        for _ in range(length - 1):
            cumulative = np.cumsum(self.next_letter[text[-2], text[-1]], -1)
            text.append(np.minimum(np.sum(random.random((rows, 1)) > cumulative, -1), letters - 1))
        whole = np.stack(text, 1).astype(np.int32)
        return Lines(whole[:, :-1], whole[:, 1:])

    @property
    def stationary(self) -> np.ndarray:
        """The distribution of a pair of letters in the long run."""
        letters = len(self.next_letter)
        pair = np.full((letters, letters), letters**-2.0)
        for _ in range(10_000):
            after = np.einsum("ab,abc->bc", pair, self.next_letter)
            if np.abs(after - pair).max() < 1e-15:
                break
            pair = (after + pair) / 2  # the mean, so that periods die out
        return pair

    def cross_entropy(self, lines: Lines) -> float:
        """Returns the mean of -log p of the letters that have two before them, under the true distributions."""
        before, here, after = lines.x[:, :-1], lines.x[:, 1:], lines.y[:, 1:]
        return float(-np.mean(np.log(self.next_letter[before, here, after])))

    @property
    def entropy(self) -> float:
        """The entropy of the next letter given two, in nats: no model has a lower expected cross-entropy."""
        logs = np.log(np.where(self.next_letter > 0, self.next_letter, 1))
        return float(-np.sum(self.stationary[..., None] * self.next_letter * logs))


def by_counts(train: Lines, test: Lines) -> float:
    """Returns the cross-entropy of the best prediction from counts in the training lines, as `Source.cross_entropy`.

    It is the posterior mean under the distribution that the source was drawn from, for a letter given two.
    """
    letters = int(max(train.y.max(), test.y.max())) + 1
    counts = np.full((letters, letters, letters), CONCENTRATION)
    np.add.at(counts, (train.x[:, :-1], train.x[:, 1:], train.y[:, 1:]), 1)
    return Source(counts / counts.sum(-1, keepdims=True)).cross_entropy(test)


class Layer(eqx.Module):
    """Causal attention and a network on each letter, both beside a short cut and after a normalisation.

    **Source**: Vaswani et al. (2017); Xiong et al. (2020) for the order.
    """

    attention: eqx.nn.MultiheadAttention
    network: eqx.nn.MLP
    norms: tuple[eqx.nn.LayerNorm, eqx.nn.LayerNorm]

    def __init__(self, width: int, heads: int, key: Array):
        attention_key, network_key = jax.random.split(key)
        self.attention = eqx.nn.MultiheadAttention(heads, width, key=attention_key)
        self.network = eqx.nn.MLP(width, width, 2 * width, 1, jax.nn.gelu, key=network_key)
        self.norms = (eqx.nn.LayerNorm(width), eqx.nn.LayerNorm(width))

    def __call__(self, x: Array, mask: Array) -> Array:
        """Maps vectors of shape (length, width)."""
        normed = jax.vmap(self.norms[0])(x)
        x = x + self.attention(normed, normed, normed, mask)
        return x + jax.vmap(self.network)(jax.vmap(self.norms[1])(x))


class Transformer(eqx.Module):
    """A transformer that predicts the next letter at every place."""

    letters: eqx.nn.Embedding
    places: Array
    layers: list[Layer]
    norm: eqx.nn.LayerNorm
    head: eqx.nn.Linear

    def __init__(self, letters: int, length: int, width: int, num_layers: int, key: Array):
        letter_key, place_key, head_key, *keys = jax.random.split(key, 3 + num_layers)
        self.letters = eqx.nn.Embedding(weight=jax.random.normal(letter_key, (letters, width)) * width**-0.5)
        self.places = jax.random.normal(place_key, (length, width)) * width**-0.5
        self.layers = [Layer(width, 4, layer_key) for layer_key in keys]
        self.norm = eqx.nn.LayerNorm(width)
        self.head = eqx.nn.Linear(width, letters, key=head_key)

    def __call__(self, x: Array, state: eqx.nn.State) -> tuple[Array, eqx.nn.State]:
        """Returns the logits after every letter of one line, of shape (length, letters), and the state unchanged."""
        mask = jnp.tril(jnp.ones((len(x), len(x)), bool))
        found = jax.vmap(self.letters)(x) + self.places
        for layer in self.layers:
            found = layer(found, mask)
        return jax.vmap(self.head)(jax.vmap(self.norm)(found)), state
