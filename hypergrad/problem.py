"""The bilevel problem: two losses, two data sets, and the checks that come before any compilation."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from .data.checks import check_data
from .data.sampler import as_sampler
from .ground.arrays import taken_over
from .ground.checks import checked, explained, function, instance
from .ground.dependence import used
from .ground.derivatives import refuse_not_differentiable
from .ground.hparams import as_floating as as_floating
from .ground.hparams import as_hparams as as_hparams
from .ground.hparams import num_not_finite as num_not_finite
from .ground.sensitivity import UNUSED, refuse_flat_loss, refuse_unused
from .ground.shapes import remembered
from .ground.surprises import warn_of_numbers, warn_of_ties, warning_of_draws
from .ground.tree import (
    PartitionedModel,
    describe,
    form,
    join,
    named_leaves,
    refuse_foreign,
    split,
    strong_arrays,
)

Loss = Callable[[PyTree, PyTree, PyTree, Array], Array]  # (model, hparams, data, key) -> scalar
Objective = Callable[[PyTree, PyTree], Array]  # (arrays, hparams) -> scalar


LOSS = "(model, hparams, data, key) -> scalar"


class Holdout(eqx.Module):
    """The loss and the data that choose the best step of a search, in place of the outer loss and its data."""

    loss: Loss
    data: PyTree


class BilevelProblem(eqx.Module):
    """The problem of minimising an outer loss over hyperparameters λ through a model trained on an inner loss.

        min_λ F(w*(λ), λ; valid)    with    w*(λ) = argmin_w L(w, λ; train)

    **Arguments**

    - `inner_loss`, `outer_loss`: functions `(model, hparams, data, key) -> scalar`, both minimised. `model` is
      the pytree or `eqx.Module` given as `params`, whole. Everything random comes from `key`.
    - `train`: the data that `inner_loss` sees, a pytree of arrays. `valid`: the data that `outer_loss` sees.
      A test set does not belong here. Either may be `Batches` of them, of which the losses see one at a time.
    - `trainable`: the arrays of `params` to train, as a tree of truth values like `params` or a prefix of it, or a
      function `leaf -> bool`, as `equinox.partition` takes. All others are kept once, not per step. By default all
      arrays of floating numbers are trained, but for the state of Equinox's layers.

    **State.** Layers such as `equinox.nn.BatchNorm` have running averages. Then `params` is a pair
    `(model, state)`, and `inner_loss` returns `(scalar, new state)`; the new state is that of the next step. The outer
    loss is given the last state and returns a scalar. Trajectory estimators differentiate through the states; implicit
    ones and the single loops take the last one as constant, see docs/training-state.md.

    **Raises** `TypeError` where a loss is not callable or data hold objects or strings, `ValueError` where an
    array is empty or holds NaN or infinity; each names the argument and the path inside it.

    **Example**

        >>> ridge = hg.BilevelProblem(penalised, mse, train=(x[:10], y[:10]), valid=(x[10:], y[10:]))
        >>> print(f"{hg.evaluate(inner, ridge, w, log_l2, key).value:.3f}")
        0.352
    """

    inner_loss: Loss
    outer_loss: Loss
    train: PyTree
    valid: PyTree
    holdout: Holdout | None  # of a run that has one
    trainable: PyTree

    @checked(function("inner_loss", LOSS), function("outer_loss", LOSS))
    def __init__(self, inner_loss: Loss, outer_loss: Loss, train: PyTree, valid: PyTree, *, trainable: PyTree = True):
        self.inner_loss, self.outer_loss, self.holdout = inner_loss, outer_loss, None
        self.train, self.valid = check_data(train, "train"), check_data(valid, "valid")
        self.trainable = trainable


PROBLEM = instance("problem", BilevelProblem, "a BilevelProblem")


def inner_objective(problem: BilevelProblem, partitioned: PartitionedModel, key: Array) -> Objective:
    """Returns the inner loss as a function `(arrays, hparams) -> scalar` of the arrays that are trained."""
    objective = inner_objective_and_state(problem, partitioned, key)
    return lambda arrays, hparams: objective(arrays, hparams)[0]


def inner_objective_and_state(
    problem: BilevelProblem, partitioned: PartitionedModel, key: Array
) -> Callable[[PyTree, PyTree], tuple[Array, PyTree]]:
    """Returns the inner loss as a function `(arrays, hparams) -> (scalar, next layer_state)`."""

    def objective(arrays: PyTree, hparams: PyTree) -> tuple[Array, PyTree]:
        model = partitioned.with_arrays(arrays).model

        def reading(data: PyTree, key: Array) -> tuple[Array, PyTree]:
            found = problem.inner_loss(model, hparams, data, key)
            if partitioned.layer_state is None:
                return found, None
            return found[0], partitioned.layer_state_of(found[1])

        return as_sampler(problem.train).mean(reading, key)

    return objective


def outer_objective(problem: BilevelProblem, partitioned: PartitionedModel, key: Array) -> Objective:
    """Returns the outer loss as a function `(arrays, hparams) -> scalar` of the arrays that are trained."""
    return lambda arrays, hparams: outer_value(problem, partitioned.with_arrays(arrays).model, hparams, key)


def outer_value(problem: BilevelProblem, model: PyTree, hparams: PyTree, key: Array) -> Array:
    """Returns the outer loss on the rows that a criterion reads: all of `valid`, or some where it is `Batches`."""
    return as_sampler(problem.valid).mean(lambda data, key: problem.outer_loss(model, hparams, data, key), key)


traced_outer_value = eqx.filter_jit(outer_value)  # never run: problems of one form are traced once


def reading_all(problem: BilevelProblem) -> BilevelProblem:
    """Returns the problem with an outer loss on all rows of `valid`."""
    sampler = as_sampler(problem.valid)
    return problem if sampler.whole is sampler else eqx.tree_at(lambda p: p.valid, problem, sampler.whole)


def at_step(problem: BilevelProblem, feed: Array | None, count: Array, key: Array) -> BilevelProblem:
    """Returns the problem with the training data of one step alone; see `AbstractSampler.batch`."""
    sampler = as_sampler(problem.train)
    return eqx.tree_at(lambda p: p.train, problem, sampler.batch(feed, count, key)) if sampler.changes else problem


def outer_value_and_grads(
    problem: BilevelProblem, hparams: PyTree, partitioned: PartitionedModel, key: Array
) -> tuple[Array, PartitionedModel, PyTree]:
    """Returns `(F, ∂F/∂model, ∂_λ F)`, the outer loss at a trained model and its derivatives.

    ∂F/∂model is a `PartitionedModel` with `None` at what carries no gradient; its `arrays` are ∇_w F.
    """
    inexact, rest = split(partitioned)
    objective = lambda inexact, hparams: outer_value(problem, join(inexact, rest).model, hparams, key)
    value, (by_model, by_hparams) = jax.value_and_grad(objective, argnums=(0, 1))(inexact, hparams)
    return value, by_model, by_hparams


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
    has_state = remembered(check_losses, problem, whole, hparams)
    try:
        partitioned = PartitionedModel(whole, problem.trainable, has_state)
    except ValueError as error:
        raise ValueError(f"trainable has not the form of params: {error}") from error
    if not jax.tree.leaves(partitioned.arrays):
        raise ValueError(f"trainable leaves no floating-point array to train: {describe(params)}")
    warn_of_ties(params, partitioned.arrays, "params")
    return partitioned


def check_losses(problem: BilevelProblem, model: PyTree, hparams: PyTree) -> bool:
    """Returns whether the inner loss returns the state of layers too. **Raises** as `check_model`."""
    has_state, key = False, jax.random.key(0)
    read = lambda data, key: _arrays_of_state(problem.inner_loss(model, hparams, data, key))
    for name, data, shape_of in (
        ("inner_loss", problem.train, lambda: eqx.filter_eval_shape(as_sampler(problem.train).mean, read, key)),
        ("outer_loss", problem.valid, lambda: eqx.filter_eval_shape(traced_outer_value, problem, model, hparams, key)),
    ):
        with warning_of_draws(name):
            try:
                value = shape_of()
            except Exception as error:
                shapes = _shapes(model, hparams, data)
                raise ValueError(
                    f"{name}(model, hparams, data, key) failed on these arguments: {error}\n{shapes}"
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
    """Returns a loss without what is no array in the state beside it."""
    pair = isinstance(found, tuple) and len(found) == 2
    return (found[0], eqx.filter(found[1], eqx.is_array)) if pair else found


def _check_state(model: PyTree, state: PyTree) -> None:
    """Raises `TypeError` where the state that the inner loss returns is not of the form of the one it was given."""
    if not (isinstance(model, tuple) and len(model) == 2):
        raise TypeError(
            f"inner_loss returned a pair, so params must be a pair (model, state of its layers), got {describe(model)}"
        )
    shapes = lambda part: eqx.filter(part, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    before, after = (shapes(eqx.filter_eval_shape(lambda part: part, part)) for part in (model[1], state))
    if form(before) != form(after):
        raise TypeError(
            f"inner_loss must return a state of the form of params[1]: {describe(before)} -> {describe(after)}"
        )
