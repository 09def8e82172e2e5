"""Small bilevel problems with known answers.

Each is a function of a seed and of sizes. Losses are functions of this module, so that problems of one shape share
their compiled code whatever the seed. `scale` and `shift` sit in the data for the same reason.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

import hypergrad as hg


def injected(hparams: Any) -> optax.GradientTransformation:
    """Returns momentum SGD with a learned log learning rate, kept in the optimiser's state."""
    return optax.inject_hyperparams(optax.sgd)(learning_rate=jnp.exp(hparams["log_rate"]), momentum=0.9)


def learned(hparams: Any) -> optax.GradientTransformation:
    """Returns momentum SGD with a learned log learning rate for every step."""
    return optax.sgd(lambda count: jnp.exp(hparams["log_rates"][count]), 0.9)


SCHEDULES = {
    "constant": optax.constant_schedule(0.1),
    "exponential": optax.exponential_decay(0.2, 3, 0.7),
    "warm-up and cosine": optax.warmup_cosine_decay_schedule(0.0, 0.2, 2, 8),
}
OPTIMISERS = {"sgd": optax.sgd(0.2), "momentum": optax.sgd(0.1, 0.9), "adam": optax.adam(0.05)}
CONJUGATE = optax.stateless(lambda gradient, _: jax.tree.map(jnp.conj, gradient))  # downhill, in JAX's convention
TRAINING = (
    OPTIMISERS
    | {
        "accumulation": optax.MultiSteps(optax.sgd(0.2, 0.5), 2, accumulator_dtype=None),
        "noise": optax.chain(optax.add_noise(0.01, 0.5, jax.random.key(0)), optax.sgd(0.1)),
        "conjugate": optax.chain(CONJUGATE, optax.sgd(0.2)),
        "injected rate": injected,
    }
    | {"learned rates": learned, "averaged": optax.sgd(0.1, 0.9)}
    | {f"{name} schedule": optax.sgd(schedule, 0.5) for name, schedule in SCHEDULES.items()}
)
AVERAGES = {"averaged": 0.8}  # of the trainings whose outer loss is that of averaged weights


@dataclasses.dataclass(frozen=True)
class Case:
    """A problem, where to start, and the exact hypergradient of the solved inner problem if it is known."""

    problem: hg.BilevelProblem
    params: Any
    hparams: Any
    exact: Callable[[], Any] | None = None

    def replace(
        self, train: dict[str, Any] | None = None, valid: dict[str, Any] | None = None, **changes: Any
    ) -> "Case":
        """Returns the same case with other entries in its data, or other parameters or hyperparameters."""
        problem = self.problem
        problem = hg.BilevelProblem(
            problem.inner_loss, problem.outer_loss, problem.train | (train or {}), problem.valid | (valid or {})
        )
        return dataclasses.replace(self, problem=problem, **changes)


def rows_of(rng: np.random.Generator, num_rows: int, num_features: int, target: Callable[[Any], Any]) -> dict[str, Any]:
    """Draws random inputs, their targets, and the entries that scale and shift a loss."""
    x = rng.normal(size=(num_rows, num_features))
    return {"x": x, "y": target(x), "scale": np.float64(1.0), "shift": np.float64(0.0)}


def ridge_inner(w: Any, hparams: Any, data: Any, key: Array) -> Array:
    """Returns |Xw - y|²/2n + ½ Σ exp(h_i) w_i²."""
    fit = jnp.mean((data["x"] @ w - data["y"]) ** 2) / 2
    return data["scale"] * (fit + jnp.sum(jnp.exp(hparams["log_l2"]) * w**2) / 2) + data["shift"]


def ridge_outer(w: Any, hparams: Any, data: Any, key: Array) -> Array:
    """Returns |Xw - y|²/2m + 0.05 Σ h_i²; the last is a direct term. `unused` enters times 0."""
    fit = jnp.mean((data["x"] @ w - data["y"]) ** 2) / 2 + 0 * hparams["unused"]
    return data["scale"] * (fit + 0.05 * jnp.sum(hparams["log_l2"] ** 2)) + data["shift"]


def ridge(seed: int = 0, num_features: int = 3, num_rows: int = 8) -> Case:
    """Returns ridge regression with one log penalty per weight; the leaf `unused` changes neither loss."""
    rng = np.random.default_rng(seed)
    w_true = rng.normal(size=num_features)
    target = lambda x: x @ w_true + 0.3 * rng.normal(size=len(x))
    train, valid = (rows_of(rng, n, num_features, target) for n in (num_rows, num_rows - 2))
    h = rng.uniform(-2, 0, num_features)

    def exact() -> Any:
        return {"log_l2": ridge_gradient(train, valid, h), "unused": np.float64(0.0)}

    problem = hg.BilevelProblem(ridge_inner, ridge_outer, train, valid)
    hparams = {"log_l2": jnp.asarray(h), "unused": jnp.asarray(0.7)}
    return Case(problem, jnp.asarray(rng.normal(size=num_features)), hparams, exact)


def ridge_gradient(train: dict[str, Any], valid: dict[str, Any], h: Any) -> Any:
    """Returns the exact hypergradient of `ridge` at the log penalties `h`."""
    x, y, u, z, h = (np.asarray(one) for one in (train["x"], train["y"], valid["x"], valid["y"], h))
    hessian = x.T @ x / len(y) + np.diag(np.exp(h))
    w = np.linalg.solve(hessian, x.T @ y / len(y))
    return 0.1 * h - np.exp(h) * w * np.linalg.solve(hessian, u.T @ (u @ w - z) / len(z))


def scheduled(seed: int = 0, num_features: int = 3, num_rows: int = 8) -> Case:
    """Returns `ridge` with a log learning rate per step for the optimiser `learned`."""
    case = ridge(seed, num_features, num_rows)
    rates = np.random.default_rng(seed + 1).uniform(-3, -2, 6)
    return Case(case.problem, case.params, case.hparams | {"log_rates": jnp.asarray(rates)})


def tuned_outer(w: Any, hparams: Any, data: Any, key: Array) -> Array:
    """Returns the outer loss of `ridge` and a price of the learning rates."""
    rates = hparams["log_rate"] ** 2 + jnp.sum(hparams["log_rates"] ** 2)
    return ridge_outer(w, hparams, data, key) + 0.01 * data["scale"] * rates


def tuned(seed: int = 0, num_features: int = 3, num_rows: int = 8) -> Case:
    """Returns `ridge` with log learning rates: `log_rate`, and `log_rates` for up to six steps."""
    case = ridge(seed, num_features, num_rows)
    rates = np.random.default_rng(seed + 1).uniform(-3, -2, 7)
    problem = hg.BilevelProblem(ridge_inner, tuned_outer, case.problem.train, case.problem.valid)
    learned = {"log_rate": jnp.asarray(rates[0]), "log_rates": jnp.asarray(rates[1:])}
    return Case(problem, case.params, case.hparams | learned)


def phasors_inner(w: Any, h: Any, data: Any, key: Array) -> Array:
    """Returns |Xw - y|²/2n + ½ exp(h) |w|², all but h complex."""
    return jnp.mean(jnp.abs(data["x"] @ w - data["y"]) ** 2) / 2 + jnp.exp(h) * jnp.sum(jnp.abs(w) ** 2) / 2


def phasors_outer(w: Any, h: Any, data: Any, key: Array) -> Array:
    """Returns |Xw - y|²/2m."""
    return jnp.mean(jnp.abs(data["x"] @ w - data["y"]) ** 2) / 2


def phasors(seed: int = 0, num_features: int = 2, num_rows: int = 8) -> Case:
    """Returns ridge regression with complex inputs, targets and weights, and one log penalty."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(size=shape) + 1j * rng.normal(size=shape)

    truth, h = draw(num_features), -1.0
    x, z = draw(num_rows, num_features), draw(num_rows, num_features)
    y, u = (a @ truth + 0.5 * draw(num_rows) for a in (x, z))

    def exact() -> np.ndarray:
        hessian = x.conj().T @ x / num_rows + np.exp(h) * np.eye(num_features)
        w = np.linalg.solve(hessian, x.conj().T @ y / num_rows)
        by_w = z.conj().T @ (z @ w - u) / num_rows
        return -np.exp(h) * np.real(np.vdot(by_w, np.linalg.solve(hessian, w)))

    problem = hg.BilevelProblem(phasors_inner, phasors_outer, {"x": x, "y": y}, {"x": z, "y": u})
    return Case(problem, jnp.asarray(draw(num_features)), jnp.asarray(h), exact)


def quadratic_inner(w: Any, h: Any, data: Any, key: Array) -> Array:
    """Returns ½ wᵀAw - wᵀ(Bh + c)."""
    return w @ data["A"] @ w / 2 - w @ (data["B"] @ h + data["c"])


def quadratic_outer(w: Any, h: Any, data: Any, key: Array) -> Array:
    """Returns ½ (w - t)ᵀP(w - t) + ½ hᵀRh."""
    gap = w - data["t"]
    return gap @ data["P"] @ gap / 2 + h @ data["R"] @ h / 2


def positive(rng: np.random.Generator, size: int, low: float = 0.3, high: float = 2.0) -> Any:
    """Draws a symmetric matrix with eigenvalues between `low` and `high`."""
    basis, _ = np.linalg.qr(rng.normal(size=(size, size)))
    return (basis * np.linspace(low, high, size)) @ basis.T


def quadratic(seed: int = 0, size: int = 4, num_hparams: int = 3) -> Case:
    """Returns a problem with constant Hessian and mixed derivative."""
    rng = np.random.default_rng(seed)
    train = {"A": positive(rng, size), "B": rng.normal(size=(size, num_hparams)), "c": rng.normal(size=size)}
    valid = {"P": positive(rng, size), "t": rng.normal(size=size), "R": positive(rng, num_hparams)}
    h = rng.normal(size=num_hparams)

    def exact() -> Any:
        w = np.linalg.solve(train["A"], train["B"] @ h + train["c"])
        return valid["R"] @ h + train["B"].T @ np.linalg.solve(train["A"], valid["P"] @ (w - valid["t"]))

    problem = hg.BilevelProblem(quadratic_inner, quadratic_outer, train, valid)
    return Case(problem, jnp.asarray(rng.normal(size=size)), jnp.asarray(h), exact)


def quadratic_optimum(case: Case) -> Any:
    """Returns the λ that solves the bilevel problem of `quadratic`."""
    A, B, c = (np.asarray(case.problem.train[name]) for name in "ABc")
    P, t, R = (np.asarray(case.problem.valid[name]) for name in "PtR")
    response = np.linalg.solve(A, B)
    return np.linalg.solve(R + response.T @ P @ response, response.T @ P @ (t - np.linalg.solve(A, c)))


def bce(logits: Any, labels: Any) -> Array:
    """Returns the mean binary cross-entropy."""
    return jnp.mean(jnp.logaddexp(0.0, logits) - labels * logits)


def logistic_inner(w: Any, h: Any, data: Any, key: Array) -> Array:
    """Returns the mean cross-entropy + ½ Σ exp(h_i) w_i²."""
    return bce(data["x"] @ w, data["y"]) + jnp.sum(jnp.exp(h) * w**2) / 2


def logistic_outer(w: Any, h: Any, data: Any, key: Array) -> Array:
    """Returns the mean cross-entropy."""
    return bce(data["x"] @ w, data["y"])


def logistic(seed: int = 0, num_features: int = 3, num_rows: int = 12) -> Case:
    """Returns a problem of two classes, with one log penalty per weight."""
    rng = np.random.default_rng(seed)
    w_true = rng.normal(size=num_features)
    label = lambda x: (x @ w_true + rng.normal(size=len(x)) > 0).astype(np.float64)
    train, valid = (rows_of(rng, num_rows, num_features, label) for _ in range(2))
    h = rng.uniform(-3, -1, num_features)

    def exact() -> Any:
        x, y, w = train["x"], train["y"], np.zeros(num_features)
        for _ in range(50):
            s = 1 / (1 + np.exp(-x @ w))
            hessian = (x.T * (s * (1 - s))) @ x / num_rows + np.diag(np.exp(h))
            w = w - np.linalg.solve(hessian, x.T @ (s - y) / num_rows + np.exp(h) * w)
        by_w = valid["x"].T @ (1 / (1 + np.exp(-valid["x"] @ w)) - valid["y"]) / num_rows
        return -np.exp(h) * w * np.linalg.solve(hessian, by_w)

    problem = hg.BilevelProblem(logistic_inner, logistic_outer, train, valid)
    return Case(problem, jnp.zeros(num_features), jnp.asarray(h), exact)


def net_inner(model: Any, hparams: Any, data: Any, key: Array) -> Array:
    """Returns the squared error under input noise, penalised."""
    noise = jnp.exp(hparams["log_noise"]) * jax.random.normal(key, data["x"].shape, data["x"].dtype)
    weights = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
    penalty = sum(jnp.sum(leaf**2) for leaf in weights)
    return jnp.mean((jax.vmap(model)(data["x"] + noise) - data["y"]) ** 2) + jnp.exp(hparams["log_l2"]) * penalty


def net_outer(model: Any, hparams: Any, data: Any, key: Array) -> Array:
    """Returns the squared error and a direct term."""
    return jnp.mean((jax.vmap(model)(data["x"]) - data["y"]) ** 2) + 0.01 * hparams["log_l2"] ** 2


def net(seed: int = 0, num_rows: int = 6) -> Case:
    """Returns a tanh network whose loss is random: neither quadratic nor noiseless."""
    rng = np.random.default_rng(seed)
    train, valid = (rows_of(rng, num_rows, 2, lambda x: np.sin(x.sum(1))) for _ in range(2))
    model = eqx.nn.MLP(2, "scalar", 3, 1, activation=jnp.tanh, key=jax.random.key(seed))
    hparams = {"log_l2": jnp.asarray(-3.0), "log_noise": jnp.asarray(-2.0)}
    return Case(hg.BilevelProblem(net_inner, net_outer, train, valid), model, hparams)


# Sizes for each problem, smallest first; the last are its defaults.
SIZES: dict[Callable[..., Case], list[tuple[int, ...]]] = {
    ridge: [(1, 4), (2, 6), (3, 8)],
    scheduled: [(1, 4), (3, 8)],
    tuned: [(1, 4), (3, 8)],
    phasors: [(1, 4), (2, 8)],
    quadratic: [(1, 1), (2, 2), (4, 3)],
    logistic: [(1, 4), (3, 12)],
    net: [(2,), (6,)],
}
