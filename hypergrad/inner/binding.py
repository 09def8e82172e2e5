"""The jaxopt solver of an update: the options of an inner solver, bound to a problem, a model and hyperparameters."""

import inspect
from typing import TYPE_CHECKING, Any

from jaxtyping import Array, PyTree

from ..ground.tree import PartitionedModel
from ..problem import BilevelProblem, inner_objective
from .optimiser_state import options_with_value
from .proximal import bounds_of

if TYPE_CHECKING:
    from .base import AbstractInnerSolver


def bind(
    inner: "AbstractInnerSolver",
    problem: BilevelProblem,
    partitioned: PartitionedModel,
    hparams: PyTree,
    key: Array,
    *,
    differentiable: bool = True,
) -> tuple[Any, tuple[Any, ...]]:
    """Returns the jaxopt solver of these arguments, and what its methods take after their own.

    `differentiable`: its updates can be differentiated.
    """
    options, has_state = dict(inner.options), partitioned.layer_state is not None
    if has_state and "opt" not in options:
        name = inner.solver_class.__name__
        raise TypeError(f"inner_loss returns the state of layers, which {name} cannot carry: use OptaxSolver")
    if "implicit_diff" in inspect.signature(inner.solver_class).parameters:
        options["implicit_diff"] = not differentiable  # jaxopt unrolls its line search only without it
    loss = inner.objective(problem, partitioned)
    if "opt" in options:
        value = inner_objective(problem, partitioned, key)
        options |= options_with_value(options["opt"], hparams, loss, lambda arrays: value(arrays, hparams), has_state)
    constraint = () if inner.smooth else (hparams,)
    if "bounds" in options:
        constraint = (bounds_of(options, hparams),)
        del options["bounds"]
    options |= {"has_aux": True} if has_state else {}
    return inner.solver_class(loss, **options), (*constraint, hparams, key)
