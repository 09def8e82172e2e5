"""Data whose inputs fall into groups, one for each branch of a network."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array
from scipy.ndimage import rotate, shift

from ..aerosol.data import parcel
from ..common.data import Rows, digits

Loss = Callable[[Array, Array], Array]  # outputs, targets -> one number


@dataclass(frozen=True)
class Spec:
    """The inputs of each branch, and the losses."""

    blocks: tuple[tuple[str, tuple[int, ...]], ...]  # name and shape of the inputs; of an image where there are two
    outputs: int
    loss: Loss
    error: Loss  # what is reported

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the branches."""
        return tuple(name for name, _ in self.blocks)

    @property
    def inputs(self) -> tuple[int, ...]:
        """Numbers of inputs of the branches."""
        return tuple(prod(shape) for _, shape in self.blocks)


@dataclass(frozen=True)
class Dataset:
    """Rows for training, validation and the report; inputs of all branches lie side by side."""

    train: Rows
    valid: Rows
    test: Rows
    spec: Spec

    def with_validation_rows(self) -> "Dataset":
        """Returns the same with the validation rows among the training rows."""
        return replace(self, train=Rows(*(np.concatenate(parts) for parts in zip(self.train, self.valid, strict=True))))


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Returns the mean over rows."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def wrong(logits: Array, labels: Array) -> Array:
    """Returns the fraction of wrong labels."""
    return jnp.mean(jnp.argmax(logits, 1) != labels)


def squared(outputs: Array, targets: Array) -> Array:
    """Returns the mean squared error of fractions."""
    return jnp.mean((jax.nn.sigmoid(outputs) - targets) ** 2)


@lru_cache(maxsize=2)
def halves(seed: int, num_train: int, num_valid: int, num_noise: int, images: bool = False) -> Dataset:
    """Returns handwritten digits: 32 pixels of each half, as images or as numbers, and inputs of pure noise."""
    rows, random = digits(), np.random.default_rng(seed)
    noise = random.normal(0.0, rows.x.std(), (len(rows.x), num_noise))
    x = _with_noise(rows.x.reshape(-1, 8, 8) - rows.x.mean(), noise)
    order = random.permutation(len(x))
    ends = [0, num_train, num_train + num_valid, len(x)]
    train, valid, test = (Rows(x[order[a:b]], rows.y[order[a:b]]) for a, b in pairwise(ends))
    half = (8, 4) if images else (32,)
    blocks = (("left", half), ("right", half), ("noise", (num_noise,)))
    return Dataset(train, valid, test, Spec(blocks, 10, cross_entropy, wrong))


def _with_noise(images: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Returns the left halves, the right halves and the noise, side by side."""
    parts = [np.reshape(part, (len(images), -1)) for part in (*np.split(images, 2, 2), noise)]
    return np.concatenate(parts, 1, dtype=np.float32)


def moved(data: Dataset, seed: int) -> Dataset:
    """Returns seven times the training digits, each with noise of its own.

    As they are, turned by ten degrees to either side, shifted by half a pixel to each of four sides.
    """
    sides = np.split(data.train.x[:, :64].reshape(-1, 16, 4), 2, 1)
    images, random = np.concatenate(sides, 2), np.random.default_rng([seed, 1])
    options: dict[str, Any] = {"order": 1, "cval": images.min()}
    copies = [images, *(rotate(images, angle, axes=(1, 2), reshape=False, **options) for angle in (-10, 10))]
    copies += [shift(images, (0, *by), **options) for by in ((-0.5, 0), (0.5, 0), (0, -0.5), (0, 0.5))]
    count, inputs = data.train.x.shape
    x = [_with_noise(copy, random.normal(0.0, data.train.x[:, 64:].std(), (count, inputs - 64))) for copy in copies]
    return replace(data, train=Rows(np.concatenate(x), np.tile(data.train.y, len(copies))))


def digit_sets(seed: int, num_noise: int, images: bool) -> tuple[Dataset, Dataset]:
    """Returns the moved digits to search on, and those to train the best network on."""
    plain = halves(seed, 1100, 347, num_noise, images)
    return moved(plain, seed), moved(plain.with_validation_rows(), seed)


@lru_cache(maxsize=1)
def aerosol() -> Dataset:
    """Returns the parcel model: properties of the particles, and of the air."""
    order = [0, 1, 2, 3, 7, 4, 5, 6]
    train, valid, test = (Rows(part.x[:, order], part.y) for part in parcel()[0])
    return Dataset(train, valid, test, Spec((("particles", (5,)), ("air", (3,))), 1, squared, squared))
