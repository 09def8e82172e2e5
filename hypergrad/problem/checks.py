"""Checks of a problem with a model and hyperparameters, by abstract evaluation, before anything is compiled."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from ..data.sampler import as_sampler
from ..ground.arrays import taken_over
from ..ground.checks import explained
from ..ground.dependence import used
from ..ground.derivatives import refuse_not_differentiable, remedy
from ..ground.hparams import as_hparams, num_not_finite
from ..ground.sensitivity import UNUSED, refuse_flat_loss, refuse_unused
from ..ground.shapes import remembered
from ..ground.surprises import shape_of, warn_of_numbers, warn_of_ties
from ..ground.tree import PartitionedModel, describe, form, join, named_leaves, refuse_foreign, split, strong_arrays
from .base import BilevelProblem, outside
from .objectives import inner_objective, outer_objective, traced_loss, traced_outer_value


def explain_derivatives(problem: BilevelProblem, partitioned: PartitionedModel, hparams: PyTree) -> None:
    """Raises `ValueError` naming a loss that has not the derivatives of a hypergradient. Nothing is computed."""
    inner, outer = (make(problem, partitioned, jax.random.key(0)) for make in (inner_objective, outer_objective))
    slope = lambda arrays, hparams: jnp.real(optax.tree.sum(jax.grad(inner)(arrays, hparams)))
    for name, loss in (("inner_loss", inner), ("outer_loss", outer), ("the gradient of inner_loss", slope)):
        refuse_not_differentiable(name, loss, partitioned.arrays, hparams)


def refuse_unlearnable(
    problem: BilevelProblem,
    judged: PartitionedModel,
    hparams: PyTree,
    trained: Callable[[PyTree], PyTree],
    differentiable: bool = True,
) -> None:
    """Raises `ValueError` naming what makes a hypergradient 0 for ever, or impossible. Nothing is computed.

    `trained` is training as a function of the hyperparameters. They have to reach the outer loss, directly or through
    weights that it reads, and where they are to be learned by derivatives (`differentiable`) by a derivative.
    """
    inexact, rest = split(judged)
    outer = lambda inexact, hparams: traced_outer_value(problem, join(inexact, rest).model, hparams, jax.random.key(0))
    by_weights = jax.make_jaxpr(lambda inexact: outer(inexact, hparams))(inexact)
    reads = any(used(by_weights.jaxpr))
    reached = lambda hparams: eqx.filter((trained(hparams) if reads else None, outer(inexact, hparams)), eqx.is_array)
    reason = UNUSED if reads else "does not enter the outer loss, which does not depend on the weights"

    def explain(*_: Any) -> None:
        if differentiable:
            explain_derivatives(problem, judged, hparams)

    @explained(explain)
    def refuse() -> None:
        if differentiable:
            refuse_flat_loss("outer_loss", by_weights)
        refuse_unused(reached, hparams, differentiable, reason)

    refuse()


def check(problem: BilevelProblem, params: PyTree, hparams: PyTree) -> tuple[PartitionedModel, PyTree]:
    """Returns `(partitioned model, hparams)`, both in the form that JAX can carry, once they fit the problem.

    **Raises** what `as_hparams` and `check_model` raise.
    """
    hparams = as_hparams(hparams)
    return check_model(problem, params, hparams), hparams


def check_model(problem: BilevelProblem, params: PyTree, hparams: PyTree) -> PartitionedModel:
    """Returns the model partitioned, once both losses accept it at these hyperparameters, by abstract evaluation.

    Warns of what would not be trained as it looks: see `ground.surprises`.

    **Raises** `TypeError` or `ValueError` naming the argument at fault, with all shapes.
    """
    for name, tree in (("params", params), ("hparams", hparams)):
        refuse_foreign(tree, name)
    for path, leaf in named_leaves(hparams, "hparams"):
        if not eqx.is_array_like(leaf):
            raise TypeError(
                f"{path} is of type {type(leaf).__name__}, which no compiled step can be given: close over it"
            )
    whole = strong_arrays(taken_over(params, "params"))
    floating = named_leaves(eqx.filter(whole, eqx.is_inexact_array), "params")
    if not floating:
        raise ValueError(f"params has no floating-point array to train: {describe(params)}")
    for path, leaf in floating:
        if not isinstance(leaf, jax.core.Tracer) and num_not_finite(leaf):
            raise ValueError(f"{path} holds values that are NaN or infinite")
    warn_of_numbers(params, "params")
    warn_if_changed(problem)
    has_state = remembered(check_losses, problem, whole, hparams)
    try:
        partitioned = PartitionedModel(whole, problem.trainable, has_state)
    except ValueError as error:
        raise ValueError(f"trainable has not the form of params: {error}") from error
    if not jax.tree.leaves(partitioned.arrays):
        raise ValueError(f"trainable leaves no floating-point array to train: {describe(params)}")
    warn_of_ties(params, partitioned.arrays, "params")
    return partitioned


def warn_if_changed(problem: BilevelProblem) -> None:
    """Warns where the losses read other numbers from outside than when the problem was made."""
    now, before = outside(problem.inner_loss, problem.outer_loss), problem.outside
    if now[:-1] == before[:-1] and now != before:
        warnings.warn(
            "problem has losses that read a number or array from outside which has changed since problem was made: "
            "compiled steps may hold the old one; make the problem anew, or hand over in the data what changes",
            UserWarning,
            stacklevel=3,
        )


def check_losses(problem: BilevelProblem, model: PyTree, hparams: PyTree) -> bool:
    """Returns whether the inner loss returns the state of layers too. **Raises** as `check_model`."""
    has_state, key = False, jax.random.key(0)
    for name, loss, data in (
        ("inner_loss", problem.inner_loss, problem.train),
        ("outer_loss", problem.outer_loss, problem.valid),
    ):
        call = partial(traced_loss, loss, problem.outside, model, hparams)
        read = lambda data, key, call=call: _arrays_of_state(call(data, key))
        try:
            value = shape_of(name, as_sampler(data).mean, read, key)
        except Exception as error:
            shapes = _shapes(model, hparams, data)
            raise ValueError(
                f"{name}(model, hparams, data, key) failed on these arguments: {error}{remedy(error)}\n{shapes}"
            ) from error
        if name == "inner_loss" and isinstance(value, tuple) and len(value) == 2:
            has_state, (value, state) = True, value
            _check_state(model, state)
        shape = getattr(value, "shape", None)
        if shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
            shapes = _shapes(model, hparams, data)
            or_state = " or (scalar, state of the layers)" if name == "inner_loss" else ""
            raise TypeError(f"{name} must return a floating scalar{or_state}, it returned {describe(value)}\n{shapes}")
    return has_state


def _shapes(model: PyTree, hparams: PyTree, data: PyTree) -> str:
    weights = eqx.filter(model, eqx.is_inexact_array)
    return f"  params:  {describe(weights)}\n  hparams: {describe(hparams)}\n  data:    {describe(data)}"


def _arrays_of_state(found: Any) -> Any:
    """Returns what an inner loss returned, of the state of layers the arrays alone."""
    pair = isinstance(found, tuple) and len(found) == 2
    return (found[0], eqx.filter(found[1], eqx.is_array)) if pair else found


def _check_state(model: PyTree, state: PyTree) -> None:
    """Raises `TypeError` where the state that the inner loss returns is not of the form of the one it was given."""
    if not (isinstance(model, tuple) and len(model) == 2):
        raise TypeError(
            f"inner_loss returned a pair, so params must be a pair (model, state of its layers), got {describe(model)} "
            "(an accuracy or the like is not returned)"
        )
    shapes = lambda part: eqx.filter(part, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    before, after = (shapes(eqx.filter_eval_shape(lambda part: part, part)) for part in (model[1], state))
    if form(before) != form(after):
        raise TypeError(
            f"inner_loss must return a state of the form of params[1]: {describe(before)} -> {describe(after)}"
        )
