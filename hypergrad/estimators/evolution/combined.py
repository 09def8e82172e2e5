"""Reverse mode and evolution strategies, weighted by their measured variances."""

import dataclasses
import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from ...ground.checks import checked, shown
from ...ground.keys import perturbation_key
from ...inner import AbstractInnerSolver
from ...problem import PROBLEM, BilevelProblem
from ...stats import Counts, Estimate, Stats
from ..base import AbstractEstimator, AbstractTrajectoryEstimator, checked_step
from .es import ES
from .perturbations import Signal, draw, halves, mapped, pair_estimates, signal_of, signed


class Combined(AbstractEstimator):
    """The hypergradient of the smoothed outer loss, from reverse mode and from values, each where it has less noise.

        g = w_R g_R + w_E g_E,    g_R = mean of ∇F(λ ± ε_i),    g_E = that of `ES`,    w ∝ 1/variance

    Both are unbiased for the loss smoothed over σ. The weights are taken per hyperparameter from the variances that
    were measured over the N pairs. Where training is stable reverse mode has far less variance. Where its derivatives
    explode, or are not finite, the estimate is that of `ES`, and also where all of them are zero, as those of a
    discrete outer loss.

    **Arguments**: `reverse`, an estimator such as `Reverse(inner)`; `es`, with the same inner solver, which gives N, σ
    and the number of runs in memory at once. `warm_start` is that of `reverse`.

    `diagnostics`: `noise` as in `ES`, and `reverse_share`, the mean weight w_R.

    *Cost*: 2N + 1 estimates of `reverse`. *Memory*: `es.batch_size` times that of `reverse`. *Bias*: of order 1/N,
    because weights and estimates come from the same pairs. *When not to use it*: where one of the parts is known to be
    better: it alone is cheaper. Where the outer loss has jumps that reverse mode does not see, use `ES`.

    **Source**: Metz, Maheswaranathan, Nixon, Freeman, Sohl-Dickstein (2019), equation 6.

    **Example**

        >>> both = hg.Combined(hg.Reverse(inner), hg.ES(inner, 16))
        >>> value, slope = hg.value_and_hypergrad(problem, both)(log_l2, w, key)
        >>> print(f"{value:.3f} {slope:.3f}")
        0.352 0.322
    """

    reverse: AbstractTrajectoryEstimator
    es: ES

    def __check_init__(self) -> None:
        if not isinstance(self.reverse, AbstractTrajectoryEstimator):
            raise TypeError(f"reverse must be a trajectory estimator such as Reverse(inner), got {shown(self.reverse)}")
        if not isinstance(self.es, ES):
            raise TypeError(f"es must be an ES(inner, num_pairs), got {shown(self.es)}")
        if self.es.num_pairs < 2:
            raise ValueError("es.num_pairs must be at least 2: one pair has no variance to weigh by")
        if eqx.tree_equal(self.reverse.inner, self.es.inner) is False:
            raise ValueError("reverse and es must have the same inner solver")

    @property
    def inner(self) -> AbstractInnerSolver:
        """The inner solver of both."""
        return self.reverse.inner

    @checked(PROBLEM)
    def init(self, problem: BilevelProblem, params: PyTree, hparams: PyTree) -> Any:
        """Returns the state of `reverse`. Raises what the parts raise."""
        self.es.init(problem, params, hparams)
        return self.reverse.start(problem, params, hparams, differentiable=False)

    @checked_step(eqx.Module)
    @eqx.filter_jit
    def step(self, problem: BilevelProblem, hparams: PyTree, state: Any, key: Array) -> tuple[Estimate, Any]:
        """Trains and sweeps back once at `hparams` and twice for every pair."""
        es, unchecked = self.es, dataclasses.replace(self.reverse, check=None)
        perturbations = draw(perturbation_key(key, self.inner.num_steps), es.num_pairs, es.sigma, hparams)

        def run(hparams: PyTree) -> tuple[Array, PyTree, Counts]:
            estimate, _ = unchecked.step(problem, hparams, state, key)
            return estimate.value, estimate.hypergradient, estimate.stats.counts

        values, gradients, counts = mapped(run, (signed(hparams, perturbations),), es.batch_size)
        by_values = signal_of(pair_estimates(values, perturbations, es.sigma, hparams))
        by_reverse = signal_of(jax.tree.map(lambda high, low: (high + low) / 2, *halves(gradients)))
        here, after = self.reverse.step(problem, hparams, state, key)
        signal, share = combined(by_reverse, by_values)
        spent = counts.summed + here.stats.counts
        diagnostics = {"noise": signal.noise, "reverse_share": share}
        stats = Stats(spent, signal.status, here.stats.residual, diagnostics)
        return Estimate(signal.mean, here.value, here.partitioned, stats), after


def combined(one: Signal, other: Signal) -> tuple[Signal, Array]:
    """Returns the mean weighted by inverse variances, per hyperparameter, and the mean weight of `one`.

    The weight is 0 where `one` is not finite, or zero in all hyperparameters.
    """

    informed = jnp.any(ravel_pytree(one.mean)[0] != 0)

    def weight(mean: Array, a: Array, b: Array) -> Array:
        known, total = jnp.isfinite(mean) & jnp.isfinite(a) & informed, a + b
        share = jnp.where(total > 0, b / jnp.where(total > 0, total, 1), 1)
        return jnp.where(known, jnp.where(jnp.isfinite(b), share, 1), 0)

    def mixed(power: int, share: Array, a: Array, b: Array) -> Array:
        part = lambda factor, value: jnp.where(factor > 0, factor**power * value, 0)
        return part(share, a) + part(1 - share, b)

    shares = jax.tree.map(weight, one.mean, one.variance, other.variance)
    mean = jax.tree.map(functools.partial(mixed, 1), shares, one.mean, other.mean)
    variance = jax.tree.map(functools.partial(mixed, 2), shares, one.variance, other.variance)
    return Signal(mean, variance), jnp.mean(ravel_pytree(shares)[0])
