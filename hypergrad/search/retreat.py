"""The move of hyperparameters, and the way back from where the value or the hypergradient is not finite."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from ..ground.dependence import enters
from ..ground.tree import all_finite
from ..ground.units import norm
from .base import Anchor, SearchState, projected


class Outcome(NamedTuple):
    """The result of one step that an optimiser of hyperparameters may see."""

    hypergradient: PyTree
    value: Array
    usable: Array  # false where the value or the hypergradient is not finite
    diagnostics: dict[str, Array]


def move(
    optimiser: optax.GradientTransformation,
    projection: Callable[[PyTree], PyTree],
    state: SearchState,
    outcome: Outcome,
) -> tuple[SearchState, Array]:
    """Returns the state with the next λ, and whether λ took the optimiser's update.

    Where the result at λ is not usable, the optimiser is shown an infinite value and a hypergradient of zero. If its
    update depends on the value and leads nearer to the last good λ_0, as that of `adaptive_step` does, it is followed.
    Else λ <- λ_0 + (λ - λ_0)/2, the optimiser keeps its state, and its next updates are taken by half; the share
    doubles, up to the whole, with every update that is taken. An update that is not finite leaves λ where it is.

    **Raises** `ValueError` naming an optimiser that fails, such as one that asks for the loss as a function, and a
    projection that does not fit.
    """
    usable, hparams, anchor = outcome.usable, state.hparams, state.anchor
    assert anchor is not None, "the first state was made without retreats=True"
    update = optax.with_extra_args_support(optimiser).update
    shown = optax.tree.where(usable, outcome.hypergradient, optax.tree.zeros_like(hparams))
    propose = lambda value: update(shown, state.opt_state, hparams, value=value, **outcome.diagnostics)
    value = jnp.where(usable, outcome.value, jnp.inf)
    try:
        updates, opt_state = propose(value)
    except Exception as error:  # of somebody's optimiser
        raise ValueError(
            "optimiser, that of the hyperparameters, fails on a hypergradient, the value and diagnostics, all that it "
            f"is given: {type(error).__name__}: {error}; in place of a line search take adaptive_step"
        ) from error
    updates = jax.tree.map(lambda u: u * anchor.share.astype(u.dtype), updates)
    ahead = projected(projection, optax.apply_updates(hparams, updates))
    finite = all_finite(ahead)
    taken, backtracked = usable & finite, jnp.bool_(False)
    if any(enters(lambda value: propose(value)[0], value)):
        distance = lambda point: norm(optax.tree.sub(point, anchor.hparams))
        backtracked = ~usable & finite & (distance(ahead) < distance(hparams))
    # λ itself where the result is usable, for λ_0 is λ then. So λ_0 can be written in place, and λ after it.
    last_good = optax.tree.where(usable, hparams, anchor.hparams)
    halfway = jax.tree.map(lambda good, here: good + (here - good) / 2, last_good, hparams)
    least = jnp.finfo(anchor.share.dtype).eps
    share = jnp.where(taken, jnp.minimum(2 * anchor.share, 1), jnp.maximum(anchor.share / 2, least))
    after = dataclasses.replace(
        state,
        hparams=optax.tree.where(taken | backtracked, ahead, halfway),
        opt_state=optax.tree.where(taken | backtracked, opt_state, state.opt_state),
        anchor=Anchor(last_good, jnp.where(backtracked, anchor.share, share)),
    )
    return after, taken
