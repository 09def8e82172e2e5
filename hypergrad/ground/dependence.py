"""What the results of a function depend on, read from its jaxpr."""

from collections.abc import Callable

import jax
from jax.interpreters import partial_eval
from jaxtyping import PyTree


def enters(function: Callable[[PyTree], PyTree], argument: PyTree) -> list[bool]:
    """Returns for every leaf of `argument` whether any output of `function` depends on it. Nothing is computed."""
    jaxpr = jax.make_jaxpr(function)(argument).jaxpr
    _, used = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return list(used)
