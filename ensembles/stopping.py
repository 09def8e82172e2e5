"""Early stopping of every replica by itself, and replicas that fail."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, PyTree

from .checks import array, call, checked, concrete, function, instance, integer, num_replicas, shown
from .replicas import is_finite


class StoppingState(NamedTuple):
    """The state of `early_stopping`; everything but `inner` and `step` has a leading axis of replicas.

    - `best`: the weights of the lowest validation loss, `best_loss`, found at `best_step`.
    - `stopped`: mask of replicas that train no more; `failed`: mask of those that met a number that is not finite.
    - `loss`, `better`, `sound`: the validation loss of the present weights, whether it is the lowest, whether it is
      finite. Truth values alone so decide the next update. An estimator can replay them exactly where it
      knows the weights only roughly.
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


STATE = instance("state", StoppingState, "the state of early_stopping")


@checked(
    instance("optimiser", optax.GradientTransformation, "an optax optimiser"),
    function("valid_losses", "from the stacked parameters to one loss per replica"),
    array("patience"),
    integer("max_updates", least=1, optional=True),
)
def early_stopping(
    optimiser: optax.GradientTransformation,
    valid_losses: Callable[[PyTree], Array],
    patience: ArrayLike,
    max_updates: int | None = None,
) -> optax.GradientTransformation:
    """Returns an optimiser that stops each replica when its own validation loss has not fallen for `patience` updates.

    A replica that stops is put back to its best weights and stays there. One whose loss or update is not finite is put
    back in the same way and marked as failed; the others are not affected. Nothing is compiled again as replicas stop.

    **Arguments**

    - `optimiser`: an optimiser of the stacked replicas, see `replicate_optimiser`.
    - `valid_losses`: a function from the parameters of the stacked replicas to one loss per replica, evaluated at the
      start and after every update. An optimiser sees the floating arrays alone; `eqx.combine` them with the rest of the
      models.
    - `patience`: the number of updates, one for all or one per replica; it may be traced.
    - `max_updates`: the update that puts back all replicas that still train, so that the weights after it are the best.

    The state, a `StoppingState`, tells which replicas stopped and failed. It holds the best weights of those that still
    train, see `best_replicas`. The update at which a replica stops is a constant to the gradient.

    *Memory*: the parameters once more. *Bias*: the discontinuity at the stop is not differentiated.

    **Source**: Prechelt (1998), "Early stopping - but when?"; NNPDF (2022), the patience of one replica.

    **Example**

        >>> losses = lambda w: (w[:, 0] - 1) ** 2
        >>> stopping = ens.early_stopping(ens.replicate_optimiser(optax.sgd(0.6)), losses, patience=2)
        >>> stopping.init(jnp.zeros((2, 1))).stopped
        Array([False, False], dtype=bool)
    """
    if concrete(patience) and not np.all(np.asarray(patience) >= 1):
        raise ValueError(f"patience must be at least 1 update, got {patience}")

    def update(updates: PyTree, state: StoppingState, params: PyTree) -> tuple[PyTree, StoppingState]:
        updates, inner = optimiser.update(updates, state.inner, params)
        failed = ~(state.sound & is_finite(updates)) & ~state.stopped
        better = state.better & ~state.stopped & ~failed
        best = where_replicas(better, params, state.best)
        best_step = jnp.where(better, state.step, state.best_step)
        stopped = state.stopped | failed | (state.step - best_step >= patience)
        if max_updates is not None:
            stopped = stopped | (state.step + 1 >= max_updates)
        best_loss = jnp.where(better, state.loss, state.best_loss)
        updates = where_replicas(stopped, jax.tree.map(jnp.subtract, best, params), updates)
        loss, lower, sound = _judged(valid_losses, optax.apply_updates(params, updates), best_loss)
        return updates, StoppingState(
            inner=where_replicas(stopped, state.inner, inner),
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

    return optax.GradientTransformation(partial(_first_state, optimiser, valid_losses, patience), update)


def _first_state(
    optimiser: optax.GradientTransformation,
    valid_losses: Callable[[PyTree], Array],
    patience: ArrayLike,
    params: PyTree,
) -> StoppingState:
    """Returns the state before the first update. **Raises** `ValueError` where the arguments do not fit `params`."""
    num = num_replicas(params, "params")
    if jnp.shape(patience) not in ((), (num,)):
        raise ValueError(f"patience must be one number, or one per replica, ({num},), got {shown(patience)}")
    loss = call("valid_losses", jax.eval_shape, "params", valid_losses, params)
    if loss.shape != (num,):
        raise ValueError(f"valid_losses must return one loss per replica, ({num},), it returned {loss.shape}")
    zeros, none = jnp.zeros(num, jnp.int32), jnp.zeros(num, bool)
    worst = jnp.full(num, jnp.finfo(loss.dtype).max, loss.dtype)
    inner = optimiser.init(params)
    if jax.tree.leaves(inner) and num_replicas(inner, "the state of optimiser") != num:
        raise ValueError("the state of optimiser has no axis of replicas: wrap it in replicate_optimiser")
    judged = _judged(valid_losses, params, worst)
    return StoppingState(inner, jnp.zeros((), jnp.int32), params, worst, zeros, none, none, *judged)


def _judged(valid_losses: Callable[[PyTree], Array], params: PyTree, best_loss: Array) -> tuple[Array, Array, Array]:
    """Returns the losses, finite so that states can be interpolated, and whether each is the lowest, and finite."""
    losses = valid_losses(jax.lax.stop_gradient(params))
    sound = jnp.isfinite(losses)
    return jnp.where(sound, losses, jnp.finfo(losses.dtype).max), losses < best_loss, sound


@checked(STATE, function("valid_losses", "from the stacked parameters to one loss per replica"))
def best_replicas(state: StoppingState, params: PyTree, valid_losses: Callable[[PyTree], Array]) -> PyTree:
    """Returns the best weights of every replica after training, `params` included, which no update has measured.

    **Raises** `ValueError` where `params` are not like those of `state`, or `valid_losses` gives no loss per replica.
    """
    num_replicas(params, "params")
    shapes = lambda tree: [(path, np.shape(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
    if shapes(params) != shapes(state.best):
        raise ValueError(f"params must be arrays like those of the state, got {shown(params)}")
    losses = call("valid_losses", valid_losses, "params", params)
    if jnp.shape(losses) != state.best_loss.shape:
        raise ValueError(f"valid_losses must return one loss per replica, {state.best_loss.shape}, got {shown(losses)}")
    return where_replicas(losses < state.best_loss, params, state.best)


def where_replicas(condition: Array, a: PyTree, b: PyTree) -> PyTree:
    """Returns `a` for the replicas where the condition holds, else `b`."""
    choose = lambda a, b: jnp.where(condition.reshape(-1, *[1] * (a.ndim - 1)), a, b)
    return jax.tree.map(choose, a, b)
