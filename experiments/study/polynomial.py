"""The synthetic data of the study, and what is known about it in closed form."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ensembles import MeanField

from ..common.data import Rows

NUM_ROWS, NUM_TEST = 40, 40
POWERS = 10
_POWER_MOMENTS = [np.prod(np.arange(2 * power - 1, 0, -2.0)) for power in range(POWERS)]  # (2k - 1)!!
_MOMENTS = np.array([*_POWER_MOMENTS, (1 - np.exp(-2)) / 2, (1 + np.exp(-2)) / 2])  # E[f²] under x ~ N(0, 1)
_UNITS = (_MOMENTS**-0.5).astype(np.float32)
OFFSET = np.log(_MOMENTS).astype(np.float32)  # log-variance of a weight in training units less that in its own


def features(x: np.ndarray) -> np.ndarray:
    """x⁰ ... x⁹, sin x, cos x of every x, of shape (rows, 12)."""
    return np.stack([x**power for power in range(POWERS)] + [np.sin(x), np.cos(x)], 1)


def sample(seed: int) -> tuple[Rows, Rows]:
    """40 training and as many test rows of y = x + ε with x, ε ~ N(0, 1) (Bakhteev and Strijov 2020)."""
    random = np.random.default_rng(seed)

    def draw(count):
        x = random.normal(size=count)
        return Rows(features(x).astype(np.float32), (x + random.normal(size=count)).astype(np.float32))

    return draw(NUM_ROWS), draw(NUM_TEST)


class Layer(eqx.Module):
    """The weights, the only layer."""

    weight: Array

    def __call__(self, x: Array) -> Array:
        """x · w."""
        return x @ self.weight


class Linear(eqx.Module):
    """A linear model in the features; starts at zero.

    Trained are its weights on features of unit mean square, u_j = w_j E[f_j²]^½: x⁹ is some 10⁴ times as large as x.
    """

    layers: tuple[Layer, ...]

    def __init__(self, key: Array):
        self.layers = (Layer(jnp.zeros(POWERS + 2, jnp.float32)),)

    def __call__(self, x: Array) -> Array:
        """x · w."""
        return self.layers[0](x * _UNITS)


def expected_log_likelihood(posterior: MeanField, rows: Rows) -> Array:
    """E_q log N(y | x·w, 1) of every row without its constant: -½ [(y - x·μ)² + Σ_j x_j² s_j²]."""
    spread = jnp.exp(2 * posterior.log_std.layers[0].weight)
    return -((jax.vmap(posterior.mean)(rows.x) - rows.y) ** 2 + (rows.x * _UNITS) ** 2 @ spread) / 2


def best_mean_field(rows: Rows, box: tuple[float, float], iterations: int = 5000) -> tuple[float, np.ndarray]:
    """The largest evidence bound over mean-field posteriors and log-variances in the box, and the posterior means.

    At given precisions α the best posterior is μ = (XᵀX + diag α)⁻¹ Xᵀy, s_j² = 1/((XᵀX)_jj + α_j); at a given
    posterior the best log-variance is log(μ_j² + s_j²), clipped. The two steps alternate until nothing moves, from
    several starts. Without the constant -(m/2) log 2π.
    """
    X, y = rows.x.astype(float), rows.y.astype(float)
    gram, moment = X.T @ X, X.T @ y
    starts = [np.full(X.shape[1], value) for value in np.linspace(*box, 5)]
    return max((_climb(start, X, y, gram, moment, box, iterations) for start in starts), key=lambda found: found[0])


def _climb(h, X, y, gram, moment, box, iterations) -> tuple[float, np.ndarray]:
    for _ in range(iterations):
        mean, variance = _posterior(h, gram, moment)
        moved = np.clip(np.log(mean**2 + variance), *box)
        if np.max(np.abs(moved - h)) < 1e-10:
            break
        h = moved
    mean, variance = _posterior(h, gram, moment)
    fit = np.sum((y - X @ mean) ** 2) + np.diag(gram) @ variance
    divergence = np.sum((mean**2 + variance) * np.exp(-h) - 1 + h - np.log(variance))
    return float(-(fit + divergence) / 2), mean


def _posterior(h, gram, moment) -> tuple[np.ndarray, np.ndarray]:
    precision = np.exp(-h)
    return np.linalg.solve(gram + np.diag(precision), moment), 1 / (np.diag(gram) + precision)
