"""Test functions that are sums over blocks, as a model of subnetworks."""

from collections.abc import Callable

import jax
import numpy as np

import hypergrad as hg

BLOCKS, SIZE = 3, 3
WEIGHTS = {"equal": (1.0, 1.0, 1.0), "skewed": (1.0, 0.1, 0.01)}


def block_space() -> hg.trials.Space:
    """Returns nine numbers in [0, 1] in three blocks."""
    return hg.trials.Space(
        {f"{block}{i}": hg.trials.Float(0.0, 1.0, block=block) for block in "abc" for i in range(SIZE)}
    )


def block_function(seed: int, weights: tuple[float, ...]) -> Callable[[hg.trials.Trial, jax.Array], float]:
    """Returns an objective with random centres and curvatures, and ripples; its lowest value is 0.

    f(x) = Σ_s w_s Σ_i q_si (x_si - c_si)² + (1 - cos 6π(x_si - c_si))/20
    """
    random = np.random.default_rng(seed)
    centre, curvature = random.uniform(0.2, 0.8, (BLOCKS, SIZE)), random.uniform(0.5, 2.0, (BLOCKS, SIZE))

    def value(trial: hg.trials.Trial, key: jax.Array) -> float:
        away = np.reshape(list(trial.params.values()), (BLOCKS, SIZE)) - centre
        terms = curvature * away**2 + 0.05 * (1 - np.cos(6 * np.pi * away))
        return float(np.asarray(weights) @ terms.sum(1))

    return value
