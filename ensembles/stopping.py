"""Early stopping of every member on its own, and members that fail."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, PyTree

from .checks import concrete, num_members, positive
from .replicas import is_finite


class StoppingState(NamedTuple):
    """What `early_stopping` carries; everything but `inner` and `step` has a leading axis of members.

    - `best`: the weights of the lowest validation loss, `best_loss`, found at `best_step`.
    - `stopped`: members that train no more; `failed`: those of them that met a number that is not finite.
    - `loss`, `better`, `sound`: the validation loss of the present weights, whether it is the lowest, whether it is
      finite. What the next update does is so decided by truth values alone, which an estimator can replay exactly where
      it knows the weights only roughly.
    """

    inner: PyTree
    step: Array
    best: PyTree
    best_loss: Array
    best_step: Array
    stopped: Array
    failed: Array
    loss: Array
    better: Array
    sound: Array


def early_stopping(
    optimiser: optax.GradientTransformation,
    valid_losses: Callable[[PyTree], Array],
    patience: ArrayLike,
    max_updates: int | None = None,
) -> optax.GradientTransformation:
    """Let a member train until its own validation loss has not fallen for `patience` updates, then put it back to its
    best weights and leave it there.

    A member whose loss or update is not finite is put back in the same way and marked as failed; the others do not
    notice. Nothing is compiled again as members stop.

    **Arguments**

    - `optimiser`: of the stacked members, see `replicate_optimiser`.
    - `valid_losses`: a function from the stacked members' parameters to one loss per member, evaluated at the start and
      after every update. An optimiser sees the floating arrays alone; `eqx.combine` them with the rest of the models.
    - `patience`: in updates; one for all or one per member, may be traced.
    - `max_updates`: the update that puts back all who still train, so that the weights after it are everybody's best.

    The state, a `StoppingState`, tells who stopped and failed, and holds the best weights of those still training, see
    `best_members`. Members that stop are a constant pattern to the gradient: its discontinuity is not differentiated.
    *Memory*: the parameters once more.

    **Source**: Prechelt (1998), "Early stopping - but when?"; NNPDF (2022), the patience of one replica.
    """
    if concrete(patience) and not jnp.all(jnp.asarray(patience) >= 1):
        raise ValueError(f"patience must be at least 1 update, got {patience}")
    if max_updates is not None:
        positive(max_updates, "max_updates")

    def init(params: PyTree) -> StoppingState:
        num = num_members(params, "params")
        loss = jax.eval_shape(valid_losses, params)
        if loss.shape != (num,):
            raise ValueError(f"valid_losses must return one loss per member, ({num},), it returned {loss.shape}")
        zeros, none = jnp.zeros(num, jnp.int32), jnp.zeros(num, bool)
        worst = jnp.full(num, jnp.finfo(loss.dtype).max, loss.dtype)
        inner = optimiser.init(params)
        if jax.tree.leaves(inner) and num_members(inner, "the state of optimiser") != num:
            raise ValueError("the state of optimiser has no axis of members: wrap it in replicate_optimiser")
        return StoppingState(inner, jnp.zeros((), jnp.int32), params, worst, zeros, none, none, *judged(params, worst))

    def judged(params: PyTree, best_loss: Array) -> tuple[Array, Array, Array]:
        losses = valid_losses(jax.lax.stop_gradient(params))
        sound = jnp.isfinite(losses)
        # Not infinity, so that states can be interpolated.
        return jnp.where(sound, losses, jnp.finfo(losses.dtype).max), losses < best_loss, sound

    def update(updates: PyTree, state: StoppingState, params: PyTree) -> tuple[PyTree, StoppingState]:
        updates, inner = optimiser.update(updates, state.inner, params)
        failed = ~(state.sound & is_finite(updates)) & ~state.stopped
        better = state.better & ~state.stopped & ~failed
        best = where_members(better, params, state.best)
        best_step = jnp.where(better, state.step, state.best_step)
        stopped = state.stopped | failed | (state.step - best_step >= patience)
        if max_updates is not None:
            stopped = stopped | (state.step + 1 >= max_updates)
        best_loss = jnp.where(better, state.loss, state.best_loss)
        updates = where_members(stopped, jax.tree.map(jnp.subtract, best, params), updates)
        loss, lower, sound = judged(optax.apply_updates(params, updates), best_loss)
        after = StoppingState(
            inner=where_members(stopped, state.inner, inner),
            step=state.step + 1,
            best=best,
            best_loss=best_loss,
            best_step=best_step,
            stopped=stopped,
            failed=state.failed | failed,
            loss=loss,
            better=lower,
            sound=sound,
        )
        return updates, after

    return optax.GradientTransformation(init, update)


def best_members(state: StoppingState, params: PyTree, valid_losses: Callable[[PyTree], Array]) -> PyTree:
    """The best weights of every member after training, `params` (the end, which no update has looked at) included."""
    return where_members(valid_losses(params) < state.best_loss, params, state.best)


def where_members(condition: Array, a: PyTree, b: PyTree) -> PyTree:
    """Member by member, `a` where the condition holds, else `b`."""
    choose = lambda a, b: jnp.where(condition.reshape(-1, *[1] * (a.ndim - 1)), a, b)
    return jax.tree.map(choose, a, b)
