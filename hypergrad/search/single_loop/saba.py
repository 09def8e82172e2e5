"""SABA: SOBA with remembered gradients in place of falling steps."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from ...data.sampler import refuse_sampler
from ...ground.checks import checked, field, integer
from ...ground.tree import named_leaves
from ...problem import PROBLEM, BilevelProblem, outer_value_and_grads
from ...stats import Counts, Status
from ..base import Record, SearchState, checked_step
from .common import AbstractLinearLoop, Found, Variables, advance, completed, inner_products, start


class Memory(eqx.Module):
    """The last term of every batch, and their mean."""

    rows: PyTree  # leading axis: batches
    mean: PyTree


class SABA(AbstractLinearLoop):
    """`SOBA` on fixed minibatches with the memory of SAGA: constant steps converge.

    With i a batch of the training data and j one of the validation data, drawn uniformly at every step, each of the
    terms g = ∇_w L, H v, (∂²L/∂w∂λ)ᵀ v on i and ∇_w F, ∂_λ F on j is replaced by

        g <- g_i - m_i + mean(m),    then    m_i <- g_i

    where m_i is the term when i was last drawn, 0 before. All are unbiased, and their noise vanishes at the solution.

    **Arguments**

    - `inner_optimiser`, `linear_optimiser`, `outer_optimiser`, `projection`: as for `SOBA`, with constant steps.
    - `num_batches`: batches of the training data. Batch i is rows i, i + num_batches, ... of every array of `train`,
      whose leading axes must be equal and divisible; arrays without axes belong to every batch. The losses are called
      on a batch and must be means over its rows.
    - `num_valid_batches`: the same for `valid`. With several, a step whose batch has a smaller loss than the best is
      evaluated on all of `valid` before it becomes the best.

    *Cost*: that of `SOBA` on a batch. Gradients and products count by the share of the data that they read: with n
    batches every n-th step completes an inner gradient. *Memory*: 2 `num_batches` + `num_valid_batches` vectors like
    the parameters, `num_batches` + `num_valid_batches` like the hyperparameters. *Bias*: as `SOBA`, without the noise
    floor. *When not to use it*: where that memory is too much; where the losses draw noise from their keys besides the
    batch, because that noise stays.

    **Raises** `ValueError` from `init` where the data cannot be cut, naming the array.

    **Source**: Dagréou, Ablin, Vaiter, Moreau (2022); Defazio, Bach, Lacoste-Julien (2014) for SAGA.

    **Example**

        >>> search = hg.SABA(optax.sgd(0.1), optax.sgd(0.1), optax.sgd(0.3), num_batches=2)
        >>> state = search.init(problem, w, log_l2)
        >>> state, history = hg.run(search, problem, state, key=key, budget=300)
        >>> print(f"{history.value[0]:.3f} -> {state.best.value:.3f}")
        2.865 -> 0.122
    """

    num_batches: int = field(integer("num_batches", least=1))
    _: dataclasses.KW_ONLY
    num_valid_batches: int = field(integer("num_valid_batches", least=1), 1)

    @checked(PROBLEM)
    def init(self, problem: BilevelProblem, params: PyTree, hparams: PyTree) -> SearchState:
        """Returns the state before the first step. Raises `ValueError` where the data cannot be cut into batches."""
        for name, data in (("train", problem.train), ("valid", problem.valid)):
            refuse_sampler(data, name, "SABA cuts its batches itself and remembers their gradients")
        _check_cut(problem.train, "train", "num_batches", self.num_batches)
        _check_cut(problem.valid, "valid", "num_valid_batches", self.num_valid_batches)
        again = int(self.num_valid_batches > 1)  # the value is that of one batch
        state = start(problem, params, hparams, self._rules.optimisers, optax.tree.zeros_like, again)
        w, h = state.inner_state.partitioned.arrays, state.hparams
        memory = _forget((w, w, h), self.num_batches), _forget((w, h), self.num_valid_batches)
        return eqx.tree_at(lambda s: s.inner_state.memory, state, memory, is_leaf=lambda leaf: leaf is None)

    @checked_step
    @eqx.filter_jit
    def step(self, problem: BilevelProblem, state: SearchState, key: Array) -> tuple[SearchState, Record]:
        """Moves everything once, on one batch of each data set."""
        loop, hparams = state.inner_state, state.hparams
        i_key, j_key, inner_key, outer_key = jax.random.split(key, 4)
        i = jax.random.randint(i_key, (), 0, self.num_batches)
        j = jax.random.randint(j_key, (), 0, self.num_valid_batches)
        cut = _batch(problem.train, i, self.num_batches), _batch(problem.valid, j, self.num_valid_batches)
        batch = eqx.tree_at(lambda p: (p.train, p.valid), problem, cut)
        keys = inner_key, inner_key
        inner_terms, layer_state = inner_products(batch, hparams, loop.partitioned, loop.auxiliary, *keys)
        value, by_model, direct = outer_value_and_grads(batch, hparams, loop.partitioned, outer_key)
        outer_terms = by_model.arrays, direct
        inner_memory, outer_memory = loop.memory
        gradient, hvp, mixed = _corrected(inner_memory, i, inner_terms)
        by_weights, direct = _corrected(outer_memory, j, outer_terms)
        directions = Variables(gradient, optax.tree.sub(hvp, by_weights), optax.tree.sub(direct, mixed))
        counts = self._counts(state.num_steps)
        state, record = advance(problem, state, key, self._rules, Found(directions, value, counts, layer_state))
        usable = (record.stats.status & Status.NONFINITE) == 0
        memory = (
            _remember(inner_memory, i, inner_terms, usable),
            _remember(outer_memory, j, outer_terms, usable),
        )
        return eqx.tree_at(lambda s: s.inner_state.memory, state, memory), record

    def _counts(self, k: Array) -> Counts:
        return Counts(
            iterations=1,
            inner_gradients=completed(1, self.num_batches, k),
            hvps=completed(2, self.num_batches, k),
            outer_gradients=completed(1, self.num_valid_batches, k),
        )


def _check_cut(data: PyTree, name: str, option: str, number: int) -> None:
    rows = {path: len(leaf) for path, leaf in named_leaves(data, name) if _has_rows(leaf)}
    if len(set(rows.values())) != 1:
        raise ValueError(f"all arrays of {name} must have the same leading axis to be cut into batches, got {rows}")
    for path, size in rows.items():
        if size % number:
            raise ValueError(f"{option} is {number}, which does not divide the {size} rows of {path}")


def _has_rows(leaf: PyTree) -> bool:
    return eqx.is_array(leaf) and leaf.ndim > 0


def _batch(data: PyTree, i: Array, number: int) -> PyTree:
    # Strided, so that data sorted by class give balanced batches.
    cut = lambda leaf: leaf.reshape(-1, number, *leaf.shape[1:])[:, i]
    return jax.tree.map(lambda leaf: cut(leaf) if _has_rows(leaf) else leaf, data)


def _forget(like: PyTree, number: int) -> Memory:
    rows = jax.tree.map(lambda leaf: jnp.zeros((number, *leaf.shape), leaf.dtype), like)
    return Memory(rows, optax.tree.zeros_like(like))


def _corrected(memory: Memory, i: Array, terms: PyTree) -> PyTree:
    return jax.tree.map(lambda new, rows, mean: new - rows[i] + mean, terms, memory.rows, memory.mean)


def _remember(memory: Memory, i: Array, terms: PyTree, usable: Array) -> Memory:
    """Returns the memory with one row replaced; as a whole it is never copied."""
    terms = jax.tree.map(lambda new, rows: jnp.where(usable, new, rows[i]), terms, memory.rows)
    mean = jax.tree.map(lambda mean, new, rows: mean + (new - rows[i]) / len(rows), memory.mean, terms, memory.rows)
    return Memory(jax.tree.map(lambda rows, new: rows.at[i].set(new), memory.rows, terms), mean)
