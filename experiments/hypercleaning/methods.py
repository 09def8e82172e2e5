"""The estimators that are compared, all at the same inner training."""

from typing import Literal

import equinox as eqx
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

import hypergrad as hg

from ..common.directed import Directed

MOMENTUM = 0.9
MethodName = Literal["none", "t1t2", "ift5", "gg", "reverse", "drmad", "t1t2_sum", "ift5_sum"]
METHODS: tuple[MethodName, ...] = ("none", "t1t2", "ift5", "gg", "reverse", "drmad", "t1t2_sum", "ift5_sum")


class Summed(hg.AbstractEstimator):
    """The hypergradient of one weight for all images, given to every image.

    A method that adds up over images where it should not does this.
    """

    base: hg.AbstractEstimator

    def init(self, problem: hg.BilevelProblem, params: PyTree, hparams: PyTree) -> PyTree:
        """Returns the state of the base."""
        return self.base.init(problem, params, hparams)

    @eqx.filter_jit
    def step(self, problem: hg.BilevelProblem, hparams: Array, state: PyTree, key: Array) -> tuple[hg.Estimate, PyTree]:
        """Takes a step of the base, and adds up its hypergradient."""
        estimate, state = self.base.step(problem, hparams, state, key)
        total = jnp.broadcast_to(jnp.sum(estimate.hypergradient), hparams.shape)
        return eqx.tree_at(lambda estimate: estimate.hypergradient, estimate, total), state


def searches(inner_lr: float, inner_steps: int, hyper_lr: float) -> dict[str, hg.GradientSearch]:
    """Returns all methods by name, on one inner solver."""
    inner = hg.OptaxSolver(optax.sgd(inner_lr, MOMENTUM), inner_steps)
    t1t2 = hg.Greedy(inner, check=None)
    ift5 = hg.Implicit(inner, hg.Neumann(5, step_size=inner_lr / (1 - MOMENTUM)), warm_start=True)
    estimators: dict[str, hg.AbstractEstimator] = {
        "none": Directed(inner, lambda params, hparams: optax.tree.zeros_like(hparams)),
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
