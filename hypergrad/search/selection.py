"""The choice of the best step, also where the outer loss is random."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from ..ground.dependence import enters
from ..ground.shapes import remembered, shapes_of
from ..ground.show import paragraph, show, show_size
from ..ground.tree import PartitionedModel, partition
from ..problem import BilevelProblem, Loss, outer_value, reading_all, traced_outer_value
from ..stats import Counts, Estimate

NUM_DRAWS = 32  # evaluations of a random outer loss before a step becomes the best, and again afterwards; a power of 2
AFTER_TRAINING = 2**31 - 1  # folded into the key of a step for what comes after it


class Best(eqx.Module):
    """The best step so far: its hyperparameters, the model that was trained with them, and their outer loss.

    - `value`: the outer loss of `params` at `hparams`, infinity before the first finite one. Where the outer loss uses
      its key it is the mean over `num_evaluations` keys that had no part in the choice. In a run with a holdout it is
      the loss there.
    - `error`: the standard error of `value`, 0 where the outer loss uses no key.
    - `draws`: the outer losses for the keys under which all candidates are compared, of shape (0,) where it uses none.
    """

    hparams: PyTree
    value: Array
    partitioned: PartitionedModel
    error: Array
    draws: Array

    @property
    def params(self) -> PyTree:
        """The trained model, whole."""
        return self.partitioned.model

    @property
    def num_evaluations(self) -> int:
        """The number of outer losses that `value` is the mean of."""
        return max(self.draws.shape[-1], 1)

    def __repr__(self) -> str:
        """Shows value, hyperparameters, and the size of the model."""
        return paragraph(f"Best: {self.line()}", (f"params: {show_size(self.partitioned)}",))

    def line(self) -> str:
        """Returns the value with its error and where it was measured, as a text."""
        error = f" ± {show(self.error)} ({self.num_evaluations} evaluations)" if self.num_evaluations > 1 else ""
        return f"value {show(self.value)}{error} at {show(self.hparams)}"


def nothing_yet(problem: BilevelProblem, model: PyTree, hparams: PyTree, num_draws: int) -> Best:
    """Returns the `Best` of no steps; `num_draws` as in `draws_needed`."""
    value = shapes_of(traced_outer_value, problem, model, hparams, jax.random.key(0))
    infinity = jnp.full_like(value, jnp.inf)
    return Best(hparams, infinity, partition(model), jnp.zeros_like(infinity), jnp.full(num_draws, infinity))


def draws_needed(problem: BilevelProblem, model: PyTree, hparams: PyTree) -> int:
    """Returns `NUM_DRAWS` if the outer loss on all rows depends on its key, which its jaxpr tells.

    Else 1 if the criterion of a step reads some rows alone, and 0 if it reads all.
    """
    all_rows = reading_all(problem)
    return NUM_DRAWS if remembered(_is_random, all_rows, model, hparams) else int(all_rows is not problem)


def _is_random(problem: BilevelProblem, model: PyTree, hparams: PyTree) -> bool:
    loss = lambda key: traced_outer_value(problem, model, hparams, key)
    return any(enters(loss, jax.random.key(0)))


class MeanOverKeys(eqx.Module):
    """A random loss as the mean of its values under the fixed keys."""

    loss: Loss

    def __call__(self, model: PyTree, hparams: PyTree, data: PyTree, key: Array) -> Array:
        """Returns the mean; `key` is not used."""
        keys = jax.vmap(_fixed_key)(jnp.arange(NUM_DRAWS))
        return jnp.mean(jax.vmap(lambda key: self.loss(model, hparams, data, key))(keys))


def averaged(problem: BilevelProblem, best: Best) -> BilevelProblem:
    """Returns the problem with an outer loss on all rows that is not random: its mean over the fixed keys."""
    problem = reading_all(problem)
    if best.num_evaluations == 1:
        return problem
    return eqx.tree_at(lambda p: p.outer_loss, problem, MeanOverKeys(problem.outer_loss))


def better(
    best: Best, problem: BilevelProblem, hparams: PyTree, estimate: Estimate, key: Array, affordable: Any
) -> tuple[Best, Counts, Array]:
    """Returns the better of two by outer loss, the evaluations spent, and whether the new one is better.

    A value that is not finite never wins.

    The smallest of many random values is no value of anything. Where the outer loss is random, a step whose value lies
    below the mean of the best only nominates its model. The model is then evaluated under the keys that the best was
    evaluated under, one after the other, and given up as soon as its first 1, 2, 4, ... do not lie below those of the
    best together. If it comes through all of them it is the best, and its value is the mean over fresh keys.

    Where the outer loss is not random but reads some rows of `valid`, one evaluation is on all of them.

    Where `affordable` is false a nomination is passed over.

    **Source**: successive halving of the field, after Jamieson and Talwalkar (2016), with one candidate at a time.
    """
    finite = jnp.isfinite(estimate.value)
    if not best.draws.shape[-1]:
        won = Best(hparams, estimate.value, estimate.partitioned, best.error, best.draws)
        wins = finite & (estimate.value < best.value)
        return optax.tree.where(wins, won, best), Counts(), wins
    all_rows = reading_all(problem)
    evaluate = lambda key: outer_value(all_rows, estimate.partitioned.model, hparams, key)
    nominated = finite & (estimate.value < jnp.mean(best.draws)) & affordable
    draws, number, wins = _race(evaluate, best.draws, nominated)
    value, error = jnp.mean(draws), jnp.zeros_like(best.error)
    if (total := len(draws)) > 1:
        repeats = jnp.where(wins, total, 0)
        fresh = _evaluations(evaluate, jax.random.fold_in(key, AFTER_TRAINING), draws, repeats)
        value, error, number = jnp.mean(fresh), jnp.std(fresh, ddof=1) / total**0.5, number + repeats
    won = Best(hparams, value, estimate.partitioned, error, draws)
    wins &= jnp.isfinite(value)
    return optax.tree.where(wins, won, best), Counts(evaluations=number), wins


def _race(evaluate: Callable[[Array], Array], rival: Array, nominated: Array) -> tuple[Array, Array, Array]:
    """Returns the values under the fixed keys, how many were evaluated, and whether all together beat the rival's."""
    total = len(rival)

    def unfinished(carry: tuple[Array, Array, Array]) -> Array:
        index, gain, _ = carry
        due = (index > 0) & (index & (index - 1) == 0)
        return nominated & (index < total) & (~due | (gain < 0))

    def body(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        index, gain, values = carry
        value = evaluate(_fixed_key(index)).astype(values.dtype)
        return index + 1, gain + (value - rival[index]), values.at[index].set(value)

    index, gain, values = jax.lax.while_loop(
        unfinished, body, (jnp.zeros((), jnp.int32), jnp.zeros_like(rival[0]), jnp.zeros_like(rival))
    )
    return values, index, (index == total) & (gain < 0) & jnp.isfinite(jnp.sum(values))


def _fixed_key(index: Array) -> Array:
    """Returns the key under which all candidates are evaluated at one index."""
    return jax.random.fold_in(jax.random.key(1), index)


def _evaluations(evaluate: Callable[[Array], Array], key: Array, like: Array, number: Array) -> Array:
    """Returns the values under the first `number` keys folded from `key`, and those of `like` at the others."""

    def body(index: Array, values: Array) -> Array:
        return values.at[index].set(evaluate(jax.random.fold_in(key, index)).astype(values.dtype))

    return jax.lax.fori_loop(0, number, body, like)
