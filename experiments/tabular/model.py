"""The network, its losses and its hyperparameters."""

import functools
import math
import operator
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree
from scipy.stats import norm

import hypergrad as hg

from .data import Table

GOOD = {"decay": -9.0, "rate": 1e-3, "b1": 0.9}
STARTS: dict[str, dict[str, float]] = {
    "good": GOOD,
    "rate / 30": GOOD | {"rate": 1e-3 / 30},
    "rate x 30": GOOD | {"rate": 3e-2},
    "decay e^-2": GOOD | {"decay": -2.0},
    "no decay, b1 .99": GOOD | {"decay": -20.0, "b1": 0.99},
    "decay e^-4, rate 1e-4, b1 .5": {"decay": -4.0, "rate": 1e-4, "b1": 0.5},
}
GRID: list[dict[str, float]] = [
    {"decay": decay, "rate": rate, "b1": b1}
    for decay in (-20.0, -9.0, -7.0, -5.0, -3.0)
    for rate in (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
    for b1 in (0.5, 0.9)
]
BOX = {"decay": (-14.0, 0.0), "rate": (1e-5, 1e-1), "b1": (0.3, 0.99)}


Decays = Literal["layer", "weight", "both"]


class Losses(NamedTuple):
    """The inner and the outer loss."""

    inner: hg.problem.Loss
    outer: hg.problem.Loss


def network(key: Array, table: Table, hidden: int) -> eqx.nn.MLP:
    """Returns a network with two hidden layers, one output for a regression and one per class else."""
    inputs = table.splits.train.x.shape[1]
    return eqx.nn.MLP(inputs, table.classes or "scalar", hidden, 2, key=key)


def hparams_of(model: eqx.nn.MLP, start: dict[str, float], decays: Decays = "layer") -> dict[str, Any]:
    """Returns log-decays, the log of Adam's rate, and the logit of its b1.

    There is one log-decay per layer, or per weight, or a sum of both, which begins as that of the layer.
    """
    of_layer, shape = jnp.float32(start["decay"]), lambda layer: jnp.shape(layer.weight)
    forms: dict[str, Callable[[Any], Any]] = {
        "layer": lambda layer: of_layer,
        "weight": lambda layer: jnp.full(shape(layer), of_layer),
        "both": lambda layer: (of_layer, jnp.zeros(shape(layer), jnp.float32)),
    }
    return {
        "log_decay": [forms[decays](layer) for layer in model.layers],
        "log_rate": jnp.float32(math.log(start["rate"])),
        "logit_b1": jnp.float32(math.log(start["b1"] / (1 - start["b1"]))),
    }


def log_decay_of(decay: PyTree) -> Array:
    """Returns the log-decay of a layer, or of each of its weights, from one of the forms of `hparams_of`."""
    return functools.reduce(operator.add, jax.tree.leaves(decay))


def adam(hparams: PyTree) -> optax.GradientTransformation:
    """Returns Adam with a learned rate and momentum."""
    return optax.adam(jnp.exp(hparams["log_rate"]), b1=jax.nn.sigmoid(hparams["logit_b1"]), eps_root=1e-12)


def losses_of(classes: int, batch: int) -> Losses:
    """Returns the mean loss of a batch with the penalties, and that of all validation rows."""

    def fit(model, x, y):
        found = jax.vmap(model)(x)
        if not classes:
            return jnp.mean((found - y) ** 2)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(found, y))

    def inner(model, hparams, data, key):
        penalties = [
            jnp.sum(jnp.exp(log_decay_of(decay)) * layer.weight**2) / 2
            for decay, layer in zip(hparams["log_decay"], model.layers, strict=True)
        ]
        return fit(model, *hg.minibatch(key, data, batch)) + sum(penalties)

    def outer(model, hparams, data, key):
        return fit(model, *data)

    return Losses(inner, outer)


@eqx.filter_jit
def _outputs(model, x):
    return jax.vmap(model)(x)


def on_test(model: eqx.nn.MLP, table: Table) -> dict[str, float]:
    """Returns the error on the test rows, RMSE in the target's unit or the share of wrong classes, NLL and calibration.

    The NLL of a regression is that of a Gaussian whose variance is the mean square on the validation rows, in
    standardised units. The calibration error is, for classes, the mean distance between confidence and accuracy in ten
    bins of the confidence, weighted by their rows (Guo et al. 2017). For a regression it is the mean distance between
    levels from 5 to 95 % and the shares of the rows that the Gaussian's central intervals cover.
    """
    splits = table.splits
    found, y = np.asarray(_outputs(model, splits.test.x), float), splits.test.y
    if table.classes:
        shifted = found - found.max(1, keepdims=True)
        log_probs = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        return {
            "test_error": float(np.mean(found.argmax(1) != y)),
            "test_nll": float(-np.mean(log_probs[np.arange(len(y)), y])),
            "calibration_error": _of_classes(np.exp(log_probs), y),
        }
    variance = np.mean((np.asarray(_outputs(model, splits.valid.x), float) - splits.valid.y) ** 2)
    square = np.mean((found - y) ** 2)
    nll = (np.log(2 * np.pi * variance) + square / variance) / 2
    levels = np.linspace(0.05, 0.95, 19)
    within = np.abs(found - y)[:, None] <= norm.ppf((1 + levels) / 2) * np.sqrt(variance)
    return {
        "test_error": float(table.unit * np.sqrt(square)),
        "test_nll": float(nll),
        "calibration_error": float(np.mean(np.abs(within.mean(0) - levels))),
    }


def _of_classes(probs: np.ndarray, y: np.ndarray) -> float:
    """Returns the expected calibration error of probabilities, in ten bins of equal width."""
    confidence, right = probs.max(1), probs.argmax(1) == y
    bins = np.minimum((10 * confidence).astype(int), 9)
    gaps = np.bincount(bins, weights=confidence - right, minlength=10)
    return float(np.abs(gaps).sum() / len(y))
