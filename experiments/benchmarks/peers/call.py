"""One way to a hypergradient, as something to be timed."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from ..measure import flat


class Peer(NamedTuple):
    """A call, what turns its result into one vector, and, if XLA compiles it, what tells its memory.

    `exact` is true where the hypergradient is meant to be that of the training run itself.
    """

    call: Callable[[], Any]
    vector: Callable[[Any], np.ndarray] = flat
    temp_bytes: Callable[[], int] | None = None
    exact: bool = True


class Opaque:
    """Tensors that JAX must not open when it waits for a result."""

    def __init__(self, tensors):
        self.tensors = tensors


def compiled(function: Callable, *args: Any, exact: bool = True) -> Peer:
    """Returns the call of a JAX function that returns a hypergradient."""
    jitted = jax.jit(function)
    memory = lambda: jitted.lower(*args).compile().memory_analysis().temp_size_in_bytes
    return Peer(lambda: jitted(*args), temp_bytes=memory, exact=exact)
