"""Search by hypergradient."""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import optax
from jaxtyping import Array, PyTree

from ..estimators.base import ESTIMATOR, AbstractEstimator
from ..ground.checks import checked, field, optimiser
from ..ground.hparams import as_hparams
from ..inner import INNER
from ..problem import PROBLEM, BilevelProblem
from ..stats import Counts, Status, flag
from .base import PROJECTION, AbstractSearch, Record, SearchState, checked_step, conclude, first_state
from .retreat import Outcome, move


def identity(hparams: PyTree) -> PyTree:
    """Returns the hyperparameters unchanged: no constraint."""
    return hparams


class GradientSearch(AbstractSearch):
    """Hyperparameters moved by an optax optimiser along an estimator's hypergradients.

        λ <- projection(λ + optimiser(hypergradient))

    **Arguments**

    - `estimator`: any estimator; whether training starts warm is the estimator's business.
    - `optimiser`: an optax optimiser. One that takes extra arguments receives `value` and the estimator's diagnostics.
    - `projection`: applied after every update, e.g. `lambda h: optax.tree.clip(h, -5.0, 5.0)`.

    Where the value or the hypergradient is not finite, the step is recorded with its status, and λ turns back. An
    optimiser that can, such as `adaptive_step`, sees an infinite value and backtracks. With another one λ goes halfway
    back to the last good point, again and again until the result is finite; the next updates are taken by as much
    less, and the share doubles with each of them. Weights and moments stay those of the last good point.

    Where the outer loss uses its key, `best` is chosen and reported by repeated evaluations; see `Best`.

    **Example**

        >>> search = hg.GradientSearch(hg.Reverse(inner), optax.adam(0.3))
        >>> state = search.init(problem, w, log_l2)
        >>> state, history = hg.run(search, problem, state, key=key, budget=200)
        >>> print(f"{history.value[0]:.3f} -> {state.best.value:.3f}")
        0.352 -> 0.126
    """

    estimator: AbstractEstimator = field(ESTIMATOR)
    optimiser: optax.GradientTransformation = field(optimiser("optimiser"))
    _: dataclasses.KW_ONLY
    projection: Callable[[PyTree], PyTree] = field(PROJECTION, identity)

    @property
    def num_inner_steps(self) -> int:
        """The training steps of one estimate: those of its `inner`, or of a truncation.

        **Raises** `TypeError` where the estimator has no `inner`.
        """
        steps = INNER(getattr(self.estimator, "inner", None)).num_steps
        return getattr(self.estimator, "truncation", steps)

    @checked(PROBLEM)
    def init(self, problem: BilevelProblem, params: PyTree, hparams: PyTree) -> SearchState:
        """Returns the state before the first step. Raises what the estimator's `init` raises."""
        hparams = as_hparams(hparams)
        inner_state = self.estimator.init(problem, params, hparams)
        return first_state(problem, hparams, inner_state, self.optimiser.init(hparams), retreats=True)

    @checked_step
    @eqx.filter_jit
    def step(self, problem: BilevelProblem, state: SearchState, key: Array) -> tuple[SearchState, Record]:
        """Estimates the hypergradient, records it, and moves."""
        estimate, inner_state = self.estimator.step(problem, state.hparams, state.inner_state, key)
        usable = (estimate.stats.status & Status.NONFINITE) == 0
        outcome = Outcome(estimate.hypergradient, estimate.value, usable, estimate.stats.diagnostics)
        moved, taken = move(self.optimiser, self.projection, state, outcome)
        stats = estimate.stats.also(Counts(hyper_updates=taken), flag(~taken, Status.NONFINITE))
        estimate = eqx.tree_at(lambda e: e.stats, estimate, stats)
        inner_state = optax.tree.where(usable, inner_state, state.inner_state)
        return conclude(problem, dataclasses.replace(moved, inner_state=inner_state), estimate, key, state.hparams)
