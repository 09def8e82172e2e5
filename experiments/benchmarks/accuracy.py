"""The measured error of approximate hypergradients compared with the true one, over a very long training.

`python -m experiments.benchmarks.accuracy` trains a small tanh network on the digits, one penalty per weight, at
learning rate 0.1 and momentum 0.9. The exact hypergradient is that of `Reverse` with √T checkpoints. The guide has a
table of what was found.
"""

import dataclasses
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jaxtyping import Array, PyTree

import hypergrad as hg
from hypergrad.testing.tolerances import relative_error

from ..common.data import digits
from .problems import cross_entropy, l2

KEY = jax.random.key(7)


@dataclasses.dataclass(frozen=True)
class Config:
    """Measure errors of approximate hypergradients, true and as measured."""

    num_steps: int = 100_000
    """Training steps, T."""
    rows: int = 100
    """Rows of the training data, and as many of the validation data."""
    width: int = 16
    """Units of each of the two hidden layers."""
    log_penalty: float = -7.0
    """The hyperparameter of every weight."""


def outer_loss(model: PyTree, hparams: PyTree, data: PyTree, key: Array) -> Array:
    """Returns the mean cross-entropy."""
    return jnp.mean(cross_entropy(jax.vmap(model)(data[0]), data[1]))


def inner_loss(model: PyTree, hparams: PyTree, data: PyTree, key: Array) -> Array:
    """Returns the mean cross-entropy and ½ Σ exp(λ) w²."""
    return outer_loss(model, hparams, data, key) + l2(eqx.filter(model, eqx.is_inexact_array), hparams)


def estimators(inner: hg.AbstractInnerSolver) -> dict[str, hg.AbstractEstimator]:
    """Returns those that are compared, by name."""
    total = inner.num_steps
    root = int(total**0.5)
    return {
        "DrMAD, √T knots": hg.DrMAD(inner, knots=root),
        "DrMAD, T/10 knots, cubic": hg.DrMAD(inner, knots=max(total // 10, 1), cubic=True),
        "Reverse, horizon 100": hg.Reverse(inner, horizon=min(100, total)),
        "Reverse, float16": hg.Reverse(inner, storage=jnp.float16),
    }


def errors(config: Config) -> dict[str, tuple[float, float, hg.Status]]:
    """Returns the true error, the measured one, and the status of every estimator."""
    data = digits()
    order = np.random.default_rng(0).permutation(len(data.y))
    train, valid = (data.take(order[k * config.rows : (k + 1) * config.rows]) for k in range(2))
    model = eqx.nn.MLP(64, 10, config.width, 2, activation=jnp.tanh, key=jax.random.key(0))
    hparams = jax.tree.map(lambda w: jnp.full_like(w, config.log_penalty), eqx.filter(model, eqx.is_inexact_array))
    problem = hg.BilevelProblem(inner_loss, outer_loss, tuple(train), tuple(valid))
    inner = hg.OptaxSolver(optax.sgd(0.1, 0.9), config.num_steps)

    def first(estimator: hg.AbstractEstimator) -> hg.Estimate:
        state = estimator.init(problem, model, hparams)
        return estimator.step(problem, hparams, state, KEY)[0]

    exact = first(hg.Reverse(inner, checkpoints="sqrt")).hypergradient
    found = {}
    for name, estimator in estimators(inner).items():
        started = time.perf_counter()
        estimate = first(estimator)
        true = relative_error(estimate.hypergradient, exact)
        measured = float(estimate.stats.diagnostics["relative_error"])
        found[name] = true, measured, hg.Status(int(estimate.stats.status))
        line = f"{name:26s} error {true:.3g}, measured {measured:.3g}, {found[name][2]}"
        print(f"{line}, {time.perf_counter() - started:.0f} s", flush=True)
    return found


if __name__ == "__main__":
    errors(tyro.cli(Config))
