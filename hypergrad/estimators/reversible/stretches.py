"""The way of training forwards and back again, stretch by stretch, with as much kept on the way as is asked for."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ..common.adjoint import Adjoint
from .motion import ExactMotion, FloatMotion, Position

# The end of training, and a function from it and the adjoint there to the adjoint at the start and the largest error.
There = tuple[Position, Callable[[Position, Adjoint], tuple[Adjoint, Array]]]


def grouped(total: int, length: int) -> int:
    """Returns how many of `total` steps lie in the √n groups of equally many of the n stretches of `length` steps."""
    stretches = total // length
    count = math.isqrt(stretches)
    return count * (stretches // count) * length if count > 1 else 0


def there_and_back(motion: FloatMotion | ExactMotion, total: int, length: int, in_groups: int) -> There:
    """Walks over `total` steps in stretches of `length` steps; the first one may be shorter.

    What each stretch has to keep for the way back is kept on the way there, but for the last `in_groups` steps. Of
    these the position is kept where each of √n groups begins, and a group is walked again before it is walked back.
    """
    steps = jnp.arange(total, dtype=jnp.int32)
    head, rest, last = jnp.split(steps, (total % length, total - in_groups))
    stretches, groups = rest.reshape(-1, length), last.reshape(math.isqrt(total // length), -1, length)
    forwards = lambda *at: motion.forwards(*at)  # not the bound method, which has no hash

    def walk(position: Position, group: Array) -> tuple[Position, Position]:
        ahead = lambda position, stretch: (forwards(position, stretch)[0], None)
        return jax.lax.scan(ahead, position, group)[0], position

    # A scan of no steps fails without jit.
    position, kept_head = motion.forwards(motion.start(), head) if len(head) else (motion.start(), None)
    position, kept = jax.lax.scan(forwards, position, stretches) if len(stretches) else (position, None)
    end, anchors = jax.lax.scan(walk, position, groups) if in_groups else (position, None)

    def back(carry: PyTree, at: PyTree) -> tuple[PyTree, None]:
        position, adjoint, worst = carry
        position, adjoint, error = motion.backwards(position, adjoint, *at)
        return (position, adjoint, jnp.maximum(worst, error)), None

    def back_again(carry: PyTree, at: PyTree) -> tuple[PyTree, None]:
        group, anchor = at
        return jax.lax.scan(back, carry, (group, jax.lax.scan(forwards, anchor, group)[1]), reverse=True)[0], None

    def replay(end: Position, adjoint: Adjoint) -> tuple[Adjoint, Array]:
        carry = (end, adjoint, jnp.zeros((), adjoint.sizes.dtype))
        if in_groups:
            carry, _ = jax.lax.scan(back_again, carry, (groups, anchors), reverse=True)
        if len(stretches):
            carry, _ = jax.lax.scan(back, carry, (stretches, kept), reverse=True)
        if len(head):
            carry, _ = back(carry, (head, kept_head))
        return carry[1:]

    return end, replay
