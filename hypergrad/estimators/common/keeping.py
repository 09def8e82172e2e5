"""The parts of training that reverse mode keeps: residuals of every step, every state, or where segments begin.

Each function trains through steps `first ... stop - 1` and returns the end, and the way back; see `Forwards`.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, DTypeLike, PyTree

from ...ground.tree import cast_like, in_single, join, split, without_buffers
from ...inner import InnerState
from ...inner.stops import naming_solver
from ...training import Training
from .adjoint import Adjoint, squares, sweep
from .trajectory import record, restored

# The end of training, and a function from the adjoint there to that at the start, which also returns the number of
# steps that it computed again.
Forwards = tuple[InnerState, Callable[[Adjoint], tuple[Adjoint, ArrayLike]]]


def keep_residuals(training: Training, start: InnerState, first: int, stop: int) -> Forwards:
    """Keeps all that the derivative of a step reads, so that nothing is computed again.

    What is the same at every step, as data and hyperparameters are, is kept once.
    """
    end, pullback = unrolled(training, start, first, stop)

    def replay(adjoint: Adjoint) -> tuple[Adjoint, int]:
        with naming_solver(training.inner):
            cotangent, by_hparams, sizes = pullback((adjoint.cotangent, adjoint.sizes))
        return Adjoint(cotangent, optax.tree.add(adjoint.hypergradient, by_hparams), sizes, adjoint.power), 0

    return end, replay


def unrolled(
    training: Training, start: InnerState, first: int, stop: int
) -> tuple[InnerState, Callable[[tuple[PyTree, Array]], tuple[PyTree, PyTree, Array]]]:
    """Returns the end, and the pullback of all steps, (c, sizes) -> (c at the start, hypergradient, sizes).

    c is a cotangent of the state, and `sizes` those of an `Adjoint`. The pullback is a pytree of what it reads.
    """
    inexact, rest = split(without_buffers(start))

    def unroll(inexact: PyTree, hparams: PyTree, sizes: Array) -> tuple[tuple[PyTree, Array], PyTree]:
        def body(carry: tuple[PyTree, PyTree, Array], t: Array) -> tuple[tuple[PyTree, PyTree, Array], None]:
            inexact, rest, sizes = carry
            inexact, sizes = _watched(inexact, sizes, t)
            here = training.at(cast_like(hparams, training.hparams))  # in the loop, whose sums are those of `hparams`
            new = here.step(restored(join(inexact, rest), start), t)
            return (*split(without_buffers(new)), sizes), None

        steps = jnp.arange(first, stop, dtype=jnp.int32)
        (inexact, end_rest, sizes), _ = jax.lax.scan(body, (inexact, rest, sizes), steps)
        return (inexact, sizes), end_rest

    parts = squares(inexact)
    nothing = jnp.zeros((training.inner.num_steps + 1, *parts.shape), parts.dtype)
    with naming_solver(training.inner):
        (end, _), pullback, end_rest = jax.vjp(unroll, inexact, in_single(training.hparams), nothing, has_aux=True)
    return restored(join(end, end_rest), start), pullback


@jax.custom_vjp
def _watched(state: PyTree, sizes: Array, t: Array) -> tuple[PyTree, Array]:
    """Returns the first two arguments; backwards, row t of `sizes` becomes the squares of the cotangent of `state`."""
    return state, sizes


def _watched_forwards(state: PyTree, sizes: Array, t: Array) -> tuple[tuple[PyTree, Array], Array]:
    return (state, sizes), t


def _watched_backwards(t: Array, cotangents: tuple[PyTree, Array]) -> tuple[PyTree, Array, None]:
    cotangent, sizes = cotangents
    return cotangent, sizes.at[t].set(squares(cotangent)), None


_watched.defvjp(_watched_forwards, _watched_backwards)


def keep_states(
    training: Training, start: InnerState, first: int, stop: int, storage: DTypeLike | None = None
) -> Forwards:
    """Keeps the state before every step, in the type `storage`."""
    steps = jnp.arange(first, stop, dtype=jnp.int32)
    end, states = record(training, start, steps, storage)
    return end, lambda adjoint: (sweep(training, states, steps, adjoint, start), 0)


def keep_segments(
    training: Training, start: InnerState, first: int, stop: int, storage: DTypeLike | None = None
) -> Forwards:
    """Keeps the states where √T segments begin, and on the way back those of one segment, in the type `storage`."""
    steps = jnp.arange(first, stop, dtype=jnp.int32)
    count = math.isqrt(len(steps))
    length = len(steps) // count
    head, segments = steps[: len(steps) % count], steps[len(steps) % count :].reshape(count, length)
    middle, head_states = start, start  # an empty head is not swept: a scan of no steps fails without jit
    if len(head):
        middle, head_states = record(training, start, head, storage)

    def run(state: InnerState, segment: Array) -> tuple[InnerState, InnerState]:
        return training.advance(state, segment[0], segment[0] + length), state

    end, anchors = jax.lax.scan(run, middle, segments)

    def replay(adjoint: Adjoint) -> tuple[Adjoint, int]:
        def back(adjoint: Adjoint, at: PyTree) -> tuple[Adjoint, None]:
            segment, anchor = at
            _, states = record(training, anchor, segment, storage)
            return sweep(training, states, segment, adjoint, start), None

        adjoint, _ = jax.lax.scan(back, adjoint, (segments, anchors), reverse=True)
        if len(head):
            adjoint = sweep(training, head_states, head, adjoint, start)
        return adjoint, count * length

    return end, replay
