"""The common part of the single-loop searches: model, auxiliary variable and hyperparameters move at once."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import optax
from jaxtyping import Array, PyTree

from ...data.sampler import as_sampler
from ...estimators.common.refusals import refuse_complex
from ...ground.checks import field, optimiser
from ...ground.derivatives import jvp, linearize
from ...ground.shapes import remembered
from ...ground.tree import PartitionedModel, all_finite
from ...ground.units import norm
from ...inner.stops import warn_of_stopped_loss, warn_of_stopped_outer
from ...problem import (
    BilevelProblem,
    at_step,
    check,
    inner_objective,
    inner_objective_and_state,
    refuse_unlearnable,
)
from ...stats import Counts, Estimate, Stats, Status, flag
from ..base import PROJECTION, AbstractSearch, Record, SearchState, conclude, first_state
from ..gradient import identity
from ..retreat import Outcome, move


class Variables(NamedTuple):
    """Values, directions or optimisers of the three variables that move."""

    weights: Any
    auxiliary: Any  # like the weights: v in SOBA and SABA, y in F2SA
    hparams: Any


class Rules(NamedTuple):
    """The optimisers of all variables, and the projection of the hyperparameters."""

    optimisers: Variables
    projection: Callable[[PyTree], PyTree]


class Found(NamedTuple):
    """The directions to descend along, the outer loss as drawn, and the work of one step."""

    directions: Variables
    value: Array
    counts: Counts
    layer_state: PyTree  # as the inner loss returned it


class LoopState(eqx.Module):
    """The inner variables, the states of their optimisers, and the memory of a method of its earlier steps."""

    partitioned: PartitionedModel
    auxiliary: PyTree
    optimisers: tuple[PyTree, PyTree]
    memory: PyTree = None
    feed: Array | None = None

    @property
    def params(self) -> PyTree:
        """The model, whole."""
        return self.partitioned.model


class AbstractSingleLoop(AbstractSearch):
    """A search whose step is a training step."""

    @property
    def num_inner_steps(self) -> int:
        """One: a step of the search is a training step."""
        return 1


class AbstractLinearLoop(AbstractSingleLoop):
    """A single loop over weights, the solution of a linear system, and hyperparameters."""

    inner_optimiser: optax.GradientTransformation = field(optimiser("inner_optimiser"))
    linear_optimiser: optax.GradientTransformation = field(optimiser("linear_optimiser"))
    outer_optimiser: optax.GradientTransformation = field(optimiser("outer_optimiser"))
    _: dataclasses.KW_ONLY
    projection: Callable[[PyTree], PyTree] = field(PROJECTION, identity)

    @property
    def _rules(self) -> Rules:
        return Rules(Variables(self.inner_optimiser, self.linear_optimiser, self.outer_optimiser), self.projection)


def start(
    problem: BilevelProblem,
    params: PyTree,
    hparams: PyTree,
    optimisers: Variables,
    auxiliary: Callable[[PyTree], PyTree],
    least_draws: int = 0,
) -> SearchState:
    """Returns the state before the first step; `auxiliary` makes its variable from the weights."""
    partitioned, hparams = check(problem, params, hparams)
    remembered(_refuse, problem, partitioned, hparams)
    warn_of_stopped_loss(problem, partitioned, hparams)
    warn_of_stopped_outer(problem, partitioned, hparams)
    second = auxiliary(partitioned.arrays)
    states = optimisers.weights.init(partitioned.arrays), optimisers.auxiliary.init(second)
    opt_state = optimisers.hparams.init(hparams)
    loop = LoopState(partitioned, second, states, feed=as_sampler(problem.train).first_feed())
    return first_state(problem, hparams, loop, opt_state, retreats=True, least_draws=least_draws)


def _refuse(problem: BilevelProblem, partitioned: PartitionedModel, hparams: PyTree) -> None:
    """Raises for what cannot be learned, and for complex weights, which have another linear system."""
    refuse_complex(partitioned.arrays, "the linear system is moved as if it were real")
    inner = inner_objective(problem, partitioned, jax.random.key(0))
    refuse_unlearnable(problem, partitioned, hparams, lambda hparams: jax.grad(inner)(partitioned.arrays, hparams))


def advance(
    problem: BilevelProblem, state: SearchState, key: Array, rules: Rules, found: Found
) -> tuple[SearchState, Record]:
    """Returns the state and the record after one step of all variables against their directions.

    Where anything is not finite, w and the auxiliary variable stay, and λ turns back; see `retreat.move`.
    """
    loop, directions, optimisers = state.inner_state, found.directions, rules.optimisers
    before = loop.partitioned.arrays, loop.auxiliary, loop.optimisers
    arrays, w_state = _descend(optimisers.weights, directions.weights, loop.optimisers[0], before[0], found.value)
    auxiliary, v_state = _descend(
        optimisers.auxiliary, directions.auxiliary, loop.optimisers[1], before[1], found.value
    )
    usable = all_finite((found.value, directions, arrays, auxiliary))
    moved, taken = move(
        optimisers.hparams, rules.projection, state, Outcome(directions.hparams, found.value, usable, {})
    )
    arrays, auxiliary, states = optax.tree.where(taken, (arrays, auxiliary, (w_state, v_state)), before)
    stats = Stats(
        found.counts + Counts(hyper_updates=taken),
        flag(~taken, Status.NONFINITE),
        diagnostics={"inner_gradient_norm": norm(directions.weights)},
    )
    estimate = Estimate(directions.hparams, found.value, loop.partitioned, stats)
    layer_state = optax.tree.where(taken, found.layer_state, loop.partitioned.layer_state)
    loop = LoopState(loop.partitioned.moved(arrays, layer_state), auxiliary, states, loop.memory, loop.feed)
    return conclude(problem, dataclasses.replace(moved, inner_state=loop), estimate, key, state.hparams)


def with_batch(problem: BilevelProblem, state: SearchState, key: Array) -> tuple[BilevelProblem, SearchState]:
    """Returns the problem with the training data of this step, and the state that remembers how they are read."""
    loop, count = state.inner_state, state.num_steps
    feed = as_sampler(problem.train).begin(loop.feed, key, count)
    state = dataclasses.replace(state, inner_state=dataclasses.replace(loop, feed=feed))
    return at_step(problem, feed, count, key), state


def completed(calls: int, num_batches: int, k: Array) -> Array:
    """Returns how many gradients of all rows are completed by `calls` gradients of one batch at step k = 0, 1, ...

        ⌊calls (k + 1)/n⌋ - ⌊calls k/n⌋,    n = `num_batches`

    The sum over steps is the share of the data that was read, rounded down.
    """
    index = k % num_batches
    return (calls * (index + 1)) // num_batches - (calls * index) // num_batches


def _descend(
    optimiser: Any, direction: PyTree, optimiser_state: PyTree, variable: PyTree, value: Array
) -> tuple[PyTree, PyTree]:
    update = optax.with_extra_args_support(optimiser).update
    updates, optimiser_state = update(direction, optimiser_state, variable, value=value)
    return optax.apply_updates(variable, updates), optimiser_state


def inner_gradients(
    problem: BilevelProblem, hparams: PyTree, partitioned: PartitionedModel, key: Array
) -> tuple[tuple[PyTree, PyTree], PyTree]:
    """Returns `(∇_w L, ∂_λ L)` and the next state of the layers."""
    inner = inner_objective_and_state(problem, partitioned, key)
    return jax.grad(inner, argnums=(0, 1), has_aux=True)(partitioned.arrays, hparams)


def inner_products(
    problem: BilevelProblem, hparams: PyTree, partitioned: PartitionedModel, v: PyTree, key: Array, mixed_key: Array
) -> tuple[tuple[PyTree, PyTree, PyTree], PyTree]:
    """Returns `(∇_w L, H v, (∂²L/∂w∂λ)ᵀ v)` and the next state of the layers.

    The last product is of the loss drawn with `mixed_key`, the others of the one drawn with `key`.
    """
    inner = jax.grad(inner_objective_and_state(problem, partitioned, key), has_aux=True)
    other = inner_objective(problem, partitioned, mixed_key)
    at_hparams = lambda arrays: inner(arrays, hparams)
    gradient, product, layer_state = linearize(at_hparams, partitioned.arrays, has_aux=True)
    slope = lambda hparams: jvp(lambda arrays: other(arrays, hparams), partitioned.arrays, v)
    return (gradient, product(v), jax.grad(slope)(hparams)), layer_state
