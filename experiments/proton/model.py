"""A network and its predictions: x times the PDFs, or a function of some features. One replica at a time."""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .data import ProtonTables, RegressionTables
from .hyperparameters import Choices

# Ranges of the exponents of S, g, V, V3, V8, T3, T8, T15, from which every replica draws its own: NNPDF4.0.
SMALL_X = np.array(
    [
        *([1.091, 1.119], [0.7795, 1.095], [0.472, 0.7576], [0.0748, 0.4501]),
        *([0.5731, 0.779], [-0.5498, 1.0], [0.5469, 0.857], [1.081, 1.142]),
    ]
)
LARGE_X = np.array(
    [
        *([1.471, 3.021], [2.742, 5.547], [1.571, 3.559], [1.714, 3.467]),
        *([1.555, 3.465], [1.778, 3.5], [1.555, 3.391], [1.491, 3.092]),
    ]
)


class Layers(eqx.Module):
    """Displacements of weights and biases by training, padded to the largest width."""

    weights: tuple[Array, ...]
    biases: tuple[Array, ...]


class Own(NamedTuple):
    """The draws of a replica: initial weights of unit variance of two kinds, exponents in units of their half-range."""

    normal: tuple[Array, ...]
    uniform: tuple[Array, ...]
    exponents: Array  # (2, outputs)


def shapes(inputs: int, outputs: int, hidden: tuple[int, ...]) -> list[tuple[int, int]]:
    """Returns (out, in) of every layer."""
    return list(zip((*hidden, outputs), (inputs, *hidden), strict=True))


def unmoved(sizes: list[tuple[int, int]], level: float) -> Layers:
    """Returns the network before training.

    `level` is the last bias: where outputs are divided by their integrals (1 for PDFs) these must not begin near 0.
    """
    *hidden, last = [jnp.zeros(out) for out, _ in sizes]
    return Layers(tuple(jnp.zeros(size) for size in sizes), (*hidden, last + level))


def draw_own(key: Array, sizes: list[tuple[int, int]], outputs: int) -> Own:
    """Draws what belongs to one replica."""
    keys = jax.random.split(key, 2 * len(sizes) + 1)
    normal = tuple(jax.random.normal(k, size) for k, size in zip(keys, sizes, strict=False))
    edge = np.sqrt(3.0)
    uniform = tuple(
        jax.random.uniform(k, size, minval=-edge, maxval=edge)
        for k, size in zip(keys[len(sizes) :], sizes, strict=False)
    )
    return Own(normal, uniform, jax.random.uniform(keys[-1], (2, outputs), minval=-1.0))


def effective_weights(moved: Layers, own: Own, hparams: dict[str, Any], choices: Choices) -> list[Array]:
    """Returns W_l = mask_l (s_l √(2/(in + out)) z_l + ΔW_l), with the true numbers of units in and out.

    The mask is 0 for units beyond the width chosen, so that the network is the narrower one exactly. Training moves
    ΔW from 0, and the derivative by the initial scale s_l is that of a loss.
    """
    true = [moved.weights[0].shape[1], *choices.widths, moved.weights[-1].shape[0]]
    weights = []
    for layer, moves in enumerate(moved.weights):
        inside = [jnp.arange(size) < true[layer + 1 - i] for i, size in enumerate(moves.shape)]
        spread = jnp.exp(hparams["log_scale"][layer]) * jnp.sqrt(2.0 / jnp.asarray(true[layer] + true[layer + 1]))
        drawn = jnp.where(choices.uniform, own.uniform[layer], own.normal[layer])
        weights.append(jnp.where(inside[0][:, None] & inside[1], spread.astype(moves.dtype) * drawn + moves, 0))
    return weights


def network(moved: Layers, own: Own, hparams: dict[str, Any], choices: Choices, x: Array) -> Array:
    """Returns outputs of shape (rows, outputs) at inputs of shape (rows, inputs); the last layer is linear.

    sigmoid(z) = ½ + ½ tanh(z/2), so that the choice between it and tanh costs nothing.
    """
    half = jnp.where(choices.sigmoid, 0.5, 1.0).astype(x.dtype)
    *hidden, last = zip(effective_weights(moved, own, hparams, choices), moved.biases, strict=True)
    for weight, bias in hidden:
        x = (1 - half) + half * jnp.tanh(half * (x @ weight.T + bias))
    return x @ last[0].T + last[1]


def penalty(moved: Layers, own: Own, hparams: dict[str, Any], choices: Choices) -> Array:
    """Returns Σ_l exp(log_decay_l) |W_l|²."""
    sizes = jnp.stack([jnp.sum(w**2) for w in effective_weights(moved, own, hparams, choices)])
    return jnp.sum(jnp.exp(hparams["log_decay"]) * sizes)


class AbstractTheory(eqx.Module):
    """A map from a network to predictions of N points, through the values `fields` that they all are made of."""

    inputs: eqx.AbstractVar[int]
    outputs: eqx.AbstractVar[int]

    @abc.abstractmethod
    def fields(self, moved: Layers, own: Own, hparams: dict[str, Any], choices: Choices) -> Array:
        """Returns values of shape (columns,)."""

    @abc.abstractmethod
    def rest(self, fields: Array) -> Array:
        """Returns predictions of the points that are not linear in the fields, or that are the fields."""

    @abc.abstractmethod
    def predict(self, fields: Array) -> Array:
        """Returns predictions of all N points."""


class RegressionTheory(AbstractTheory):
    """A function at N rows of features."""

    rows: Array
    inputs: int = eqx.field(static=True)
    outputs: int = eqx.field(static=True)

    def __init__(self, tables: RegressionTables):
        self.rows = jnp.asarray(tables.inputs, jnp.result_type(float))
        self.inputs, self.outputs = self.rows.shape[1], 1

    def fields(self, moved, own, hparams, choices):
        """Returns the function at all rows."""
        return network(moved, own, hparams, choices, self.rows)[:, 0]

    def rest(self, fields):
        """Returns all of them."""
        return fields

    def predict(self, fields):
        """Returns all of them."""
        return fields


class ProtonTheory(AbstractTheory):
    """x times the PDFs at Q0 in the evolution basis, and the predictions that the FK tables make of them:

        x f_b(x) = A_b x^(1 - α_b) (1 - x)^β_b NN_b(x, ln x)

    A_g is set by the momentum, A_V, A_V3, A_V8 by the numbers of quarks (3, 1, 3), the others are 1:

        ∫ x (S + g) dx = 1,    ∫ V dx = 3,    ∫ V3 dx = 1,    ∫ V8 dx = 3

    by Gauss-Legendre quadrature, half of the nodes in ln x from 1e-9 to 0.1 and half in x from 0.1 to 1.

    **Source**: NNPDF (2022), "The path to proton structure at 1% accuracy", sections 3.1 and 3.2.
    """

    map: Array
    numerator: Array
    denominator: Array
    ratio_rows: Array
    x: Array  # the grid of the tables, then the nodes
    node_weights: Array  # of ∫ dx
    inputs: int = eqx.field(static=True)
    outputs: int = eqx.field(static=True)

    def __init__(self, tables: ProtonTables, num_nodes: int = 200):
        to = lambda array: jnp.asarray(array, jnp.result_type(float))
        self.map, self.denominator = to(tables.map), to(tables.denominator)
        self.numerator, self.ratio_rows = self.map[tables.ratio_rows], jnp.asarray(tables.ratio_rows, jnp.int32)
        nodes, weights = quadrature(num_nodes)
        self.x, self.node_weights = to(np.concatenate([tables.grid, nodes])), to(weights)
        self.inputs, self.outputs = 2, len(tables.basis)

    def distributions(self, moved: Any, own: Any, hparams: Any, choices: Any, x: Array | None = None) -> Array:
        """Returns x f_b of shape (points, 8), at the grid and the nodes, before them at x if that is given."""
        nodes = len(self.node_weights)
        x = self.x if x is None else jnp.concatenate([x, self.x[-nodes:]])
        ranges = np.stack([SMALL_X, LARGE_X])
        middle, half = (jnp.asarray(r, x.dtype) for r in (ranges.mean(-1), np.ptp(ranges, axis=-1) / 2))
        shifts = jnp.stack([hparams["small_x_shift"], hparams["large_x_shift"]])
        small, large = middle + shifts + jnp.exp(hparams["log_range"])[:, None] * half * own.exponents
        logs = jnp.log(x)[:, None]
        shape = jnp.exp((1 - small) * logs + large * jnp.log1p(-x)[:, None])
        f = shape * network(moved, own, hparams, choices, jnp.stack([x, jnp.log(x)], axis=1))
        momentum = self.node_weights @ f[-nodes:]
        number = (self.node_weights / x[-nodes:]) @ f[-nodes:]
        one = jnp.ones((), x.dtype)
        factors = [one, (1 - momentum[0]) / momentum[1], 3 / number[2], 1 / number[3], 3 / number[4], one, one, one]
        return f * jnp.stack(factors)

    def fields(self, moved, own, hparams, choices):
        """Returns x f on the grid of the tables, flavour by flavour."""
        values = self.distributions(moved, own, hparams, choices)
        return values[: len(self.x) - len(self.node_weights)].T.ravel()

    def rest(self, fields):
        """Returns F2 of the deuteron over that of the proton."""
        return (self.numerator @ fields) / (self.denominator @ fields)

    def predict(self, fields):
        """Returns the predictions of all points."""
        return (self.map @ fields).at[self.ratio_rows].set(self.rest(fields))


def quadrature(num: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns nodes x and weights of ∫ dx from 1e-9 to 1."""
    low, weights_low = np.polynomial.legendre.leggauss(num // 2)
    high, weights_high = np.polynomial.legendre.leggauss(num - num // 2)
    span = np.log(0.1 / 1e-9) / 2
    x = np.exp(np.log(0.1) + span * (low - 1))
    return np.concatenate([x, 0.55 + 0.45 * high]), np.concatenate([span * weights_low * x, 0.45 * weights_high])
