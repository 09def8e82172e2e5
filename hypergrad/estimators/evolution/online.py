"""Evolution strategies that move the hyperparameters during training."""

import abc
import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from ...ground.checks import boolean, checked, field, integer
from ...ground.hparams import as_hparams
from ...ground.keys import perturbation_key
from ...inner import INNER, AbstractInnerSolver, AbstractTrainedState, InnerState
from ...problem import PROBLEM, BilevelProblem, outer_value
from ...stats import Counts, Estimate, Stats
from ...training import Training
from ..base import AbstractEstimator, checked_step
from .perturbations import (
    PAIRS,
    Sigma,
    as_sigma,
    draw,
    pair_estimates,
    refuse_too_many,
    signal_of,
    signed,
    spread_sigma,
)

TRUNCATION = integer("truncation", least=1)


class Particles(eqx.Module):
    """The runs of all pairs during training, stacked.

    - `states`: those at λ + ε_i, then those at λ - ε_i.
    - `perturbations`: ε_i of the last truncation. `scores`: ξ_i, their sum over the truncations of this training.
    - `values`: the outer losses at the end of the last truncation.
    """

    states: InnerState
    perturbations: PyTree
    scores: PyTree
    values: Array


class OnlineState(AbstractTrainedState):
    """The first state, the run at λ itself, the particles, and the steps of training that are done."""

    first: InnerState
    inner: InnerState
    particles: Particles
    t: Array


class AbstractOnline(AbstractEstimator):
    """Pairs of runs that train on from truncation to truncation, perturbed and scored by a subclass."""

    inner: AbstractInnerSolver = field(INNER)
    truncation: int = field(TRUNCATION)
    num_pairs: int = field(PAIRS, 16)
    _: dataclasses.KW_ONLY
    sigma: Sigma = eqx.field(converter=as_sigma, default=0.1)
    final: bool = field(boolean("final"), False)

    def __check_init__(self) -> None:
        if self.inner.num_steps % self.truncation:
            steps = self.inner.num_steps
            raise ValueError(f"truncation must divide the number of inner steps {steps}, got {self.truncation}")

    @abc.abstractmethod
    def perturb(self, particles: Particles, begins: Array, fresh: PyTree) -> tuple[PyTree, PyTree]:
        """Returns the perturbations ε_i of a truncation and the scores ξ_i, from fresh draws.

        `begins` is true for the first truncation of a training.
        """

    @checked(PROBLEM)
    def init(self, problem: BilevelProblem, params: PyTree, hparams: PyTree) -> OnlineState:
        """Returns the state before the first truncation. Raises where the arguments do not fit."""
        hparams = as_hparams(hparams)
        spread_sigma(self.sigma, hparams)
        inner = self.inner.init_to_learn(problem, params, hparams, differentiable=False)
        self.inner.refuse_adrift(hparams, inner)
        refuse_too_many(inner.partitioned, self.num_pairs, "num_pairs")
        stack = lambda number: lambda leaf: jnp.broadcast_to(leaf, (number, *leaf.shape))
        number = self.num_pairs
        nothing = jax.tree.map(stack(number), optax.tree.zeros_like(hparams))
        outer = eqx.filter_eval_shape(outer_value, problem, inner.params, hparams, jax.random.key(0))
        states = jax.tree.map(stack(2 * number), inner)
        particles = Particles(states, nothing, nothing, jnp.zeros(2 * number, outer.dtype))
        return OnlineState(inner, inner, particles, jnp.zeros((), jnp.int32))

    @checked_step(OnlineState)
    @eqx.filter_jit
    def step(
        self, problem: BilevelProblem, hparams: PyTree, state: OnlineState, key: Array
    ) -> tuple[Estimate, OnlineState]:
        """Trains all runs for one truncation, every pair perturbed by its ε_i and weighted by its ξ_i."""
        training, length, begins = Training(self.inner, problem, hparams, key), self.truncation, state.t == 0
        fresh = draw(perturbation_key(key, self.inner.num_steps), self.num_pairs, self.sigma, hparams)
        perturbations, scores = self.perturb(state.particles, begins, fresh)

        def run(hparams: PyTree, now: InnerState) -> tuple[InnerState, Array, Array]:
            there = training.at(hparams)
            go_on = lambda: self.inner.renew(problem, hparams, now)
            start = optax.tree.where(begins, there.begin(state.first, False), go_on())
            end = there.advance(start, state.t, state.t + length)
            value = outer_value(problem, end.params, hparams, training.keys.outer)
            return end, value, self.inner.num_gradients(start, end, length)

        ends, values, spent = jax.vmap(run)(signed(hparams, perturbations), state.particles.states)
        end, value, spent_here = run(hparams, state.inner)
        changes = values - jnp.where(begins, 0, state.particles.values) if self.final else values
        signal = signal_of(pair_estimates(changes, scores, self.sigma, hparams))
        runs = 2 * self.num_pairs + 1
        counts = Counts(iterations=runs * length, inner_gradients=jnp.sum(spent) + spent_here, evaluations=runs)
        stats = Stats(counts, signal.status, diagnostics={"noise": signal.noise})
        t = (state.t + length) % self.inner.num_steps
        after = OnlineState(state.first, end, Particles(ends, perturbations, scores, values), t)
        return Estimate(signal.mean, value, end.judged, stats), after


class PES(AbstractOnline):
    """Persistent evolution strategies: `ES` that moves λ every K of T training steps, without the bias of truncation.

        g_k = 1/N Σ_i ξ_i (F(w_i⁺) - F(w_i⁻)) / 2σ²,    ξ_i <- ξ_i + ε_i,    ε_i ~ N(0, σ²) anew at every truncation

    N pairs of runs keep their weights over truncations, at λ + ε_i and λ - ε_i. The score ξ_i is the sum of all
    perturbations of a run, so that g_k is the hypergradient of the smoothed outer loss at the end of
    truncation k, through the whole of training. After T steps all runs begin again.

    **Arguments**

    - `inner`: the inner solver; its `num_steps` is T.
    - `truncation`: K, a divisor of T.
    - `num_pairs`, `sigma`: as in `ES`.
    - `final`: make g_k the hypergradient of the change of the outer loss over the truncation. The sum over one
      training is then that of the outer loss at its end, and without `final` that of the sum of the outer losses at the
      ends of all truncations.

    `value` and `params` are those of one more run, at λ itself. `diagnostics["noise"]` as in `ES`.

    *Cost*: (2N + 1) K training steps. *Memory*: 2N + 1 times that of training. *Bias*: none for the smoothed loss while
    λ rests. The variance grows with the number of truncations. *When not to use it*: where whole runs are affordable.

    **Source**: Vicol, Metz, Sohl-Dickstein (2021), Algorithm 2; section 5 for the final loss.

    **Example**

        >>> search = hg.GradientSearch(hg.PES(inner, 5), optax.adam(0.1))
        >>> state = search.init(problem, w, log_l2)
        >>> state, history = hg.run(search, problem, state, key=key, budget=1000)
        >>> print(f"{history.value[0]:.3f} -> {state.best.value:.3f}")
        0.684 -> 0.244
    """

    def perturb(self, particles: Particles, begins: Array, fresh: PyTree) -> tuple[PyTree, PyTree]:
        """Returns the fresh draws, and their sum over the truncations of this training."""
        return fresh, jax.tree.map(lambda xi, e: jnp.where(begins, 0, xi) + e, particles.scores, fresh)


class NRES(AbstractOnline):
    """Noise-reuse evolution strategies: `PES` with one perturbation for the whole of training.

        g_k = 1/N Σ_i ε_i (F(w_i⁺) - F(w_i⁻)) / 2σ²,    ε_i ~ N(0, σ²) anew at every training

    The variance does not grow with the number of truncations, and is below that of `PES` on smooth losses.

    **Arguments**, value, diagnostics, *cost* and *memory*: those of `PES`. *Bias*: none for the loss smoothed over
    perturbations that rest through training. *When not to use it*: where whole runs are affordable.

    **Source**: Li, Vicol, Metz, Sohl-Dickstein et al. (2023), Algorithm 1, in step instead of staggered.

    **Example**

        >>> search = hg.GradientSearch(hg.NRES(inner, 5), optax.adam(0.1))
        >>> state = search.init(problem, w, log_l2)
        >>> state, history = hg.run(search, problem, state, key=key, budget=1000)
        >>> print(f"{history.value[0]:.3f} -> {state.best.value:.3f}")
        0.684 -> 0.238
    """

    def perturb(self, particles: Particles, begins: Array, fresh: PyTree) -> tuple[PyTree, PyTree]:
        """Returns the draws of the first truncation of this training, twice."""
        kept = jax.tree.map(lambda new, e: jnp.where(begins, new, e), fresh, particles.perturbations)
        return kept, kept
