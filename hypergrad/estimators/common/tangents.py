"""Tangents of training: derivatives of its states along directions of the hyperparameters, in forward mode."""

import jax
from jaxtyping import Array, PyTree

from ...ground.derivatives import linearize
from ...ground.tree import PartitionedModel, differentiable, join, pairing, split
from ...inner import InnerState
from ...training import Training


def first_tangent(training: Training, start: InnerState, warm_start: bool, direction: PyTree) -> PyTree:
    """Returns the tangent of the state before the first step; zero but for what that state takes from λ."""
    begin = lambda hparams: differentiable(training.at(hparams).begin(start, warm_start))
    return linearize(begin, training.hparams)[1](direction)


def slope(training: Training, state: InnerState, warm_start: bool, direction: PyTree) -> Array:
    """Returns the derivative, along a direction of the hyperparameters, of the outer loss after training from `state`.

    *Cost*: two training runs. *Memory*: two states.
    """
    start = training.begin(state, warm_start)
    tangent = first_tangent(training, state, warm_start, direction)

    def body(t: Array, carry: PyTree) -> PyTree:
        now, tangent = carry
        new, push = training.step_jvp(now, t)
        return new, push(tangent, direction)

    end, tangent = jax.lax.fori_loop(0, training.inner.num_steps, body, (start, tangent))
    _, by_model, direct = training.outer_value_and_grads(end)
    return pairing(by_model, judged_tangent(end, tangent)) + pairing(direct, direction)


def judged_tangent(state: InnerState, tangent: PyTree) -> PartitionedModel:
    """Returns the tangent of the model that the outer loss judges, from that of the whole inner state."""
    inexact, rest = split(state)
    return jax.jvp(lambda inexact: differentiable(join(inexact, rest).judged), (inexact,), (tangent,))[1]
