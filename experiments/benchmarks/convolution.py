"""The time of a training step with convolutions, in and outside a compiled loop.

`python -m experiments.benchmarks.convolution` prints CPU milliseconds per step of stochastic gradient descent.
"""

import dataclasses
import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import tyro
from jaxtyping import Array

from ..common.convolution import patches
from .measure import Rounds


@dataclasses.dataclass(frozen=True)
class Config:
    """Time training steps of a network of four convolutions and a linear layer."""

    side: int = 14  # Pixels along an image.
    channels: int = 8  # Channels of the first layer; later ones have two and four times as many.
    batch: int = 64  # Images of a step.
    steps: int = 30  # Steps of a loop.
    rounds: int = 7  # Loops of each kind, interleaved; medians are reported.


def by_xla(x: Array, weight: Array, stride: int) -> Array:
    """Convolves images (rows, height, width, channels) by XLA's own operation."""
    kernel, layout = weight.reshape(3, 3, x.shape[-1], -1), ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=layout)


def by_product(x: Array, weight: Array, stride: int) -> Array:
    """Convolves the same images by a matrix product of patches."""
    return jax.vmap(lambda image: patches(image, stride))(x) @ weight


def make_step(convolve: Callable[[Array, Array, int], Array]) -> Callable[[list[Array], Array], list[Array]]:
    """Returns a training step on images, whose classes are all the first."""

    def loss(weights: list[Array], x: Array) -> Array:
        for weight, stride in zip(weights[:-1], (1, 2, 1, 2), strict=True):
            x = jax.nn.relu(convolve(x, weight, stride))
        return -jnp.mean(jax.nn.log_softmax(x.mean((1, 2)) @ weights[-1])[:, 0])

    return lambda weights, x: [w - 0.05 * g for w, g in zip(weights, jax.grad(loss)(weights, x), strict=True)]


def main(config: Config) -> dict[tuple[str, str], float]:
    """Prints and returns the milliseconds of a step by the convolution and the loop."""
    c, key = config.channels, jax.random.key(0)
    shapes = [(9, c), (9 * c, 2 * c), (18 * c, 2 * c), (18 * c, 4 * c), (4 * c, 10)]
    weights = [jax.random.normal(key, shape) / shape[0] ** 0.5 for shape in shapes]
    images = jax.random.normal(key, (config.steps, config.batch, config.side, config.side, 1))
    calls: dict[tuple[str, str], Callable[[], list[Array]]] = {}
    for name, convolve in (("XLA's convolution", by_xla), ("patches and a product", by_product)):
        step = jax.jit(make_step(convolve))
        scan = lambda w, unroll, step=step: jax.lax.scan(lambda w, x: (step(w, x), None), w, images, unroll=unroll)[0]
        jitted = jax.jit(scan, static_argnames="unroll")
        calls[name, "Python loop"] = lambda step=step: functools.reduce(step, images, weights)
        for unroll in (1, 5):
            calls[name, f"scan, unroll={unroll}"] = lambda jitted=jitted, unroll=unroll: jitted(weights, unroll=unroll)
    timed = Rounds(calls, config.rounds, time.process_time)
    found = {name: timed.seconds(name) / config.steps * 1e3 for name in calls}
    for (name, where), milliseconds in found.items():
        print(f"{name:22} {where:15} {milliseconds:7.2f} ms  {milliseconds / min(found.values()):5.2f}")
    return found


if __name__ == "__main__":
    main(tyro.cli(Config))
