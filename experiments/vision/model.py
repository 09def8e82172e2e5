"""Hyperparameters, optimisers and losses that both networks share."""

import math
from collections.abc import Callable
from functools import cache
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

import hypergrad as hg

from .images import augment
from .network import AXIS

Kind = Literal["images", "text"]
IMAGES = {"decay": 5e-4, "rate": 0.1, "momentum": 0.9, "smoothing": 0.1, "shift": 0.5, "zoom": 0.05}
TEXT = {"decay": 1e-4, "rate": 3e-3, "momentum": 0.9, "smoothing": 0.05}
DEFAULTS: dict[Kind, dict[str, float]] = {"images": IMAGES, "text": TEXT}
BOX = {  # what TPE searches, logarithmically but for the momentum
    "decay": (1e-6, 1e-1),
    "momentum": (0.3, 0.98),
    "smoothing": (1e-3, 0.3),
    "shift": (0.05, 2.0),
    "zoom": (0.01, 0.3),
}
RATE_BOX: dict[Kind, tuple[float, float]] = {"images": (1e-3, 1.0), "text": (1e-4, 1e-1)}
CHUNK = 500  # rows of test data at a time


class Losses(NamedTuple):
    """The inner and the outer loss."""

    inner: hg.problem.Loss
    outer: hg.problem.Loss


def logit(share: float) -> float:
    """Returns the argument at which the logistic function has this value."""
    return math.log(share / (1 - share))


def matrices(model: PyTree) -> list[Array]:
    """Returns the weight matrices of a network, each with a decay of its own."""
    return [leaf for leaf in jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array)) if leaf.ndim == 2]


def hparams_of(model: PyTree, values: dict[str, float]) -> dict[str, Any]:
    """Returns the few hyperparameters as numbers without bounds, with a decay for each weight matrix."""
    found: dict[str, Any] = {
        "log_decay": [jnp.float32(math.log(values["decay"])) for _ in matrices(model)],
        "log_rate": jnp.float32(math.log(values["rate"])),
        "logit_momentum": jnp.float32(logit(values["momentum"])),
        "logit_smoothing": jnp.float32(logit(values["smoothing"])),
    }
    if "shift" in values:
        found["log_augment"] = {name: jnp.float32(math.log(values[name])) for name in ("shift", "zoom")}
    return found


def values_of(hparams: dict[str, Any]) -> dict[str, float]:
    """Returns the hyperparameters as people write them; of the decays the geometric mean."""
    found = {
        "decay": jnp.exp(jnp.mean(jnp.stack(hparams["log_decay"]))),
        "rate": jnp.exp(hparams["log_rate"]),
        "momentum": jax.nn.sigmoid(hparams["logit_momentum"]),
        "smoothing": jax.nn.sigmoid(hparams["logit_smoothing"]),
    } | {name: jnp.exp(value) for name, value in hparams.get("log_augment", {}).items()}
    if "weighting" in hparams:
        found |= {"threshold": hparams["weighting"]["threshold"], "slope": jnp.exp(hparams["weighting"]["log_slope"])}
    return {name: float(value) for name, value in found.items()}


@cache
def optimiser(kind: Kind, updates: int) -> Callable[[PyTree], optax.GradientTransformation]:
    """Returns SGD for images and Adam for text, with learned rate and momentum, times a cosine over all updates."""
    cosine = optax.scale_by_schedule(optax.cosine_decay_schedule(1.0, updates, alpha=0.01))

    def make(hparams: PyTree) -> optax.GradientTransformation:
        rate, momentum = jnp.exp(hparams["log_rate"]), jax.nn.sigmoid(hparams["logit_momentum"])
        rule = optax.sgd(rate, momentum) if kind == "images" else optax.adam(rate, b1=momentum, eps_root=1e-12)
        return optax.chain(rule, cosine)

    return make


def predict(params: PyTree, x: Array) -> tuple[Array, PyTree]:
    """Returns the logits of a batch, and the running averages after it."""
    model, state = params
    return jax.vmap(model, in_axes=(0, None), out_axes=(0, None), axis_name=AXIS)(x, state)


def cross_entropy(logits: Array, y: Array, smoothing: Array | float = 0.0) -> Array:
    """Returns the cross-entropy with (1 - smoothing) · one-hot + smoothing / classes, the mean for each row.

    Of text the first letter of a line does not count, because two letters before the next one are what it depends on.
    """
    logs = jax.nn.log_softmax(logits)
    right = jnp.take_along_axis(logs, y[..., None], -1)[..., 0]
    found = -(1 - smoothing) * right - smoothing * jnp.mean(logs, -1)
    return found if y.ndim == 1 else jnp.mean(found[:, 1:], 1)


def log_share(weighting: dict[str, Array], rows: Array) -> Array:
    """Returns the log of the share to which each row counts, a logistic function of its loss."""
    return jax.nn.log_sigmoid(jnp.exp(weighting["log_slope"]) * (weighting["threshold"] - rows))


def weight_by_loss(weighting: dict[str, Array], rows: Array) -> Array:
    """Returns a weight for each row of a batch, proportional to its share, with mean 1 and held for the gradient.

    With a mean below 1 a lower threshold would lower the rate as well, which short horizons ask for.

    **Source**: Shu et al. (2019), Meta-Weight-Net, with a threshold and a slope in place of their network.
    """
    return len(rows) * jax.nn.softmax(log_share(weighting, jax.lax.stop_gradient(rows)))


def inner_loss(params, hparams, data, key):
    """Returns the weighted, smoothed cross-entropy of augmented rows with the penalties, and the running averages."""
    x = data.x
    if "log_augment" in hparams:
        strength = hparams["log_augment"]
        x = augment(x, jnp.exp(strength["shift"]), jnp.exp(strength["zoom"]), key)
    logits, state = predict(params, x)
    rows = cross_entropy(logits, data.y, jax.nn.sigmoid(hparams["logit_smoothing"]))
    if "example" in hparams:
        rows = 2 * jax.nn.sigmoid(hparams["example"][data.row]) * rows
    if "weighting" in hparams:
        rows = weight_by_loss(hparams["weighting"], rows) * rows
    penalties = [
        jnp.exp(log_decay) * jnp.sum(weight**2) / 2
        for log_decay, weight in zip(hparams["log_decay"], matrices(params[0]), strict=True)
    ]
    return jnp.mean(rows) + sum(penalties), state


def outer_loss(params, hparams, data, key):
    """Returns the cross-entropy of rows as they are, with running averages."""
    return jnp.mean(cross_entropy(predict(eqx.nn.inference_mode(params), data.x)[0], data.y))


@eqx.filter_jit
def _measured(params, x, y, smoothing):
    logits, _ = predict(eqx.nn.inference_mode(params), x)
    wrong = jnp.argmax(logits, -1) != y
    wrong = wrong.astype(jnp.float32) if y.ndim == 1 else jnp.mean(wrong[:, 1:], 1)
    return wrong, cross_entropy(logits, y, smoothing)


def weights_of(params: PyTree, hparams: PyTree, data: Any) -> np.ndarray | None:
    """Returns the shares to which training rows count, by loss those for this model; `None` where all count alike."""
    if "example" in hparams:
        return np.asarray(jax.nn.sigmoid(hparams["example"]))
    if "weighting" not in hparams:
        return None
    _, rows = _in_chunks(params, data, jax.nn.sigmoid(hparams["logit_smoothing"]))
    return np.exp(np.asarray(log_share(hparams["weighting"], jnp.asarray(rows))))


def measure(params: PyTree, data: Any) -> dict[str, float]:
    """Returns the share of wrong answers in percent and the mean cross-entropy in nats."""
    wrong, loss = _in_chunks(params, data, jnp.float32(0))
    return {"error": 100 * float(np.mean(wrong)), "loss": float(np.mean(loss))}


def _in_chunks(params: PyTree, data: Any, smoothing: Array) -> list[np.ndarray]:
    """Returns what is wrong and the cross-entropy, for every row."""
    chunks = [slice(n, n + CHUNK) for n in range(0, len(data.y), CHUNK)]
    parts = [_measured(params, data.x[chunk], data.y[chunk], smoothing) for chunk in chunks]
    return [np.concatenate([np.asarray(part[n]) for part in parts]) for n in range(2)]
