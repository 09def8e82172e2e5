"""The estimators that are compared, all at the same inner training."""

from typing import Literal

import equinox as eqx
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

import hypergrad as hg

MOMENTUM = 0.9
MethodName = Literal["none", "t1t2", "ift5", "gg", "reverse", "drmad", "t1t2_sum", "ift5_sum"]
METHODS: tuple[MethodName, ...] = ("none", "t1t2", "ift5", "gg", "reverse", "drmad", "t1t2_sum", "ift5_sum")


class Fixed(hg.AbstractEstimator):
    """Training alone: the hypergradient is zero, so the hyperparameters stay where they are."""

    inner: hg.AbstractInnerSolver

    def init(self, problem: hg.BilevelProblem, params: PyTree, hparams: PyTree) -> hg.InnerState:
        """The inner state to start from."""
        return self.inner.init(problem, params, hparams)

    @eqx.filter_jit
    def step(
        self, problem: hg.BilevelProblem, hparams: PyTree, state: hg.InnerState, key: Array
    ) -> tuple[hg.Estimate, hg.InnerState]:
        """Train on."""
        end, solved = self.inner.solve(problem, hparams, state, key)
        value = problem.outer_loss(end.params, hparams, problem.valid, key)
        counts = hg.Counts(iterations=solved.iterations, inner_gradients=solved.gradients)
        return hg.Estimate(optax.tree.zeros_like(hparams), value, end.params, hg.Stats(counts)), end


class Summed(hg.AbstractEstimator):
    """The hypergradient of one weight for all images, given to every image: what is left of a method that adds up over
    images where it should not."""

    base: hg.AbstractEstimator

    def init(self, problem: hg.BilevelProblem, params: PyTree, hparams: PyTree) -> PyTree:
        """The state of the base."""
        return self.base.init(problem, params, hparams)

    @eqx.filter_jit
    def step(self, problem: hg.BilevelProblem, hparams: Array, state: PyTree, key: Array) -> tuple[hg.Estimate, PyTree]:
        """A step of the base, its hypergradient added up."""
        estimate, state = self.base.step(problem, hparams, state, key)
        total = jnp.broadcast_to(jnp.sum(estimate.hypergradient), hparams.shape)
        return eqx.tree_at(lambda estimate: estimate.hypergradient, estimate, total), state


def searches(inner_lr: float, inner_steps: int, hyper_lr: float) -> dict[str, hg.GradientSearch]:
    """All methods by name, on one inner solver."""
    inner = hg.OptaxSolver(optax.sgd(inner_lr, MOMENTUM), inner_steps)
    t1t2 = hg.Greedy(inner, check=None)
    ift5 = hg.Implicit(inner, hg.Neumann(5, step_size=inner_lr / (1 - MOMENTUM)), warm_start=True)
    estimators: dict[str, hg.AbstractEstimator] = {
        "none": Fixed(inner),
        "t1t2": t1t2,
        "ift5": ift5,
        "gg": hg.Greedy(inner, decay=0.9, check=None),
        "reverse": hg.Reverse(inner, warm_start=True),
        "drmad": hg.DrMAD(inner, warm_start=True, check=None),
        "t1t2_sum": Summed(t1t2),
        "ift5_sum": Summed(ift5),
    }
    optimiser = optax.adam(hyper_lr)
    return {name: hg.GradientSearch(estimator, optimiser) for name, estimator in estimators.items()}
