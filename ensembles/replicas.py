"""Replicas as one more axis: many models, their losses and their optimiser, stacked.

A stacked ensemble is an ordinary model whose arrays have a leading axis of members, so whatever trains one model trains
all of them: `replicate_loss` and `replicate_optimiser` make an ensemble an ordinary problem with an ordinary optimiser.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from .checks import num_members, positive

Loss = Callable[[PyTree, PyTree, PyTree, Array], Array]  # (model, hparams, data, key) -> scalar


def member_keys(key: Array, num: int) -> Array:
    """One key per member; member r gets `fold_in(key, r)`, however many there are."""
    return jax.vmap(lambda r: jax.random.fold_in(key, r))(jnp.arange(num, dtype=jnp.uint32))


def init_members(make: Callable[[Array], PyTree], key: Array, num: int) -> PyTree:
    """`num` models stacked: member r is `make(fold_in(key, r))`.

    **Arguments**: `make`, a function `key -> model`; the model may be any pytree or `eqx.Module`.

    **Raises** `ValueError` where `num` is not a positive whole number.
    """
    return eqx.filter_vmap(make)(member_keys(key, positive(num, "num")))


def member(members: PyTree, r: int) -> PyTree:
    """Member r alone: a model like the one that `make` returned."""
    return jax.tree.map(lambda leaf: leaf[r] if eqx.is_array(leaf) else leaf, members)


def map_members(function: Callable[..., PyTree], members: PyTree, *shared: PyTree) -> PyTree:
    """`function(member, *shared)` for every member at once, results stacked: predictions, for example."""
    return eqx.filter_vmap(function, in_axes=(eqx.if_array(0), *[None] * len(shared)))(members, *shared)


def replicate_loss(loss: Loss, data_axes: PyTree = None, hparams_axes: PyTree = None) -> Loss:
    """The loss of an ensemble, from the loss of one model:

        L(W, λ; data, key) = Σ_r loss(w_r, λ, data_r, fold_in(key, r))

    No member sees another, so ∂L/∂w_r is the gradient of member r alone.

    **Arguments**

    - `loss`: a function `(model, hparams, data, key) -> scalar`.
    - `data_axes`: which of the data are the members' own, as in `jax.vmap`: 0 for arrays with a leading axis of members
      (pseudodata, masks, weights), None for what all share, or a tree of these like the top of `data`.
    - `hparams_axes`: the same for the hyperparameters, all shared by default.

    Call it once per loss: a new function is traced again.
    """

    def total(members: PyTree, hparams: PyTree, data: PyTree, key: Array) -> Array:
        losses = eqx.filter_vmap(loss, in_axes=(eqx.if_array(0), hparams_axes, data_axes, 0))
        return jnp.sum(losses(members, hparams, data, member_keys(key, num_members(members))))

    return total


def replicate_optimiser(
    optimiser: optax.GradientTransformation | Callable[[PyTree], optax.GradientTransformation],
    settings: PyTree = None,
) -> optax.GradientTransformation:
    """An optimiser that treats every member as if it were alone, one that couples all weights of a model included
    (`optax.clip_by_global_norm`, `optax.lamb`).

    With `settings`, a tree of arrays with a leading axis of members, `optimiser` is a function `setting -> optimiser`
    and every member has its own: learning rates, clip norms.
    """
    if isinstance(optimiser, optax.GradientTransformation):
        if settings is not None:
            raise TypeError("settings need optimiser to be a function setting -> optimiser, it is an optimiser")
        alone = lambda _: optimiser
    else:
        if settings is None:
            raise TypeError(f"optimiser must be an optax optimiser unless settings are given, got {optimiser!r}")
        alone = optimiser

    def init(params: PyTree) -> PyTree:
        return jax.vmap(lambda setting, params: alone(setting).init(params))(settings, params)

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        one = lambda setting, updates, state, params: alone(setting).update(updates, state, params)
        return jax.vmap(one)(settings, updates, state, params)

    return optax.GradientTransformation(init, update)


def is_finite(members: PyTree) -> Array:
    """Returns for every member whether all its floating numbers are finite; takes models and predictions alike."""
    num = num_members(members)
    leaves = jax.tree.leaves(eqx.filter(members, eqx.is_inexact_array))
    finite = [jnp.all(jnp.isfinite(leaf), axis=range(1, leaf.ndim)) for leaf in leaves]
    return jnp.all(jnp.stack(finite), axis=0) if finite else jnp.ones(num, bool)
