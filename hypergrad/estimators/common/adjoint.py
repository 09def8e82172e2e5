"""The adjoint recursion of trajectory estimators, from the outer gradient back to the hypergradient.

The estimators differ only in the states at which a step is pulled back and in the recursion of the cotangent.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from ...ground.tree import differentiable, norm
from ...inner import InnerState
from ...training import Training
from .trajectory import restored


class Adjoint(eqx.Module):
    """The adjoint at one step: c_t = ∂F/∂(w_t, s_t), the hypergradient so far, and the sizes of c on the weights."""

    cotangent: PyTree
    hypergradient: PyTree
    first: Array  # ‖∇_w F‖ at the end of training
    largest: Array  # largest ‖c_t‖ on the weights since

    @property
    def growth(self) -> Array:
        """max_t ‖c_t‖ / ‖c_T‖, on the weights: far above 1 where training is unstable or the path is wrong."""
        return jnp.where(self.first > 0, self.largest / jnp.where(self.first > 0, self.first, 1), 1)


def cotangent_of(state: InnerState, by_arrays: PyTree) -> PyTree:
    """Returns the cotangent on the whole inner state that is `by_arrays` on the weights and 0 elsewhere."""
    zeros = differentiable(optax.tree.zeros_like(state))
    return eqx.tree_at(lambda s: s.partitioned, zeros, zeros.partitioned.with_arrays(by_arrays))


def start_adjoint(training: Training, end: InnerState) -> tuple[Array, Adjoint]:
    """Returns the outer loss at the end of training, and the adjoint there: c_T = ∇_w F on the weights, 0 elsewhere."""
    value, by_arrays, by_hparams = training.outer_value_and_grads(end)
    size = norm(by_arrays)
    return value, Adjoint(cotangent_of(end, by_arrays), by_hparams, size, size)


def step_back(training: Training, state: InnerState, t: Array, adjoint: Adjoint) -> Adjoint:
    """Returns the adjoint before step t, taken at `state`:  g += B_tᵀ c,  c <- A_tᵀ c."""
    _, pullback = training.step_vjp(state, t)
    cotangent, by_hparams = pullback(adjoint.cotangent)
    largest = jnp.maximum(adjoint.largest, norm(cotangent.partitioned.arrays))
    return Adjoint(cotangent, optax.tree.add(adjoint.hypergradient, by_hparams), adjoint.first, largest)


def sweep(training: Training, states: InnerState, steps: Array, adjoint: Adjoint, like: InnerState) -> Adjoint:
    """Returns the adjoint before the first of the given steps, from that after the last.

    `states` are the recorded states before each step, stacked; they are computed with in the types of `like`.
    """

    def body(adjoint, at):
        t, state = at
        return step_back(training, restored(state, like), t, adjoint), None

    return jax.lax.scan(body, adjoint, (steps, states), reverse=True)[0]


def back_to_start(training: Training, start: InnerState, adjoint: Adjoint) -> PyTree:
    """Returns the hypergradient, with the part that comes through the solver's state at the start.

    That state depends on λ where the solver evaluates the loss before its first update, as LBFGS does.
    """
    restart = lambda hparams: differentiable(training.inner.restart(training.problem, hparams, start))
    _, pullback = jax.vjp(restart, training.hparams)
    return optax.tree.add(adjoint.hypergradient, pullback(adjoint.cotangent)[0])
