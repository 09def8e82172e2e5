"""Binomial checkpoints: reverse mode over a long training in the memory of a few states."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ...ground.tree import without_buffers
from ...inner import InnerState
from ...training import Training
from .adjoint import Adjoint, step_back
from .keeping import Forwards
from .trajectory import restored


def repeats_needed(steps: int, slots: int) -> int:
    """Returns the fewest r with C(s + r, s) ≥ `steps`, s = `slots`: so often is a step computed at most."""
    return next(r for r in range(steps) if math.comb(slots + r, slots) >= steps)


def slots_needed(steps: int, repeats: int) -> int:
    """Returns the fewest s with C(s + r, s) ≥ `steps`, r = `repeats`."""
    return next(s for s in range(1, steps + 1) if math.comb(s + repeats, s) >= steps)


class Stack(eqx.Module):
    """States kept for later: from each the training goes on, once more and again, up to the next.

    `repeats` bounds how often the steps after each are still computed; `top` is the index of the last.
    """

    states: InnerState  # stacked, without what no step changes
    positions: Array  # the step that follows each
    repeats: Array
    top: Array

    @classmethod
    def at(cls, state: InnerState, position: int, slots: int, repeats: int) -> "Stack":
        """Returns the stack of one state, with room for `slots` of them."""
        room = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (slots, *leaf.shape)), without_buffers(state))
        fill = lambda number: jnp.full(slots, number, jnp.int32)
        return cls(room, fill(position), fill(repeats), jnp.zeros((), jnp.int32))

    @property
    def num_free(self) -> Array:
        """Number of further states that there is room for."""
        return len(self.positions) - 1 - self.top

    def get(self, like: InnerState) -> tuple[InnerState, Array]:
        """Returns the last state, and the step that follows it."""
        take = lambda room: jax.lax.dynamic_index_in_dim(room, self.top, keepdims=False)
        return restored(jax.tree.map(take, self.states), like), self.positions[self.top]

    def split(self, t: Array, last: Array) -> Array:
        """Returns the step before which to keep the next state, of those from t to `last`.

        With s slots and r repetitions left, r / (s + r) of the steps lie before it: they have s and r - 1, those after
        it s - 1 and r, and C(s + r, s) = C(s + r - 1, s) + C(s + r - 1, s - 1). Without room it is `last`.
        """
        length, repeats = last + 1 - t, self.repeats[self.top]
        whole = self.num_free + 1 + repeats
        before = length // whole * repeats + length % whole * repeats // whole  # the product could overflow
        return jnp.where(self.num_free > 0, t + jnp.maximum(before, 1), last)

    def push(self, state: InnerState, t: Array) -> "Stack":
        """Returns the stack with one more state; without room, the same."""
        last = len(self.positions) - 1
        index, has_room = jnp.minimum(self.top + 1, last), self.top < last

        def put(room: Array, leaf: Array) -> Array:
            kept = jax.lax.dynamic_index_in_dim(room, index, keepdims=False)
            return jax.lax.dynamic_update_index_in_dim(room, jnp.where(has_room, leaf, kept), index, 0)

        states = jax.tree.map(put, self.states, without_buffers(state))
        positions, repeats = put(self.positions, t), put(self.repeats, self.repeats[self.top])
        repeats = repeats.at[self.top].add(jnp.where(has_room, -1, 0))
        return Stack(states, positions, repeats, index)

    def pop(self, t: Array) -> "Stack":
        """Returns the stack without its last state if step t follows it."""
        top = self.top - (self.positions[self.top] == t)
        return eqx.tree_at(lambda stack: stack.top, self, jnp.maximum(top, 0))


def keep_slots(training: Training, start: InnerState, first: int, stop: int, slots: int) -> Forwards:
    """Keeps at most `slots` states at once, and computes every step at most `repeats_needed` times, the first included.

    **Source**: Griewank (1992), treeverse; Griewank and Walther (2000), Algorithm 799, for its bounds.
    """
    slots = min(slots, stop - first)
    stack = Stack.at(start, first, slots, repeats_needed(stop - first, slots))
    stack, last, _ = _descend(training, start, stack, jnp.int32(stop - 1))
    end = training.step(last, stop - 1)

    def replay(adjoint: Adjoint) -> tuple[Adjoint, Array]:
        def back(i: Array, carry: PyTree) -> PyTree:
            stack, state, adjoint, again = carry
            t = stop - 1 - i
            adjoint, stack = step_back(training, state, t, adjoint), stack.pop(t)
            stack, state, number = _descend(training, start, stack, t - 1)
            return stack, state, adjoint, again + number

        carry = (stack, last, adjoint, jnp.zeros((), jnp.int32))
        _, _, adjoint, again = jax.lax.fori_loop(0, stop - first, back, carry)
        return adjoint, again

    return end, replay


def _descend(training: Training, like: InnerState, stack: Stack, last: Array) -> tuple[Stack, InnerState, Array]:
    """Trains from the last state of the stack up to step `last`, and keeps states on the way.

    Returns the stack, the state before that step, and the number of steps computed.
    """
    state, t = stack.get(like)

    def deeper(carry: PyTree) -> PyTree:
        stack, state, t, number = carry
        middle = stack.split(t, last)
        state = training.advance(state, t, middle)
        return stack.push(state, middle), state, middle, number + (middle - t)

    start = (stack, state, t, jnp.zeros((), jnp.int32))
    stack, state, _, number = jax.lax.while_loop(lambda carry: carry[2] < last, deeper, start)
    return stack, state, number
