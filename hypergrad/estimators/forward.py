"""Exact forward mode: derivatives travel along with training."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from ..ground.checks import boolean, checked, field
from ..ground.derivatives import linearize
from ..ground.hparams import as_hparams
from ..ground.tree import join, pairing, split
from ..inner import INNER, AbstractInnerSolver, AbstractTrainedState, InnerState
from ..inner.stops import warn_of_stopped_step
from ..problem import PROBLEM, BilevelProblem
from ..stats import Counts, Estimate, Stats
from ..training import Training
from .base import AbstractEstimator, checked_step
from .common.adjoint import lost_in_float16
from .common.refusals import refuse_tol, refuse_warm
from .common.tangents import first_tangent, judged_tangent


class ForwardState(AbstractTrainedState):
    """The inner state and, where they are carried on, its derivatives, with a leading axis of hyperparameters."""

    inner: InnerState
    tangents: PyTree


class Forward(AbstractEstimator):
    """Forward mode: one tangent of the inner state per hyperparameter.

        Z_t = A_t Z_{t-1} + B_t,    dF/dλ = ∂_λ F + Z_Tᵀ ∇_w F

    with A_t = ∂Φ/∂(w, s) and B_t = ∂Φ/∂λ at step t. Exact, as `Reverse`.

    **Arguments**

    - `inner`: the inner solver.
    - `warm_start`: train on from where the last step ended, with the tangents as they are there: real-time
      hypergradients, which see the whole past, not the last T steps alone, and may be taken after every step. Exact as
      long as λ rests; else the tangents remember older λ.

    *Cost*: one Jacobian-vector product per step and hyperparameter. *Memory*: that of training times the number of
    hyperparameters, whatever T. *Bias*: none (with `warm_start`, that of moving λ).
    *When not to use it*: with more than some tens of hyperparameters.

    **Source**: Franceschi, Donini, Frasconi, Pontil (2017), sections 3.2 and 3.3 (RTHO).

    **Example**

        >>> value, slope = hg.value_and_hypergrad(problem, hg.Forward(inner))(log_l2, w, key)
        >>> print(f"{value:.3f} {slope:.3f}")
        0.352 0.321
    """

    inner: AbstractInnerSolver = field(INNER)
    _: dataclasses.KW_ONLY
    warm_start: bool = field(boolean("warm_start"), False)

    def __check_init__(self) -> None:
        refuse_tol(self.inner)

    @checked(PROBLEM)
    def init(self, problem: BilevelProblem, params: PyTree, hparams: PyTree) -> ForwardState:
        """Returns the inner state to start from, and its derivatives. Raises where the arguments do not fit."""
        state = self.inner.init_to_learn(problem, params, hparams)
        warn_of_stopped_step(self.inner, problem, hparams, state)
        if not self.warm_start:
            return ForwardState(state, None)
        refuse_warm(self.inner, problem, hparams, state)
        training = Training(self.inner, problem, as_hparams(hparams), jax.random.key(0))
        return ForwardState(state, _first_tangents(training, state))

    @checked_step(ForwardState)
    @eqx.filter_jit
    def step(
        self, problem: BilevelProblem, hparams: PyTree, state: ForwardState, key: Array
    ) -> tuple[Estimate, ForwardState]:
        """Trains, with all tangents."""
        training, total = Training(self.inner, problem, hparams, key), self.inner.num_steps
        directions = _directions(hparams)
        start, tangents = self._begin(training, state, directions)

        def body(t: Array, carry: PyTree) -> PyTree:
            now, tangents = carry
            new, push = training.step_jvp(now, t)
            return new, jax.vmap(push)(tangents, directions)

        end, tangents = jax.lax.fori_loop(0, total, body, (start, tangents))
        value, by_model, direct = training.outer_value_and_grads(end)
        flat, unravel = ravel_pytree(hparams)
        through_training = jax.vmap(lambda z: pairing(by_model, judged_tangent(end, z)))(tangents)
        hypergradient = optax.tree.add(direct, unravel(through_training.astype(flat.dtype)))
        counts = Counts(
            iterations=total,
            inner_gradients=self.inner.num_gradients(start, end, total),
            hvps=total * flat.size,
            outer_gradients=1,
        )
        status = lost_in_float16(by_model)
        estimate = Estimate(hypergradient, value, end.judged, Stats(counts, status))
        return estimate, ForwardState(end, tangents) if self.warm_start else state

    def _begin(self, training: Training, state: ForwardState, directions: PyTree) -> tuple[InnerState, PyTree]:
        """Returns the state before the first step and its tangents."""
        if not self.warm_start:
            return training.begin(state.inner, False), _first_tangents(training, state.inner)
        inexact, rest = split(state.inner)

        def resume(inexact: PyTree, hparams: PyTree) -> PyTree:
            start = training.at(hparams).begin(join(inexact, rest), True)
            return split(start)

        start, push, rest_of_start = linearize(resume, inexact, training.hparams, has_aux=True)
        return join(start, rest_of_start), jax.vmap(push)(state.tangents, directions)


def _first_tangents(training: Training, state: InnerState) -> PyTree:
    """Returns the derivatives of the state before the first update of the model of `state`."""
    directions = _directions(training.hparams)
    return jax.vmap(lambda direction: first_tangent(training, state, False, direction))(directions)


def _directions(hparams: PyTree) -> PyTree:
    """Returns the unit vectors of λ, stacked."""
    flat, unravel = ravel_pytree(hparams)
    return jax.vmap(unravel)(jnp.eye(flat.size, dtype=flat.dtype))
