"""The sum of one-step hypergradients over training, in place where each step reads few rows of an array."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ...inner import InnerState
from ...training import Training, cotangent_of
from .adjoint import through_state
from .rows import ByRows, read_by_rows, step_vjp

SMALLEST = 1e-6  # to which the common factor of a sum may fall
WORTH = 8  # steps in which it falls there: with less, all rows are multiplied too often


def steps_in_place(decay: float | Array, steps: int) -> int:
    """Returns in how many steps, `steps` at most, their product of decays stays above `SMALLEST`; 0 if unknown."""
    if not isinstance(decay, int | float) or decay <= 0:
        return 0
    return steps if decay == 1 else min(steps, int(math.log(SMALLEST) / math.log(decay)))


def rows_in_trail(training: Training, start: InnerState, decay: float | Array, steps: int) -> ByRows | None:
    """Returns what is read by rows of the leaves for which `trail_by_rows` is quicker, `None` where there is nothing.

    Not those of half precision: divided by the common factor, float16 leaves its range.
    """
    if steps_in_place(decay, steps) < min(WORTH, steps) or steps < 1 or not (found := read_by_rows(training, start)):
        return None
    leaves = jax.tree.leaves(training.hparams)
    numbers = frozenset(n for n in found.numbers if jnp.finfo(leaves[n].dtype).bits >= 32)
    return found._replace(numbers=numbers) if numbers else None


def trail_by_rows(
    training: Training, start: InnerState, decay: float, steps: int, by_rows: ByRows
) -> tuple[InnerState, PyTree]:
    """Returns the state after `steps` steps, and Σ_t decay^{steps-1-t} B_tᵀ ∇_w F(w_{t+1}).

    Of leaves `by_rows` a step adds what belongs to the rows that it read, divided by a common factor decay^t. All rows
    are multiplied by the factor before it is so small that numbers could leave their range.
    """
    leaves, structure = jax.tree.flatten(training.hparams)
    length = steps_in_place(decay, steps)

    def ahead(t: Array, carry: tuple[InnerState, list[Array], Array]) -> tuple[InnerState, list[Array], Array]:
        state, trail, factor = carry
        new, pullback = step_vjp(training, state, t, by_rows)
        _, by_model, _ = training.outer_value_and_grads(new)
        by_state, dense, changes = pullback(cotangent_of(new, by_model))
        more = jax.tree.leaves(through_state(training, state, by_state))
        decayed = [
            total if found is None else found + other + decay * total
            for total, found, other in zip(trail, dense, more, strict=True)
        ]
        factor = decay * factor
        for change in changes:
            decayed[change.number] = change.added_to(decayed[change.number], (1 / factor).astype(change.values.dtype))
        return new, decayed, factor

    def stretch(number: Array, carry: tuple[InnerState, list[Array]]) -> tuple[InnerState, list[Array]]:
        first = number * length
        begin = (*carry, jnp.ones((), jnp.result_type(float)))
        state, trail, factor = jax.lax.fori_loop(first, jnp.minimum(first + length, steps), ahead, begin)
        scaled = lambda n, total: (factor * total).astype(total.dtype) if n in by_rows.numbers else total
        return state, [scaled(n, total) for n, total in enumerate(trail)]

    nothing = [jnp.zeros_like(leaf) for leaf in leaves]
    state, trail = jax.lax.fori_loop(0, -(-steps // length), stretch, (start, nothing))
    return state, jax.tree.unflatten(structure, trail)
