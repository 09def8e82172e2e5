"""The choice of what reverse mode keeps: the quickest way that fits into memory."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ...ground.dependence import enters
from ...ground.tree import differentiable, without_buffers
from ...inner import InnerState
from ...training import Training
from .keeping import Forwards, keep_residuals, keep_segments, keep_states, unrolled
from .trajectory import restored
from .treeverse import keep_slots, repeats_needed

FLOPS_PER_BYTE = 200  # operations in the time of one byte kept and read again, its page of memory included


@dataclasses.dataclass(frozen=True)
class Keeping:
    """A way of keeping training for reverse mode, and its bytes.

        >>> print(hg.Reverse(inner, checkpoints="auto").plan(problem, w, log_l2))
        Keeping: 20 states of 20 in ... MB, every step computed once

    `num_states` is 0 where the residuals of every step are kept. `repeats` is the most that one step is computed before
    it is differentiated.
    """

    num_steps: int
    num_states: int
    repeats: int
    num_bytes: int
    run: Callable[..., Forwards] = dataclasses.field(repr=False)

    @property
    def diagnostics(self) -> dict[str, Array]:
        """The numbers that a step reports."""
        return {"kept_states": jnp.int32(self.num_states), "repeats": jnp.int32(self.repeats)}

    def __repr__(self) -> str:
        what = f"{self.num_states} states of {self.num_steps}" if self.num_states else "all residuals"
        times = "once" if self.repeats == 1 else f"at most {self.repeats} times"
        return f"Keeping: {what} in {self.num_bytes / 1e6:.3g} MB, every step computed {times}"


def quickest(training: Training, start: InnerState, first: int, stop: int, limit: float) -> Keeping:
    """Returns the quickest way over steps `first ... stop - 1` that keeps at most `limit` bytes.

    Residuals are quicker than states if, at `FLOPS_PER_BYTE`, writing and reading them takes less time than the step
    that they save; next come the states of √T segments, then as many states as fit.

    **Raises** `MemoryError` where not one state fits.
    """
    steps = stop - first
    read, whole = state_bytes(training, start)
    residuals = Keeping(steps, 0, 1, residual_bytes(training, start, first, stop), keep_residuals)
    states = Keeping(steps, steps, 1, steps * read, keep_states)
    count = math.isqrt(steps)
    kept = count * whole + (steps // count + steps % count) * read
    segments = Keeping(steps, count + steps // count + steps % count, 2, kept, keep_segments)
    traffic = (residuals.num_bytes - states.num_bytes) * FLOPS_PER_BYTE
    quick = [residuals, states] if traffic < steps * step_flops(training, start) else [states, residuals]
    for way in (*quick, segments):
        if way.num_bytes <= limit:
            return way
    slots = min(int(limit // max(whole, 1)), steps)
    if slots < 1:
        raise MemoryError(
            f"memory_limit is too small: one state of training takes {whole:,} bytes, and {limit:,.0f} may be used"
        )
    run = functools.partial(keep_slots, slots=slots)
    return Keeping(steps, slots, max(repeats_needed(steps, slots), 1), slots * whole, run)


def state_bytes(training: Training, start: InnerState) -> tuple[int, int]:
    """Returns the bytes of that part of a state which the derivative of a step reads, and of all that moves in it."""
    moving = without_buffers(start)
    cotangent = differentiable(moving)

    def pulled(moving: InnerState) -> PyTree:
        return training.step_vjp(restored(moving, start), jnp.int32(0))[1](cotangent)

    read = zip(jax.tree.leaves(moving), enters(pulled, moving), strict=True)
    return sum(num_bytes(leaf) for leaf, used in read if used), num_bytes(moving)


def residual_bytes(training: Training, start: InnerState, first: int, stop: int) -> int:
    """Returns the bytes of all that the derivatives of these steps read, without what is the same at every step."""
    held = lambda steps: num_bytes(jax.eval_shape(lambda: unrolled(training, start, first, first + steps)[1]))
    return (stop - first) * (held(3) - held(2))


def step_flops(training: Training, start: InnerState) -> float:
    """Returns the operations of one step as XLA counts them before it optimises."""
    arrays, static = eqx.partition((training, start), eqx.is_array)

    def step(arrays: PyTree) -> PyTree:
        training, state = eqx.combine(arrays, static)
        return eqx.filter(training.step(state, jnp.int32(0)), eqx.is_array)

    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), arrays)
    cost: Any = jax.jit(step).lower(shapes).cost_analysis()
    return float((cost or {}).get("flops", 0.0))


def num_bytes(tree: PyTree) -> int:
    """Returns the bytes of all arrays in a tree."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
