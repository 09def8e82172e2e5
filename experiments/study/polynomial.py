"""The synthetic data of the study, and their results in closed form."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ensembles import MeanField

from ..common.data import Rows, Splits, train_and_test

NUM_ROWS, NUM_TEST = 40, 40
POWERS = 10
_POWER_MOMENTS = [np.prod(np.arange(2 * power - 1, 0, -2.0)) for power in range(POWERS)]  # (2k - 1)!!
_MOMENTS = np.array([*_POWER_MOMENTS, (1 - np.exp(-2)) / 2, (1 + np.exp(-2)) / 2])  # E[f²] under x ~ N(0, 1)
_UNITS = (_MOMENTS**-0.5).astype(np.float32)
OFFSET = np.log(_MOMENTS).astype(np.float32)  # log-variance of a weight in training units less that in its own


def features(x: np.ndarray) -> np.ndarray:
    """Returns x⁰ ... x⁹, sin x, cos x of every x, of shape (rows, 12)."""
    return np.stack([x**power for power in range(POWERS)] + [np.sin(x), np.cos(x)], 1)


def sample(seed: int) -> Splits:
    """Draws 40 training and as many test rows of y = x + ε with x, ε ~ N(0, 1) (Bakhteev and Strijov 2020)."""
    random = np.random.default_rng(seed)

    def draw(count):
        x = random.normal(size=count)
        return Rows(features(x).astype(np.float32), (x + random.normal(size=count)).astype(np.float32))

    return train_and_test(draw(NUM_ROWS), draw(NUM_TEST))


class Layer(eqx.Module):
    """The only layer, with the weights."""

    weight: Array

    def __call__(self, x: Array) -> Array:
        """Returns x · w."""
        return x @ self.weight


class Linear(eqx.Module):
    """A linear model in the features; starts at zero.

    Its weights are trained on features of unit mean square, u_j = w_j E[f_j²]^½, because x⁹ is some 10⁴ times as large
    as x.
    """

    layers: tuple[Layer, ...]

    def __init__(self, key: Array):
        self.layers = (Layer(jnp.zeros(POWERS + 2, jnp.float32)),)

    def __call__(self, x: Array) -> Array:
        """Returns x · w."""
        return self.layers[0](x * _UNITS)


def expected_log_likelihood(posterior: MeanField, rows: Rows) -> Array:
    """Returns E_q log N(y | x·w, 1) of every row without its constant: -½ [(y - x·μ)² + Σ_j x_j² s_j²]."""
    spread = jnp.exp(2 * posterior.log_std.layers[0].weight)
    return -((jax.vmap(posterior.mean)(rows.x) - rows.y) ** 2 + (rows.x * _UNITS) ** 2 @ spread) / 2


def best_mean_field(rows: Rows, box: tuple[float, float], iterations: int = 5000) -> tuple[float, np.ndarray]:
    """Returns the largest evidence bound over mean-field posteriors and log-variances in the box, and the means.

    At given precisions α the best posterior is μ = (XᵀX + diag α)⁻¹ Xᵀy, s_j² = 1/((XᵀX)_jj + α_j); at a given
    posterior the best log-variance is log(μ_j² + s_j²), clipped. The two steps alternate until nothing moves, from
    several starts. Without the constant -(m/2) log 2π.
    """
    X, y = rows.x.astype(float), rows.y.astype(float)
    h = np.repeat(np.linspace(*box, 5)[:, None], X.shape[1], 1)
    for _ in range(iterations):
        _, mean, variance = _bound(h, X, y)
        moved = np.clip(np.log(mean**2 + variance), *box)
        if np.max(np.abs(moved - h)) < 1e-10:
            break
        h = moved
    value, mean, _ = _bound(h, X, y)
    return float(value.max()), mean[int(np.argmax(value))]


def best_of_draws(rows: Rows, prior: tuple[float, float], draws: int, repetitions: int = 100, seed: int = 0) -> float:
    """Returns the result of random search where every draw is trained to the end.

    It is the largest evidence bound among draws of the log-variances, uniform in `prior`; the mean over repetitions.
    """
    X, y = rows.x.astype(float), rows.y.astype(float)
    h = np.random.default_rng(seed).uniform(*prior, (repetitions, draws, X.shape[1]))
    return float(np.mean(np.max(_bound(h, X, y)[0], 1)))


def _bound(h: np.ndarray, X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the bound at the best posterior of log-variances (..., features), and its means and variances."""
    gram, precision = X.T @ X, np.exp(-h)
    moment = np.broadcast_to((X.T @ y)[:, None], (*h.shape, 1))
    mean = np.linalg.solve(gram + precision[..., None] * np.eye(len(gram)), moment)[..., 0]
    variance = 1 / (np.diag(gram) + precision)
    fit = np.sum((y - mean @ X.T) ** 2, -1) + variance @ np.diag(gram)
    divergence = np.sum((mean**2 + variance) * precision - 1 + h - np.log(variance), -1)
    return -(fit + divergence) / 2, mean, variance
