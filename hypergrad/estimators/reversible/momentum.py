"""SGD with momentum as an optimiser that can be run backwards."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from ...ground.checks import field, number_or_function, real

Rate = float | Callable[[PyTree, Array], PyTree]  # a number, or (hparams, step) -> a number or one per part of params


class Clock(NamedTuple):
    """Steps done; apart from the velocity, so that it can start again where the velocity goes on."""

    steps: Array


class MomentumState(NamedTuple):
    """The counter of the rates, and the velocity."""

    clock: Clock
    velocity: PyTree

    @property
    def steps(self) -> Array:
        """Steps done."""
        return self.clock.steps


class MomentumSGD(eqx.Module):
    """SGD with momentum, whose rates stay visible: `Reversible` needs them.

        v <- momentum · v + ∇L(w),    w <- w - learning_rate · v

    the same updates as `optax.sgd(learning_rate, momentum)`. Goes into `OptaxSolver` like an optax optimiser:

        OptaxSolver(MomentumSGD(0.1, 0.9), 100)
        OptaxSolver(MomentumSGD(lambda hparams, t: jnp.exp(hparams["log_lr"][t]), 0.9), 100)

    **Arguments**: numbers, or functions `(hparams, t) -> rate` of the hyperparameters and the step, counted from the
    start of each training where hyperparameters enter; a rate may be a prefix of the tree of parameters, one number per
    part.

    **Raises** `ValueError` for a learning rate that is not positive or a momentum outside [0, 1).

    **Source**: Polyak (1964).
    """

    learning_rate: Rate = field(number_or_function(real("learning_rate", above=0), "(hparams, t) -> rate"))
    momentum: Rate = field(number_or_function(real("momentum", least=0, below=1), "(hparams, t) -> rate"), 0.9)

    def rates(self, hparams: PyTree, t: Array, like: PyTree) -> tuple[PyTree, PyTree]:
        """Returns the learning rate and momentum of step t, one number per leaf of `like` and of its type."""

        def spread(rate: Any) -> PyTree:
            tree = jax.tree.broadcast(rate(hparams, t) if callable(rate) else rate, like)
            return jax.tree.map(lambda number, leaf: jnp.asarray(number, leaf.dtype), tree, like)

        return spread(self.learning_rate), spread(self.momentum)

    def __call__(self, hparams: PyTree) -> optax.GradientTransformation:
        """Makes the optax optimiser at these hyperparameters."""

        def init(params: PyTree) -> MomentumState:
            return MomentumState(Clock(jnp.zeros((), jnp.int32)), optax.tree.zeros_like(params))

        def update(
            gradient: PyTree, state: MomentumState, params: PyTree | None = None
        ) -> tuple[PyTree, MomentumState]:
            rate, momentum = self.rates(hparams, state.steps, state.velocity)
            velocity = jax.tree.map(lambda m, v, g: m * v + g, momentum, state.velocity, gradient)
            return jax.tree.map(lambda a, v: -a * v, rate, velocity), MomentumState(Clock(state.steps + 1), velocity)

        return optax.GradientTransformation(init, update)
