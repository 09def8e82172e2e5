"""The adjoint recursion of trajectory estimators, from the outer gradient back to the hypergradient.

The estimators differ only in the states at which a step is pulled back and in the recursion of the cotangent.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, PyTree

from ...ground.tree import differentiable, in_single, norm
from ...inner import InnerState
from ...stats import Counts, Stats, Status, flag
from ...training import Training
from .trajectory import restored

UNSTABLE = 1e3  # growth of the adjoint from which training diverges, or its derivative is ill-conditioned


class Adjoint(eqx.Module):
    """The adjoint at one step: c_t = ∂F/∂(w_t, s_t), the hypergradient so far, and the sizes of c; see `size`."""

    cotangent: PyTree
    hypergradient: PyTree  # at least in float32
    first: Array  # ‖c_T‖ at the end of training
    largest: Array  # largest ‖c_t‖ since

    @property
    def growth(self) -> Array:
        """max_t ‖c_t‖ / ‖c_T‖: far above 1 where training is unstable or the path is wrong."""
        return jnp.where(self.first > 0, self.largest / jnp.where(self.first > 0, self.first, 1), 1)


def size(cotangent: InnerState) -> Array:
    """Returns ‖c‖ on the model and the averaged weights; moments have other units."""
    return norm((cotangent.partitioned, cotangent.average))


def start_adjoint(training: Training, end: InnerState) -> tuple[Array, Adjoint]:
    """Returns the outer loss at the end of training, and the adjoint there, c_T = ∂F/∂(w_T, s_T)."""
    value, cotangent, by_hparams = training.outer_cotangent(end)
    return value, Adjoint(cotangent, in_single(by_hparams), size(cotangent), size(cotangent))


def step_back(training: Training, state: InnerState, t: Array, adjoint: Adjoint) -> Adjoint:
    """Returns the adjoint before step t, taken at `state`:  g += B_tᵀ c,  c <- A_tᵀ c."""
    _, pullback = training.step_vjp(state, t)
    cotangent, by_hparams = pullback(adjoint.cotangent)
    largest = jnp.maximum(adjoint.largest, size(cotangent))
    return Adjoint(cotangent, optax.tree.add(adjoint.hypergradient, in_single(by_hparams)), adjoint.first, largest)


def sweep(training: Training, states: InnerState, steps: Array, adjoint: Adjoint, like: InnerState) -> Adjoint:
    """Returns the adjoint before the first of the given steps, from that after the last.

    `states` are the recorded states before each step, stacked; they are computed with in the types of `like`.
    """

    def body(adjoint: Adjoint, at: tuple[Array, InnerState]) -> tuple[Adjoint, None]:
        t, state = at
        return step_back(training, restored(state, like), t, adjoint), None

    return jax.lax.scan(body, adjoint, (steps, states), reverse=True)[0]


def stats_of(adjoint: Adjoint, counts: Counts, status: ArrayLike = Status.OK, **diagnostics: Array) -> Stats:
    """Returns counts, growth and status: ADJOINT_GROWTH where the adjoint grew so far that rounding rules."""
    grown = flag(adjoint.growth > UNSTABLE, Status.ADJOINT_GROWTH)
    return Stats(counts, status | grown, diagnostics={"growth": adjoint.growth} | diagnostics)


def through_start(training: Training, start: InnerState, warm_start: bool, cotangent: PyTree) -> PyTree:
    """Returns the part of a hypergradient that comes through the state before the first step.

    That state depends on λ where the solver evaluates the loss before its first update, as LBFGS does, and where the
    optimiser keeps hyperparameters in its state.
    """
    begin = lambda hparams: training.at(hparams).begin(start, warm_start)
    return _pulled_back(begin, training.hparams, cotangent)


def through_state(training: Training, state: InnerState, cotangent: PyTree) -> PyTree:
    """Returns the part of a hypergradient that comes through what `state`, in the midst of training, takes from λ.

    Where the recursion is cut the state counts as constant, but for what it holds in place of λ itself: see `renew` of
    inner solvers.
    """
    renew = lambda hparams: training.inner.renew(training.problem, hparams, state)
    return _pulled_back(renew, training.hparams, cotangent)


def _pulled_back(function: Callable[[PyTree], InnerState], hparams: PyTree, cotangent: PyTree) -> PyTree:
    _, pullback = jax.vjp(lambda hparams: differentiable(function(hparams)), hparams)
    return pullback(cotangent)[0]
