"""The momentum among the hyperparameters: found by letting the optimiser coast, and bounded by its memory."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree
from scipy.optimize import brentq

from ..ground.tree import named_leaves, pairing
from ..inner import AbstractInnerSolver
from ..inner.optimiser_state import with_loss

MEMORY = 5  # updates; of longer ones a short horizon sees how far they carry, and not that they overshoot
AROUND = (1, 2, 4, 8)  # units of the scale from the start, between which the bound is sought
LEAST_SLOPE = 1e-5  # of the retention by a unit of the scale, below which a hyperparameter is no momentum


class Bounded(eqx.Module):
    """The projection of hyperparameters to a box, and then by another projection."""

    lower: PyTree
    upper: PyTree
    then: Callable[[PyTree], PyTree]

    def __call__(self, hparams: PyTree) -> PyTree:
        """Returns the hyperparameters inside."""
        return self.then(jax.tree.map(jnp.clip, hparams, self.lower, self.upper))


def retention(optimiser: Callable[[PyTree], Any], hparams: PyTree, arrays: PyTree) -> Array:
    """Returns the share of an update that the next one repeats where the gradient has become zero.

        r = <u_1, u_2> / <u_1, u_1>

    u_1 and u_2 are the updates of weights at zero after a gradient of ones, with all counters standing still, so that
    neither weight decay nor schedules enter. A momentum μ has r = μ, Adam b1 / √b2, plain descent NaN. The memory is
    1/(1 - r) updates: so far the optimiser coasts, in units of u_1.
    """
    rule = with_loss(optimiser(hparams), optax.tree.sum)
    zero, one = jax.tree.map(jnp.zeros_like, arrays), jax.tree.map(jnp.ones_like, arrays)
    _, pushed = rule.update(one, rule.init(zero), zero)

    def coast(state: PyTree) -> tuple[PyTree, PyTree]:
        update, after = rule.update(zero, state, zero)
        return update, jax.tree.map(lambda old, new: new if eqx.is_inexact_array(new) else old, pushed, after)

    first, state = coast(pushed)
    second, _ = coast(state)
    return pairing(first, second) / pairing(first, first)


def bounds(
    inner: AbstractInnerSolver,
    arrays: PyTree,
    hparams: PyTree,
    scale: PyTree,
    in_loss: Sequence[bool],
    memory: int | None,
) -> tuple[PyTree, PyTree, list[str]]:
    """Returns the least and the largest hyperparameters with which the optimiser remembers so many updates at most.

    Of each array that enters no loss, and that `retention` depends on, all entries are moved together to where
    r = 1 - 1/memory. Without a bound they are -inf and inf, as all are where `memory` is `None`. The list has the paths
    of the arrays with one.
    """
    leaves, treedef = jax.tree.flatten(hparams)
    sides = [[jnp.full_like(leaf, end) for leaf in leaves] for end in (-jnp.inf, jnp.inf)]
    optimiser = inner.options.get("opt")
    found = list[str]()
    if memory is not None and callable(optimiser) and not all(in_loss):
        slopes = jax.tree.leaves(_measured(optimiser, hparams, arrays)[1])
        for place, (path, leaf) in enumerate(named_leaves(hparams, "hparams")):
            unit = float(jnp.max(jax.tree.leaves(scale)[place]))
            if in_loss[place] or not unit * float(jnp.sum(jnp.abs(slopes[place]))) > LEAST_SLOPE:
                continue

            def excess(value: float, place: int = place) -> float:
                changed = [jnp.full_like(leaf, value) if at == place else leaf for at, leaf in enumerate(leaves)]
                there = jax.tree.unflatten(treedef, changed)
                return float(_measured(optimiser, there, arrays)[0]) - (1 - 1 / memory)

            crossing = _crossing(excess, float(jnp.mean(leaf)), unit)
            if crossing is not None:
                value, rises = crossing
                sides[rises][place] = jnp.full_like(leaf, value)
                found.append(path)
    lower, upper = (jax.tree.unflatten(treedef, side) for side in sides)
    return lower, upper, found


@eqx.filter_jit
def _measured(optimiser: Callable[[PyTree], Any], hparams: PyTree, arrays: PyTree) -> tuple[Array, PyTree]:
    """Returns `retention` and its derivative, by one program for all calls."""
    return jax.value_and_grad(lambda h: retention(optimiser, h, arrays))(hparams)


def _crossing(function: Callable[[float], float], start: float, unit: float) -> tuple[float, bool] | None:
    """Returns where a function changes sign, within `AROUND` of the start, and whether it rises there."""
    first = function(start)
    sides = {1.0: (start, first), -1.0: (start, first)}
    for distance in AROUND:
        for sign, (near, value) in sides.items():
            far = start + sign * distance * unit
            found = function(far)
            if value * found <= 0:
                return float(brentq(function, near, far, xtol=1e-6 * unit)), (found > value) == (sign > 0)
            sides[sign] = far, found
    return None
