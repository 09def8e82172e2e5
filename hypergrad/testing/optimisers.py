"""Optax's optimisers as inner solvers, alone and chained, for the laws that must hold whatever trains.

Functions of the hyperparameters read `log_rate`, a number, and `log_rates`, one number per step, of `problems.tuned`.
Second moments have an `eps_root`, as the derivative of a square root at zero is infinite.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike
from optax import contrib

STEPS, ROOT = 4, 1e-8


class Halving:
    """A stateful schedule: a rate, half of it, a quarter."""

    def __init__(self, first: ArrayLike):
        self.first = first

    def init(self) -> dict[str, Array]:
        """Returns the first rate."""
        return {"rate": jnp.asarray(self.first)}

    def update(self, state: dict[str, Array], **_: Any) -> dict[str, Array]:
        """Returns half the rate."""
        return {"rate": state["rate"] / 2}

    def __call__(self, state: dict[str, Array], **_: Any) -> Array:
        """Returns the rate."""
        return state["rate"]


def _rate(hparams: dict[str, Array]) -> Array:
    return jnp.exp(hparams["log_rate"])


def _rates(hparams: dict[str, Array]) -> optax.Schedule:
    return lambda count: jnp.exp(hparams["log_rates"][count])


SMOOTH: dict[str, Any] = {
    "sgd": optax.sgd(0.2),
    "momentum": optax.sgd(0.1, 0.9),
    "nesterov": optax.sgd(0.1, 0.9, nesterov=True),
    "adam": optax.adam(0.05, eps_root=ROOT),
    "adamw": optax.adamw(0.05, eps_root=ROOT, weight_decay=0.1),
    "nadam": optax.nadam(0.05, eps_root=ROOT),
    "amsgrad": optax.amsgrad(0.05, eps_root=ROOT),
    "adabelief": optax.adabelief(0.05, eps_root=ROOT),
    "adamax": optax.adamax(0.05),
    "rmsprop": optax.rmsprop(0.05, eps=1e-4, initial_scale=0.1),
    "adagrad": optax.adagrad(0.1, initial_accumulator_value=0.1),
    "adadelta": optax.adadelta(0.5, eps=1e-4),
    "yogi": optax.yogi(0.05),
    "adan": optax.adan(0.05),
    "novograd": optax.novograd(0.05, eps_root=ROOT),
    "lamb": optax.lamb(0.05, eps_root=ROOT),
    "lars": optax.lars(0.05),
    "fromage": optax.fromage(0.05),
    "lion": optax.lion(0.02),
    "sign": optax.sign_sgd(0.02),
    "optimistic gradient": optax.optimistic_gradient_descent(0.1),
    "prodigy": contrib.prodigy(0.5),
    "momo": contrib.momo(0.1),
    "ademamix": contrib.ademamix(0.05, eps_root=ROOT),
    "polyak": optax.polyak_sgd(0.1),
    "schedule-free": contrib.schedule_free_sgd(0.1),
    "moving average": optax.chain(optax.ema(0.9), optax.sgd(0.2)),
    "noise": optax.chain(optax.add_noise(0.01, 0.5, jax.random.key(0)), optax.sgd(0.1)),
    "cosine": optax.adam(optax.cosine_decay_schedule(0.1, STEPS), eps_root=ROOT),
    "clipped by norm": optax.chain(optax.clip_by_global_norm(0.7), optax.sgd(0.2, 0.5)),
    "clipped": optax.chain(optax.clip(0.3), optax.sgd(0.2)),
    "centralised": optax.chain(optax.centralize(), optax.sgd(0.2)),
    "adaptive clipping": optax.chain(optax.adaptive_grad_clip(0.3), optax.sgd(0.2)),
    "accumulation": optax.MultiSteps(optax.sgd(0.2, 0.5), 2, accumulator_dtype=None),
    "every other step": optax.chain(optax.sgd(0.1), optax.apply_every(2)),
    "if finite": optax.apply_if_finite(optax.sgd(0.2), 3),
    "plateau": optax.chain(optax.sgd(0.2), contrib.reduce_on_plateau(factor=0.5, patience=1, atol=10.0)),
    "masked": optax.chain(optax.sgd(0.2), optax.masked(optax.trace(0.5), True)),
    "partition": optax.partition({"a": optax.sgd(0.1, 0.9)}, "a"),
}
LEARNED: dict[str, Any] = {
    "learned rate": lambda h: optax.sgd(_rate(h), 0.9),
    "learned rates": lambda h: optax.sgd(_rates(h), 0.9),
    "learned decay of moments": lambda h: optax.adam(0.05, b1=jax.nn.sigmoid(h["log_rate"]), eps_root=ROOT),
    "learned first accumulator": lambda h: optax.adagrad(0.1, initial_accumulator_value=_rate(h)),
    "learned clipping": lambda h: optax.chain(optax.clip_by_global_norm(3 * _rate(h)), optax.sgd(0.2)),
    "injected rate": lambda h: optax.inject_hyperparams(optax.sgd)(learning_rate=_rate(h), momentum=0.9),
    "injected rates": lambda h: optax.inject_hyperparams(optax.sgd)(learning_rate=_rates(h), momentum=0.9),
    "injected stateful rate": lambda h: optax.inject_hyperparams(optax.sgd)(Halving(_rate(h)), momentum=0.9),
    "injected, accumulated": lambda h: optax.MultiSteps(
        optax.inject_hyperparams(optax.sgd)(learning_rate=_rate(h)), 2, accumulator_dtype=None
    ),
    "learned schedule-free": lambda h: contrib.schedule_free_sgd(_rate(h), b1=jax.nn.sigmoid(-h["log_rate"])),
}
LINEAR = ("sgd", "momentum", "nesterov", "moving average", "accumulation", "every other step", "if finite", "masked")
"""Those whose updates are linear in the gradients: on a quadratic problem DrMAD is exact with them."""
