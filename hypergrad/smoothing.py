"""The range over which the outer loss of a chaotic training has a gradient that a few runs can tell from noise."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from .estimators.evolution.es import ES
from .estimators.evolution.perturbations import NOISY
from .inner import AbstractInnerSolver
from .problem import BilevelProblem

SHARES = tuple(10 ** (-k / 2) for k in range(9))  # of the hyperparameters' root mean square, 1 ... 10^-4
PAIRS = 32


@dataclasses.dataclass(frozen=True)
class Smoothing:
    """The noise of the smoothed gradient over a ladder of widths σ, and the width to take.

    - `sigmas`, `noises`: the widths, from wide to narrow, and `diagnostics["noise"]` of `ES` there with `num_pairs`
      pairs: the standard error over the signal. Where that is small another draw is made, and the larger noise counts;
      it is infinite where the draws disagree about the direction, or a run is not finite.
    """

    sigmas: tuple[float, ...]
    noises: tuple[float, ...]
    num_pairs: int = PAIRS

    @property
    def sigma(self) -> float | None:
        """The largest width whose noise is at most 0.48, a cosine of 0.9; `None` if there is none.

        At smaller widths the rough surface hides the slope, until at the smallest the exact hypergradient comes back.
        """
        return next((sigma for sigma, noise in zip(self.sigmas, self.noises, strict=True) if noise <= NOISY), None)

    @property
    def advice(self) -> str:
        """The estimator and width to take, with the noise that was measured."""
        if (sigma := self.sigma) is not None:
            noise = self.noises[self.sigmas.index(sigma)]
            return (
                f"smooth the outer loss with ES(inner, {self.num_pairs}, sigma={sigma:.2g}), whose noise here is "
                f"{noise:.2f} of its signal, or with PES, NRES or Combined of that sigma"
            )
        least = min(self.noises)
        if not np.isfinite(least):
            return f"smoothing with ES has no signal above the noise of {self.num_pairs} pairs at any width"
        pairs = int(np.ceil(self.num_pairs * (least / NOISY) ** 2))
        sigma = self.sigmas[self.noises.index(least)]
        return (
            f"smoothing with ES, at sigma={sigma:.2g}, asks for about {pairs} pairs: the noise of {self.num_pairs} is "
            f"{least:.2g} of the signal"
        )


def smoothing(
    inner: AbstractInnerSolver, problem: BilevelProblem, params: PyTree, hparams: PyTree, key: Array
) -> Smoothing:
    """Returns the noise of smoothed hypergradients over a ladder of nine widths σ.

    *Cost*: 65 training runs for every width, side by side, and as many again where the noise is small.
    """
    size = float(jnp.sqrt(jnp.mean(ravel_pytree(hparams)[0] ** 2)))
    sigmas = tuple(share * (size if size > 0 else 1.0) for share in SHARES)

    def drawn(sigma: float, key: Array) -> tuple[float, np.ndarray]:
        estimator = ES(inner, PAIRS, sigma=jnp.asarray(sigma))  # an array, so that all widths are one program
        estimate, _ = estimator.step(problem, hparams, estimator.init(problem, params, hparams), key)
        noise, found = float(estimate.stats.diagnostics["noise"]), np.asarray(ravel_pytree(estimate.hypergradient)[0])
        return noise if np.isfinite(noise) else float("inf"), found

    def noise_at(sigma: float) -> float:
        noise, found = drawn(sigma, key)
        if noise > NOISY:
            return noise
        other_noise, other = drawn(sigma, jax.random.fold_in(key, 1))
        return max(noise, other_noise) if found @ other > 0 else float("inf")

    return Smoothing(sigmas, tuple(noise_at(sigma) for sigma in sigmas))
