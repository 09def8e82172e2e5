"""Emulators of aerosol activation whose layers and units are searched."""

from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

import hypergrad as hg

from ..common.data import Splits

ADAM = optax.adam(3e-3)  # one for all, or each objective would be compiled anew


class Network(NamedTuple):
    """The largest network; `padded` trains all others as masks of it, else each has its own program."""

    max_depth: int
    max_width: int
    padded: bool = True

    def space(self) -> hg.trials.Space:
        """Returns the search space: depth, and the units of every layer there is."""
        units = lambda **options: hg.trials.Int(4, self.max_width, log=True, **options)
        deeper = {f"units_{i}": units(when=hg.trials.When("depth", at_least=i)) for i in range(2, self.max_depth + 1)}
        return hg.trials.Space({"depth": hg.trials.Int(1, self.max_depth), "units_1": units(), **deeper})

    def sizes(self, params: dict[str, Any]) -> tuple[int, tuple[int, ...]]:
        """Returns depth and widths, 1 for layers that are not there."""
        return params["depth"], tuple(params.get(f"units_{i}", 1) for i in range(1, self.max_depth + 1))


class Schedule(eqx.Module):
    """Updates and rows per update at a fraction of the data: both fall with its square root, to a floor."""

    steps: int
    batch: int
    min_steps: int = 500
    min_batch: int = 128

    def at(self, fraction: float) -> tuple[int, int]:
        """Returns updates and rows per update."""
        root = fraction**0.5
        return (
            min(self.steps, max(self.min_steps, round(self.steps * root))),
            min(self.batch, max(self.min_batch, round(self.batch * root / 32) * 32)),
        )


def objective(splits: Splits, shuffle: Array, schedule: Schedule, network: Network, size: int) -> hg.trials.Vmapped:
    """Returns the objective of trials on a fraction of shuffled rows, `size` at once."""
    num_rows = len(splits.train.y)
    shuffled = hg.trials.nested_subset(splits.train, 1.0, shuffle)  # prefixes of one shuffle

    def prepare(trial):
        depth, widths = network.sizes(trial.params)
        amount = (max(1, round(trial.fidelity * num_rows)), *schedule.at(trial.fidelity))
        if network.padded:
            shape = (amount, network.max_depth, network.max_width)
            return shape, (np.int32(depth), np.array(widths, np.int32))
        return (amount, depth, max(widths[:depth])), (np.int32(depth), np.array(widths[:depth], np.int32))

    return hg.trials.Vmapped(partial(train, adam=ADAM), prepare, (shuffled, splits.valid, splits.test), size=size)


def loss(model: Any, rows: Any) -> Array:
    """Returns the mean squared error of the activated fractions."""
    return jnp.mean((jax.nn.sigmoid(jax.vmap(model)(rows.x)) - rows.y) ** 2)


def train(shape: Any, arrays: Any, data: Any, key: Array, adam: optax.GradientTransformation) -> dict[str, Any]:
    """Trains by Adam, the rate a cosine from 3e-3 to 0. The test loss serves the report only."""
    (rows, steps, batch), max_depth, max_width = shape
    depth, widths = arrays
    shuffled, valid, test = data
    here = jax.tree.map(lambda leaf: leaf[:rows], shuffled)
    make_key, batch_key = jax.random.split(key)
    outputs = shuffled.y.shape[1]
    model = hg.trials.MaskedMLP(
        shuffled.x.shape[1],
        outputs,
        max_width,
        max_depth,
        widths=widths,
        depth=depth,
        key=make_key,
        activation=jax.nn.silu,
        gain=6**0.5,  # with 1 deep networks learn nothing for hundreds of updates
    )
    weights, rest = eqx.partition(model, eqx.is_inexact_array)

    def step(carry, t):
        weights, state = carry
        index = jax.random.randint(jax.random.fold_in(batch_key, t), (batch,), 0, rows)
        part = jax.tree.map(lambda leaf: leaf[index], here)
        slopes = jax.grad(lambda weights: loss(eqx.combine(weights, rest), part))(weights)
        updates, state = adam.update(slopes, state)
        rate = 0.5 * (1 + jnp.cos(jnp.pi * t / steps))
        return (optax.apply_updates(weights, jax.tree.map(lambda u: rate * u, updates)), state), None

    (weights, _), _ = jax.lax.scan(step, (weights, adam.init(weights)), jnp.arange(steps))
    trained = eqx.combine(weights, rest)
    test_loss = loss(trained, test)
    return {"value": loss(trained, valid), "size": model.num_params, "metrics": {"test": test_loss}}
