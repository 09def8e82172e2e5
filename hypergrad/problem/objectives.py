"""The losses of a problem as functions of arrays, on the data that training, a solve or a criterion reads."""

from collections.abc import Callable

import equinox as eqx
import jax
from jaxtyping import Array, PyTree

from ..data.sampler import as_sampler
from ..ground.tree import PartitionedModel, join, split
from .base import BilevelProblem, Loss

Objective = Callable[[PyTree, PyTree], Array]  # (arrays, hparams) -> scalar


@eqx.filter_jit
def traced_loss(
    loss: Loss, outside: tuple[int | str, ...], model: PyTree, hparams: PyTree, data: PyTree, key: Array
) -> PyTree:
    """Returns what a loss does; its Python code runs once for arguments of one form, whatever is derived from it.

    `outside` is that of its problem: where a loss reads other numbers from outside, its code runs again.
    """
    return loss(model, hparams, data, key)


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
            found = traced_loss(problem.inner_loss, problem.outside, model, hparams, data, key)
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
    return as_sampler(problem.valid).mean(
        lambda data, key: traced_loss(problem.outer_loss, problem.outside, model, hparams, data, key), key
    )


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
