"""The choice of the best step by data that neither training nor the hyperparameters have seen."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ..data.checks import check_data
from ..data.sampler import as_sampler
from ..ground.outside import ReadsOutside
from ..ground.shapes import shapes_of
from ..ground.surprises import shape_of
from ..ground.tree import describe
from ..problem import BilevelProblem, Holdout
from ..stats import Counts, Estimate
from .selection import AFTER_TRAINING


class OfModel(ReadsOutside):
    """A function of the model alone, as a loss."""

    function: Callable[[PyTree], Array]

    def __call__(self, model: PyTree, hparams: PyTree, data: PyTree, key: Array) -> Array:
        """Returns the function's value."""
        return self.function(model)


def with_holdout(problem: BilevelProblem, holdout: Any, model: PyTree, hparams: PyTree) -> BilevelProblem:
    """Returns the problem whose best step `holdout` chooses: data of the outer loss, or a function of the model.

    **Raises** `TypeError` or `ValueError` naming `holdout` where it is no data, or gives no floating scalar.
    """
    if callable(holdout):
        judge = Holdout(OfModel(holdout), ())
    else:
        judge = Holdout(problem.outer_loss, check_data(holdout, "holdout"))
        if not jax.tree.leaves(eqx.filter(judge.data, eqx.is_array)):
            raise ValueError("holdout holds no arrays; give data like valid, or a function model -> loss")
    try:
        value = shapes_of(_shape, judge, model, hparams, jax.random.key(0))
    except Exception as error:
        shapes = f"  params:  {describe(model)}\n  holdout: {describe(judge.data)}"
        raise ValueError(f"holdout does not fit: its loss fails on the model: {error}\n{shapes}") from error
    if getattr(value, "shape", None) != () or not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(f"holdout must give a floating scalar, it gave {describe(value)}")
    return eqx.tree_at(lambda p: p.holdout, problem, judge, is_leaf=lambda leaf: leaf is None)


def _shape(judge: Holdout, model: PyTree, hparams: PyTree, key: Array) -> PyTree:
    """Returns the shape of the loss. Warns where it is another function each time that JAX traces it."""
    return shape_of("holdout", loss_on_holdout, judge, model, hparams, key)


def loss_on_holdout(judge: Holdout, model: PyTree, hparams: PyTree, key: Array) -> Array:
    """Returns the loss on all rows of the holdout."""
    return as_sampler(judge.data).whole.mean(lambda data, key: judge.loss(model, hparams, data, key), key)


def on_holdout(
    problem: BilevelProblem, hparams: PyTree, estimate: Estimate, key: Array
) -> tuple[BilevelProblem, Estimate]:
    """Returns the problem and the estimate by which the best step is chosen.

    With a holdout its loss and data stand in place of the outer ones, and its value, also recorded as the diagnostic
    `holdout`, in place of the outer loss. A step without a finite outer loss is not chosen.
    """
    if problem.holdout is None:
        return problem, estimate
    loss, data = problem.holdout.loss, problem.holdout.data
    judge = eqx.tree_at(lambda p: (p.outer_loss, p.valid), problem, (loss, data))
    key = jax.random.fold_in(key, AFTER_TRAINING - 1)
    value = loss_on_holdout(problem.holdout, estimate.partitioned.model, hparams, key)
    value = jnp.where(jnp.isfinite(estimate.value), value.astype(estimate.value.dtype), jnp.inf)
    stats = estimate.stats.also(Counts(evaluations=1))
    stats = eqx.tree_at(lambda s: s.diagnostics, stats, stats.diagnostics | {"holdout": value})
    return judge, eqx.tree_at(lambda e: (e.value, e.stats), estimate, (value, stats))
