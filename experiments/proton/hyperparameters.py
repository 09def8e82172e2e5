"""The hyperparameters: those that a gradient moves, in units of their range, and those that only a search chooses."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

import hypergrad as hg

Params = dict[str, Any]  # a point of the search space
Unit = dict[str, np.ndarray]  # every entry from -1 to 1
FLAGS = ("sigmoid", "uniform", "nesterov")


class Choices(NamedTuple):
    """Hyperparameters without a gradient, of one network or with a leading axis of members."""

    widths: Any  # (layers,) units of every hidden layer
    patience: Any  # in updates
    sigmoid: Any  # instead of tanh
    uniform: Any  # initial weights, instead of normal
    nesterov: Any  # Nadam instead of Adam


class Box(eqx.Module):
    """The ranges of the hyperparameters that have a gradient; searches see them as [-1, 1].

    Logarithms are natural; initial scales are relative to Glorot's.

    - `log_rate` 1e-4 ... 1e-2 as in the published runs; `log_clip`, norm of the gradient of one replica, 1e-2 ... 10.
    - `log_scale` of every layer's initial weights, 1/5 ... 5; `log_decay` of every layer, 1e-7 ... 1e-2 times |W|².
    - of `preprocessing` exponents, if any, shifts of the published ranges and (for both kinds) their log widths.
    """

    low: dict[str, Array]
    high: dict[str, Array]

    def __init__(self, hidden_layers: int, preprocessing: int):
        layers = hidden_layers + 1
        ranges: dict[str, Any] = {
            "log_rate": (np.log(1e-4), np.log(1e-2), ()),
            "log_clip": (np.log(1e-2), np.log(10.0), ()),
            "log_scale": (-np.log(5.0), np.log(5.0), (layers,)),
            "log_decay": (np.log(1e-7), np.log(1e-2), (layers,)),
        }
        if preprocessing:
            ranges |= {
                "small_x_shift": (-0.1, 0.1, (preprocessing,)),
                "large_x_shift": (-0.8, 0.8, (preprocessing,)),
                "log_range": (-1.4, 0.4, (2,)),
            }
        self.low, self.high = (
            {name: jnp.full(edges[2], float(edges[i])) for name, edges in ranges.items()} for i in (0, 1)
        )

    def natural(self, unit: PyTree) -> PyTree:
        """Maps [-1, 1] to the ranges; broadcasts over a leading axis."""
        return jax.tree.map(lambda u, low, high: low + (u + 1) / 2 * (high - low), unit, self.low, self.high)

    def centre(self) -> Unit:
        """Returns the point where all searches begin."""
        return {name: np.zeros(np.shape(low)) for name, low in self.low.items()}

    def __len__(self) -> int:
        return sum(np.size(low) for low in self.low.values())


def flat(tree: dict[str, Any]) -> dict[str, Any]:
    """Returns every entry of some arrays under a name of its own: `log_scale_0`."""
    return {
        name + "".join(f"_{j}" for j in index): value.item()
        for name, array in tree.items()
        for index, value in np.ndenumerate(np.asarray(array))
    }


class Ranges(NamedTuple):
    """The search space: the box, widths from `least_width` to those of the layers, patience 10 to 30 % of `steps`.

    Widths are numbers that are rounded, so that a smoothed criterion has a derivative in them too.
    """

    box: Box
    least_width: int
    max_widths: tuple[int, ...]
    steps: int

    def space(self) -> hg.trials.Space:
        """Returns the space that all searchers see."""
        float_leaves = {name: hg.trials.Float(-1.0, 1.0) for name in flat(self.box.centre())}
        widths = {f"width_{i}": hg.trials.Float(self.least_width, most) for i, most in enumerate(self.max_widths)}
        flags = {name: hg.trials.Categorical((False, True)) for name in FLAGS}
        return hg.trials.Space({**float_leaves, **widths, "patience": hg.trials.Float(0.1, 0.3), **flags})

    def params(self, unit: Unit, choices: Choices) -> Params:
        """Returns a point of the space."""
        widths = {f"width_{i}": float(width) for i, width in enumerate(choices.widths)}
        fraction = float(np.clip(choices.patience / self.steps, 0.1, 0.3))
        flags = {name: bool(getattr(choices, name)) for name in FLAGS}
        return {**flat(unit), **widths, "patience": fraction, **flags}

    def unit(self, params: Params) -> Unit:
        """Returns the hyperparameters that have a gradient, of a point of the space."""
        return self.gathered({name: params[name] for name in flat(self.box.centre())})

    def gathered(self, values: dict[str, float]) -> Unit:
        """Inverts `flat`, for one value per entry of the box."""
        ends = np.cumsum([np.size(low) for low in self.box.low.values()])
        parts = np.split(np.array([values[name] for name in flat(self.box.centre())]), ends[:-1])
        shapes = {name: np.shape(low) for name, low in self.box.low.items()}
        return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}

    def choices(self, params: Params) -> Choices:
        """Returns the others, patience in updates."""
        widths = np.array([round(params[f"width_{i}"]) for i in range(len(self.max_widths))])
        return Choices(widths, max(1, round(params["patience"] * self.steps)), *(params[name] for name in FLAGS))

    def halves(self) -> dict[str, tuple[float, float]]:
        """Returns middle and half of the range of everything that is a number."""
        leaves = self.space().leaves.items()
        floats = {name: leaf for name, leaf in leaves if isinstance(leaf, hg.trials.Float)}
        return {name: ((leaf.low + leaf.high) / 2, (leaf.high - leaf.low) / 2) for name, leaf in floats.items()}

    def named(self, params: Params) -> dict[str, float]:
        """Returns all hyperparameters in their own units, for a table."""
        choices = self.choices(params)
        natural = jax.tree.map(
            lambda u, low, high: np.asarray(low) + (u + 1) / 2 * (np.asarray(high) - np.asarray(low)),
            self.unit(params),
            self.box.low,
            self.box.high,
        )
        row = flat({name: natural[name] for name in self.box.low}) | flat({"width": choices.widths})
        return row | {"patience": choices.patience} | {name: getattr(choices, name) for name in FLAGS}


def stacked(ranges: Ranges, members: Sequence[Params]) -> tuple[PyTree, Choices]:
    """Returns the hyperparameters with a gradient and the choices of members that have a point each."""
    stack = lambda trees: jax.tree.map(lambda *leaves: np.stack(leaves), *trees)
    unit = stack([ranges.unit(params) for params in members])
    return as_arrays(unit), stack([ranges.choices(params) for params in members])


def as_arrays(unit: PyTree) -> Any:
    """Returns the hyperparameters with a gradient in the precision of training."""
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.result_type(float)), unit)


def spread(tree: PyTree, like: PyTree, num: int) -> PyTree:
    """Broadcasts to all members, unless `tree` has an axis of members; `like` gives the shapes without it."""
    return jax.tree.map(lambda leaf, one: jnp.broadcast_to(leaf, (num, *jnp.shape(one))), tree, like)
