"""Replicas as one more axis: many models, their losses and their optimiser, stacked.

A stacked ensemble is an ordinary model whose arrays have a leading axis of replicas, so a solver that trains one model
trains all of them: `replicate_loss` and `replicate_optimiser` make an ensemble an ordinary problem with an ordinary
optimiser.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from .checks import KEY, Rule, boolean, call, checked, function, integer, num_replicas, shown
from .ground.memory import refuse_too_large

Loss = Callable[[PyTree, PyTree, PyTree, Array], Any]  # (model, hparams, data, key) -> scalar, or (scalar, state)


def axes(name: str) -> Rule:
    """Returns a rule for axes as in `jax.vmap`: integers, `None`, or a tree of them."""

    def convert(value: Any) -> Any:
        if not all(
            (isinstance(leaf, int) and not isinstance(leaf, bool)) or callable(leaf) for leaf in jax.tree.leaves(value)
        ):
            raise TypeError
        return value

    return Rule(name, "0, None, or a tree of them like the top of what it belongs to", convert)


@checked(KEY, integer("num", least=1))
def replica_keys(key: Array, num: int) -> Array:
    """Returns one key per replica; that of replica r is `fold_in(key, r)`, whatever their number.

    **Example**

        >>> keys = ens.replica_keys(key, 3)
        >>> bool(keys[2] == jax.random.fold_in(key, 2))
        True
    """
    refuse_too_large(2 * 4 * jax.random.key_data(key).size * num, "num")
    return jax.vmap(lambda r: jax.random.fold_in(key, r))(jnp.arange(num, dtype=jnp.uint32))


@checked(function("make", "key -> model"), KEY, integer("num", least=1))
def init_replicas(make: Callable[[Array], PyTree], key: Array, num: int) -> PyTree:
    """Returns `num` models stacked: replica r is `make(fold_in(key, r))`.

    **Arguments**: `make`, a function `key -> model`; the model may be any pytree or `eqx.Module`.

    **Raises** `ValueError` where `num` is not a positive integer, or the model has no array.

    **Example**

        >>> models = ens.init_replicas(lambda key: eqx.nn.Linear(3, 1, key=key), key, 5)
        >>> models.weight.shape
        (5, 1, 3)
    """
    leaves = jax.tree.leaves(call("make", eqx.filter_eval_shape, "a key", make, key))
    if not any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves):
        raise ValueError("make must return a model with arrays, it returned none")
    sizes = [leaf.size * leaf.dtype.itemsize for leaf in leaves if isinstance(leaf, jax.ShapeDtypeStruct)]
    refuse_too_large(2 * num * sum(sizes), "num")
    return eqx.filter_vmap(make)(replica_keys(key, num))


def replica(replicas: PyTree, r: int) -> PyTree:
    """Returns replica r alone.

    **Raises** `ValueError` for an index that is not there.

    **Example**

        >>> ens.replica({"w": jnp.arange(6).reshape(3, 2)}, 1)["w"]
        Array([2, 3], dtype=int32)
    """
    num = num_replicas(replicas)
    if not isinstance(r, jax.core.Tracer):
        r = integer("r", least=-num, most=num - 1)(r)
    return jax.tree.map(lambda leaf: leaf[r] if eqx.is_array(leaf) else leaf, replicas)


@checked(function("function", "of a replica and what all share"))
def map_replicas(function: Callable[..., PyTree], replicas: PyTree, *shared: PyTree) -> PyTree:
    """Returns `function(replica, *shared)` for every replica at once, the results stacked.

    **Example**

        >>> ens.map_replicas(lambda w, x: w @ x, jnp.eye(2), jnp.array([3.0, 4.0]))
        Array([3., 4.], dtype=float32)
    """
    num_replicas(replicas)
    mapped = eqx.filter_vmap(function, in_axes=(eqx.if_array(0), *[None] * len(shared)))
    return call("function", mapped, "replicas", replicas, *shared)


@checked(
    function("loss", "(model, hparams, data, key) -> scalar"),
    axes("data_axes"),
    axes("hparams_axes"),
    boolean("drop_failed"),
)
def replicate_loss(
    loss: Loss, data_axes: PyTree = None, hparams_axes: PyTree = None, drop_failed: bool = False
) -> Loss:
    """Returns the loss of an ensemble, from the loss of one model:

        L(W, λ; data, key) = Σ_r loss(w_r, λ, data_r, fold_in(key, r))

    No replica sees another, so ∂L/∂w_r is the gradient of replica r alone.

    **Arguments**

    - `loss`: a function `(model, hparams, data, key) -> scalar`, or `(scalar, state of the layers)`.
    - `data_axes`: 0 for data with a leading axis of replicas (pseudodata, masks, weights), `None` for data that all
      share, or a tree of these like the top of `data`, as in `jax.vmap`.
    - `hparams_axes`: the same for the hyperparameters, all shared by default.
    - `drop_failed`: for training losses. A replica with a weight that is not finite, or above the fourth root of the
      largest number (1e77 in float64, 4e9 in float32), adds nothing and has no gradient. It stays where it is, and
      hypergradients through the training of the others stay finite; `outer_loss(..., drop_failed=True)` leaves it out.

    Make it once per loss: a new function is traced again.

    **Example**

        >>> loss = ens.replicate_loss(mse, data_axes=(None, 0))  # inputs shared, targets of each
        >>> print(f"{loss(jnp.zeros((2, 3)), log_l2, (x, jnp.stack([y, 2 * y])), key):.2f}")
        21.04
    """

    def total(replicas: PyTree, hparams: PyTree, data: PyTree, key: Array) -> Any:
        sound = None
        if drop_failed:
            replicas, sound = _with_sound_weights(replicas)
        losses = eqx.filter_vmap(loss, in_axes=(eqx.if_array(0), hparams_axes, data_axes, 0))
        keys = replica_keys(key, num_replicas(replicas))
        found = call("loss", losses, "replicas, hparams and data", replicas, hparams, data, keys)
        values, *state = found if isinstance(found, tuple) else (found,)
        if jnp.shape(values) != keys.shape:
            raise ValueError(f"loss must return a scalar, or (scalar, state), it returned {jnp.shape(values)[1:]}")
        summed = jnp.sum(values if sound is None else jnp.where(sound, values, 0))
        return (summed, *state) if state else summed

    return total


def _with_sound_weights(replicas: PyTree) -> tuple[PyTree, Array]:
    """Returns the replicas, those that failed with the weights of the first that did not, and which did not fail."""
    weights, rest = eqx.partition(replicas, eqx.is_inexact_array)
    limited = lambda leaf: jnp.abs(leaf) <= jnp.finfo(jnp.result_type(leaf)).max ** 0.25
    sound = [jnp.all(limited(leaf), axis=range(1, leaf.ndim)) for leaf in jax.tree.leaves(weights)]
    every = jnp.all(jnp.stack(sound), axis=0) if sound else jnp.ones(num_replicas(replicas), bool)
    first = jnp.argmax(every)

    def mended(leaf: Array) -> Array:
        column = every.reshape(-1, *[1] * (leaf.ndim - 1))
        return jnp.where(column, leaf, jax.lax.stop_gradient(leaf[first]))

    return eqx.combine(jax.tree.map(mended, weights), rest), every


def replicate_optimiser(
    optimiser: optax.GradientTransformation | Callable[[PyTree], optax.GradientTransformation],
    settings: PyTree = None,
) -> optax.GradientTransformation:
    """Returns an optimiser that treats every replica as if it were alone.

    That holds for optimisers that couple all weights of a model, such as `optax.clip_by_global_norm`, as well. With
    `settings`, a tree of arrays with a leading axis of replicas, `optimiser` is a function `setting -> optimiser`, and
    every replica has its own learning rate, clip norm and so on.

    **Raises** `TypeError` or `ValueError` naming the argument that is none of these.

    **Example**

        >>> one = ens.replicate_optimiser(optax.sgd, settings=jnp.array([0.1, 0.2]))
        >>> updates, _ = one.update(jnp.ones((2, 1)), one.init(jnp.zeros((2, 1))))
        >>> updates.ravel()
        Array([-0.1, -0.2], dtype=float32)
    """
    if isinstance(optimiser, optax.GradientTransformation):
        if settings is not None:
            raise TypeError("settings need optimiser to be a function setting -> optimiser, it is an optimiser")
        alone = lambda _: optimiser
    else:
        if settings is None or not callable(optimiser):
            raise TypeError(f"optimiser must be an optax optimiser unless settings are given, got {shown(optimiser)}")
        num_replicas(settings, "settings")
        alone = optimiser

    def init(params: PyTree) -> PyTree:
        num_replicas(params, "params")
        one = lambda setting, params: alone(setting).init(params)
        return call("optimiser", jax.vmap(one), "params", settings, params)

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        num_replicas(updates, "updates")
        one = lambda setting, updates, state, params: alone(setting).update(updates, state, params)
        return call("optimiser", jax.vmap(one), "updates", settings, updates, state, params)

    return optax.GradientTransformation(init, update)


def is_finite(replicas: PyTree) -> Array:
    """Returns for every replica whether all its floating numbers are finite; takes models and predictions alike.

    **Example**

        >>> ens.is_finite(jnp.array([[1.0, 2.0], [jnp.nan, 0.0]]))
        Array([ True, False], dtype=bool)
    """
    num = num_replicas(replicas)
    leaves = jax.tree.leaves(eqx.filter(replicas, eqx.is_inexact_array))
    finite = [jnp.all(jnp.isfinite(leaf), axis=range(1, leaf.ndim)) for leaf in leaves]
    return jnp.all(jnp.stack(finite), axis=0) if finite else jnp.ones(num, bool)
