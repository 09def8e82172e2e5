"""The hyperparameters: what a gradient moves, in units of its range, and what only a search can choose."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

Unit = dict[str, np.ndarray]  # every entry from -1 to 1


class Choices(NamedTuple):
    """Hyperparameters without a gradient, of one network or with a leading axis of members."""

    widths: Any  # (layers,) units of every hidden layer
    patience: Any  # in updates
    sigmoid: Any  # instead of tanh
    uniform: Any  # initial weights, instead of normal
    nesterov: Any  # Nadam instead of Adam


class Space(eqx.Module):
    """The box of the hyperparameters that have a gradient; searches see it as [-1, 1]."""

    low: dict[str, Array]
    high: dict[str, Array]

    def natural(self, unit: PyTree) -> PyTree:
        """From [-1, 1] to the box; broadcasts over a leading axis."""
        return jax.tree.map(lambda u, low, high: low + (u + 1) / 2 * (high - low), unit, self.low, self.high)

    def centre(self) -> Unit:
        """Where all searches begin."""
        return {name: np.zeros(np.shape(low)) for name, low in self.low.items()}

    def __len__(self) -> int:
        return sum(np.size(low) for low in self.low.values())


def make_space(hidden_layers: int, preprocessing: int) -> Space:
    """The box. Logarithms are natural; initial scales are relative to Glorot's.

    - `log_rate` 1e-4 ... 1e-2 as in the published runs; `log_clip`, norm of the gradient of one replica, 1e-2 ... 10.
    - `log_scale` of every layer's initial weights, 1/5 ... 5; `log_decay` of every layer, 1e-7 ... 1e-2 times |W|².
    - of `preprocessing` exponents, if any, shifts of the published ranges and (for both kinds) their log widths.
    """
    layers = hidden_layers + 1
    box: dict[str, Any] = {
        "log_rate": (np.log(1e-4), np.log(1e-2), ()),
        "log_clip": (np.log(1e-2), np.log(10.0), ()),
        "log_scale": (-np.log(5.0), np.log(5.0), (layers,)),
        "log_decay": (np.log(1e-7), np.log(1e-2), (layers,)),
    }
    if preprocessing:
        box |= {
            "small_x_shift": (-0.1, 0.1, (preprocessing,)),
            "large_x_shift": (-0.8, 0.8, (preprocessing,)),
            "log_range": (-1.4, 0.4, (2,)),
        }
    low, high = ({name: jnp.full(edges[2], float(edges[i])) for name, edges in box.items()} for i in (0, 1))
    return Space(low, high)


def spread(tree: PyTree, like: PyTree, num: int) -> PyTree:
    """For every member the same, unless `tree` has an axis of members already; `like` gives the shapes without it."""
    return jax.tree.map(lambda leaf, one: jnp.broadcast_to(leaf, (num, *jnp.shape(one))), tree, like)


def named(unit: Unit, choices: Choices, space: Space) -> dict[str, float]:
    """All hyperparameters in their own units, by name, for a table."""
    row = {}
    for name, low in space.low.items():
        values = np.asarray(low) + (np.asarray(unit[name]) + 1) / 2 * (np.asarray(space.high[name]) - np.asarray(low))
        for i, value in np.ndenumerate(values):
            row[name + "".join(f"_{j}" for j in i)] = float(value)
    row |= {f"width_{i}": int(width) for i, width in enumerate(choices.widths)}
    return (
        row
        | {"patience": int(choices.patience)}
        | {name: bool(getattr(choices, name)) for name in ("sigmoid", "uniform", "nesterov")}
    )
