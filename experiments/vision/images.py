"""Images with some wrong labels, and their random shifts and zooms."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ..common.data import Rows
from ..common.downloads import DataError

SIDE, CLASSES = 28, 10


class Images(NamedTuple):
    """Images of shape (rows, side, side), their labels, and their indices among the training images."""

    x: np.ndarray
    y: np.ndarray
    row: np.ndarray

    @staticmethod
    def of(rows: Rows, side: int, mean: float, deviation: float) -> "Images":
        """Returns scaled images whose pixels are means over squares."""
        step = SIDE // side
        x = rows.x.reshape(-1, side, step, side, step).mean((2, 4))
        return Images(((x - mean) / deviation).astype(np.float32), rows.y, np.arange(len(rows.y), dtype=np.int32))

    def take(self, chosen: np.ndarray) -> "Images":
        """Returns some of the images."""
        return Images(*(part[chosen] for part in self))


class Sample(NamedTuple):
    """Training, validation and test images; `wrong` marks the training images with wrong labels."""

    train: Images
    valid: Images
    test: Images
    wrong: np.ndarray


def draw(images: tuple[Rows, Rows], seed: int, sizes: tuple[int, int, int], noise: float) -> Sample:
    """Draws training and validation images, and gives a share `noise` of the former the label of another class.

    `images` are those to draw from, and the test images. `sizes` are the numbers of training and of validation images,
    and the pixels along a side.

    **Raises** `DataError` where the data set has fewer images, or no squares of pixels make such a side.
    """
    num_train, num_valid, side = sizes
    pool, test = images
    if num_train + num_valid > len(pool.y):
        raise DataError(f"rows + valid is {num_train + num_valid}, but there are {len(pool.y)} images to share")
    if SIDE % side:
        raise DataError(f"side must divide {SIDE}, got {side}")
    random = np.random.default_rng(seed)
    order = random.permutation(len(pool.y))
    train, valid = pool.take(order[:num_train]), pool.take(order[num_train : num_train + num_valid])
    y = train.y.copy()
    chosen = random.permutation(num_train)[: round(noise * num_train)]
    y[chosen] = (y[chosen] + random.integers(1, CLASSES, len(chosen))) % CLASSES
    scaled = lambda rows: Images.of(rows, side, train.x.mean(), train.x.std())
    return Sample(scaled(Rows(train.x, y)), scaled(valid), scaled(test), y != train.y)


def warp(x: Array, shift: Array, zoom: Array) -> Array:
    """Returns an image moved by `shift` (rows, columns) pixels and enlarged by the factor `zoom`.

    Interpolation is linear, so that derivatives by both exist. Pixels beyond the edge are those of the edge.
    """

    def weights(offset: Array) -> Array:
        side = x.shape[0]
        centre, pixels = (side - 1) / 2, jnp.arange(side, dtype=x.dtype)
        source = jnp.clip(centre + (pixels - centre) / zoom - offset, 0, side - 1)
        return jnp.maximum(0, 1 - jnp.abs(source[:, None] - pixels))

    return weights(shift[0]) @ x @ weights(shift[1]).T


def augment(x: Array, shift: Array, zoom: Array, key: Array) -> Array:
    """Returns images of shape (rows, side, side) moved and zoomed at random.

    Moves are Gaussian with deviation `shift` in pixels, the logs of factors Gaussian with deviation `zoom`.
    """
    draws = jax.random.normal(key, (len(x), 3), x.dtype)
    return jax.vmap(warp)(x, shift * draws[:, :2], jnp.exp(zoom * draws[:, 2]))
