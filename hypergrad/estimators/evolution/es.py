"""Evolution strategies over whole training runs."""

import dataclasses

import equinox as eqx
from jaxtyping import Array, PyTree

from ...ground.checks import boolean, checked, field
from ...ground.hparams import as_hparams
from ...ground.keys import perturbation_key
from ...inner import INNER, AbstractInnerSolver, InnerState
from ...problem import PROBLEM, BilevelProblem
from ...stats import Counts, Estimate, Stats
from ...training import Evaluated, Training
from ..base import AbstractEstimator, checked_step
from ..common.refusals import refuse_warm
from .perturbations import (
    BATCH,
    PAIRS,
    Sigma,
    as_sigma,
    draw,
    mapped,
    pair_estimates,
    refuse_too_many,
    signal_of,
    signed,
    spread_sigma,
)


class ES(AbstractEstimator):
    """The hypergradient of the outer loss smoothed over a Gaussian of width σ, from values alone.

        ∇ E F(λ + ε) ≈ 1/N Σ_i (F(λ + ε_i) - F(λ - ε_i)) ε_i / 2σ²,    ε_i ~ N(0, σ²)

    F(λ) is the outer loss after training at λ. All runs start from the same state and draw with the same keys. Nothing
    is differentiated: training may be chaotic, the inner solver may have loops that JAX cannot differentiate, and the
    outer loss may be discrete, such as the number of errors.

    **Arguments**

    - `inner`: the inner solver.
    - `num_pairs`: N. One pair has no measured noise.
    - `sigma`: σ, a number or a pytree like the hyperparameters, in their units: the range over which F is smoothed.
    - `batch_size`: runs that are trained at once; `None` is all 2N.
    - `warm_start`: train on from where the last step ended, the run at λ itself.

    `value` and `params` are those of one more run, at λ itself. `diagnostics["noise"]` is the standard error of the
    hypergradient over the norm of what it estimates. A noise above 0.48 (a cosine below 0.9), or that of one pair,
    which is not known, is flagged as INACCURATE. A run that is not finite makes the hypergradient NaN, flagged as
    NONFINITE: choose a smaller σ.

    *Cost*: 2N + 1 training runs. *Memory*: `batch_size` times that of training, whatever the number of steps. *Bias*:
    none for the smoothed loss; of order σ² for the loss itself, and none where that is quadratic. The variance grows
    with the number of hyperparameters. *When not to use it*: where `Reverse` is stable; above some hundred
    hyperparameters.

    **Source**: Nesterov and Spokoiny (2017); Salimans et al. (2017); antithetic pairs as in Metz et al. (2019).

    **Example**

        >>> value, slope = hg.value_and_hypergrad(problem, hg.ES(inner, 16))(log_l2, w, key)
        >>> print(f"{value:.3f} {slope:.3f}")
        0.352 0.214
    """

    inner: AbstractInnerSolver = field(INNER)
    num_pairs: int = field(PAIRS, 16)
    _: dataclasses.KW_ONLY
    sigma: Sigma = eqx.field(converter=as_sigma, default=0.1)
    batch_size: int | None = field(BATCH, None)
    warm_start: bool = field(boolean("warm_start"), False)

    @checked(PROBLEM)
    def init(self, problem: BilevelProblem, params: PyTree, hparams: PyTree) -> InnerState:
        """Returns the inner state to start from. Raises where the arguments do not fit."""
        spread_sigma(self.sigma, as_hparams(hparams))
        state = self.inner.init_to_learn(problem, params, hparams, differentiable=False)
        name, number = ("num_pairs", self.num_pairs) if self.batch_size is None else ("batch_size", self.batch_size)
        refuse_too_many(state.partitioned, number, name)
        if self.warm_start:
            refuse_warm(self.inner, problem, hparams, state)
        return state

    @checked_step(InnerState)
    @eqx.filter_jit
    def step(self, problem: BilevelProblem, hparams: PyTree, state: InnerState, key: Array) -> Evaluated:
        """Trains once at `hparams` and twice for every pair."""
        training = Training(self.inner, problem, hparams, key)
        perturbations = draw(perturbation_key(key, self.inner.num_steps), self.num_pairs, self.sigma, hparams)

        def run(hparams: PyTree) -> tuple[Array, Counts]:
            there = training.at(hparams)
            estimate, _ = there.evaluate(there.begin(state, self.warm_start))
            return estimate.value, estimate.stats.counts

        values, counts = mapped(run, (signed(hparams, perturbations),), self.batch_size)
        signal = signal_of(pair_estimates(values, perturbations, self.sigma, hparams))
        here, end = training.evaluate(training.begin(state, self.warm_start))
        spent = counts.summed + here.stats.counts + Counts(evaluations=2 * self.num_pairs + 1)
        stats = Stats(spent, signal.status, diagnostics={"noise": signal.noise})
        return Estimate(signal.mean, here.value, here.partitioned, stats), end if self.warm_start else state
