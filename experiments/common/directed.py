"""Training with a rule in place of a hypergradient."""

from collections.abc import Callable

import equinox as eqx
import optax
from jaxtyping import Array, PyTree

import hypergrad as hg


class Directed(hg.AbstractEstimator):
    """Training without a hypergradient: `direction(params, hparams)` stands in for it, from the trained model."""

    inner: hg.AbstractInnerSolver
    direction: Callable[[PyTree, PyTree], PyTree]

    def init(self, problem: hg.BilevelProblem, params: PyTree, hparams: PyTree) -> hg.InnerState:
        """Returns the inner state to start from."""
        return self.inner.init(problem, params, hparams)

    @eqx.filter_jit
    def step(
        self, problem: hg.BilevelProblem, hparams: PyTree, state: hg.InnerState, key: Array
    ) -> tuple[hg.Estimate, hg.InnerState]:
        """Trains on, and takes the direction at the end."""
        estimate, end = hg.Training(self.inner, problem, hparams, key).evaluate(state)
        direction = self.direction(end.params, hparams)
        return hg.Estimate(direction, estimate.value, end.params, estimate.stats), end


def standing(inner: hg.AbstractInnerSolver) -> hg.GradientSearch:
    """Returns plain training: hyperparameters stay where they start, and the best checkpoint is kept."""
    return hg.GradientSearch(Directed(inner, lambda params, hparams: optax.tree.zeros_like(hparams)), optax.sgd(0.0))
