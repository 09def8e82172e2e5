"""What the single-loop searches share: model, auxiliary variable and hyperparameters move at once, one step each."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import optax
from jaxtyping import Array, PyTree

from ...estimators.common.refusals import refuse_complex
from ...ground.tree import PartitionedModel, all_finite, norm
from ...problem import BilevelProblem, check, inner_objective, outer_objective, refuse_unused
from ...stats import Counts, Estimate, Stats, Status, flag
from ..base import AbstractSearch, Record, SearchState, better, first_state


class Variables(NamedTuple):
    """One of each thing that moves: their values, directions, optimisers or optimiser states."""

    params: Any
    auxiliary: Any  # like the params: v in SOBA and SABA, y in F2SA
    hparams: Any


class LoopState(eqx.Module):
    """The inner variables, the states of their optimisers, and what a method remembers of earlier steps."""

    partitioned: PartitionedModel
    auxiliary: PyTree
    optimisers: tuple[PyTree, PyTree]
    memory: PyTree = None

    @property
    def params(self) -> PyTree:
        """The model, whole."""
        return self.partitioned.model


def check_optimisers(search: AbstractSearch, *names: str) -> None:
    """**Raises** `TypeError` naming the field that is no optax optimiser."""
    for name in names:
        if not isinstance(optimiser := getattr(search, name), optax.GradientTransformation):
            raise TypeError(f"{name} must be an optax optimiser such as optax.sgd(0.1), got {optimiser!r}")


def start(
    problem: BilevelProblem,
    params: PyTree,
    hparams: PyTree,
    optimisers: Variables,
    auxiliary: Callable[[PyTree], PyTree],
) -> SearchState:
    """The state before the first step; `auxiliary` makes its variable from the parameters."""
    partitioned, hparams = check(problem, params, hparams)
    _refuse(problem, partitioned, hparams)
    second = auxiliary(partitioned.arrays)
    states = optimisers.params.init(partitioned.arrays), optimisers.auxiliary.init(second)
    opt_state = optimisers.hparams.init(hparams)
    return first_state(problem, hparams, LoopState(partitioned, second, states), opt_state)


def _refuse(problem: BilevelProblem, partitioned: PartitionedModel, hparams: PyTree) -> None:
    """Raises for hyperparameters that neither loss knows, and for complex weights, which have another linear system."""
    refuse_complex(partitioned.arrays, "the linear system is moved as if it were real")
    inner, outer = (make(problem, partitioned, jax.random.key(0)) for make in (inner_objective, outer_objective))
    arrays = partitioned.arrays
    refuse_unused(lambda hparams: (jax.grad(inner)(arrays, hparams), outer(arrays, hparams)), hparams)


def move(
    state: SearchState,
    directions: Variables,
    optimisers: Variables,
    projection: Callable[[PyTree], PyTree],
    value: Array,
    counts: Counts,
) -> tuple[SearchState, Record]:
    """All variables one step against their directions, or none of them where anything is not finite."""
    loop = state.inner_state
    before = Variables(loop.partitioned.arrays, loop.auxiliary, state.hparams)
    states = Variables._make((*loop.optimisers, state.opt_state))
    moved = [_descend(*one, value) for one in zip(optimisers, directions, states, before, strict=True)]
    after = Variables._make(variable for variable, _ in moved)
    after_states = Variables._make(optimiser_state for _, optimiser_state in moved)
    after = after._replace(hparams=projection(after.hparams))
    usable = all_finite((value, directions, after))
    after, states = optax.tree.where(usable, (after, after_states), (before, states))
    counts = counts + Counts(hyper_updates=usable)
    diagnostics = {"inner_gradient_norm": norm(directions.params)}
    stats = Stats(counts, flag(~usable, Status.NONFINITE), diagnostics=diagnostics)
    estimate = Estimate(directions.hparams, value, loop.params, stats)
    return SearchState(
        hparams=after.hparams,
        best=better(state.best, state.hparams, estimate),
        inner_state=LoopState(loop.partitioned.with_arrays(after.params), after.auxiliary, states[:2], loop.memory),
        opt_state=states.hparams,
        num_steps=state.num_steps + 1,
        spent=state.spent + counts,
    ), Record(state.hparams, value, estimate.stats)


def _descend(optimiser, direction, optimiser_state, variable, value):
    update = optax.with_extra_args_support(optimiser).update
    updates, optimiser_state = update(direction, optimiser_state, variable, value=value)
    return optax.apply_updates(variable, updates), optimiser_state


def inner_gradients(
    problem: BilevelProblem, hparams: PyTree, partitioned: PartitionedModel, key: Array
) -> tuple[PyTree, PyTree]:
    """`(∇_w L, ∂_λ L)`."""
    return jax.grad(inner_objective(problem, partitioned, key), argnums=(0, 1))(partitioned.arrays, hparams)


def inner_products(
    problem: BilevelProblem, hparams: PyTree, partitioned: PartitionedModel, v: PyTree, key: Array, mixed_key: Array
) -> tuple[PyTree, PyTree, PyTree]:
    """`(∇_w L, H v)` of the loss drawn with `key`, and `(∂²L/∂w∂λ)ᵀ v` of the one drawn with `mixed_key`."""
    inner, other = (inner_objective(problem, partitioned, one) for one in (key, mixed_key))
    gradient, hvp = jax.jvp(lambda params: jax.grad(inner)(params, hparams), (partitioned.arrays,), (v,))

    def slope(hparams):
        return jax.jvp(lambda params: other(params, hparams), (partitioned.arrays,), (v,))[1]

    return gradient, hvp, jax.grad(slope)(hparams)
