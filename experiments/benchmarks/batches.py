"""The time of one minibatch, compared with that of gathering its rows.

`python -m experiments.benchmarks.batches` prints microseconds for batches inside a compiled loop.
"""

import dataclasses
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import tyro
from jaxtyping import Array

import hypergrad as hg

from .measure import median_seconds


@dataclasses.dataclass(frozen=True)
class Config:
    """Time batches of a data set that lies on the device."""

    rows: int = 1_000_000  # Rows of the data.
    features: int = 32  # Numbers in a row.
    size: int = 256  # Rows of a batch.
    loop: int = 200  # Batches in one compiled loop.
    repeats: int = 15  # Loops; their median is reported.


def microseconds(config: Config, draw: Callable[[Array, Array], Array]) -> float:
    """Returns the time of one batch of a loop that sums up what `draw(data, t)` gives."""
    data = jnp.ones((config.rows, config.features))

    @jax.jit
    def loop(data: Array, first: Array) -> Array:
        body = lambda t, total: total + jnp.sum(draw(data, first + t))
        return jax.lax.fori_loop(0, config.loop, body, jnp.zeros(()))

    firsts = itertools.count(step=config.loop)
    return median_seconds(lambda: loop(data, jnp.int32(next(firsts))), config.repeats) / config.loop * 1e6


def main(config: Config) -> dict[str, float]:
    """Prints and returns the microseconds of a batch by name."""
    key, size = jax.random.key(0), config.size
    rows = jax.random.randint(key, (config.rows,), 0, config.rows)
    methods: dict[str, Callable[[Array, Array], Array]] = {
        "gather": lambda data, t: data[jax.lax.dynamic_slice_in_dim(rows, t * size % (config.rows - size), size)],
        "minibatch": lambda data, t: hg.minibatch(jax.random.fold_in(key, t), data, size),
        "epoch_batch": lambda data, t: hg.epoch_batch(key, t, data, size),
    }
    found = {name: microseconds(config, draw) for name, draw in methods.items()}
    for name, number in found.items():
        print(f"{name:12} {number:8.1f} µs  {number / found['gather']:5.2f} gathers")
    return found


if __name__ == "__main__":
    main(tyro.cli(Config))
