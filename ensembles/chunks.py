"""Evaluation of many replicas in limited memory."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PyTree

from .checks import Rule, call, checked, function, integer, num_replicas, real
from .ground.memory import available_bytes


def _as_chunk(value: Any) -> int | str:
    if isinstance(value, str):
        if value != "auto":
            raise ValueError
        return value
    return integer("chunk", least=1).convert(value)


@checked(
    function("function", "of one replica"),
    Rule("chunk", 'a positive integer, "auto"', _as_chunk, optional=True),
    real("memory", above=0, most=math.inf, optional=True),
)
def chunked(
    function: Callable[..., Any], chunk: int | str | None = None, memory: float | None = None
) -> Callable[..., Any]:
    """Returns a function that does for all replicas what `function` does for one, in as many parts as memory requires.

    **Arguments**

    - `function`: a function of one replica and, as further arguments, its own data or key; it may train, predict or
      evaluate.
    - `chunk`: the number of replicas at a time. `None` is all at once, refused if they would not fit; `"auto"` is as
      many as fit. With an integer the result may be called inside `jit` and differentiated.
    - `memory`: bytes that may be used; by default those that the device has free.

    The result takes the same arguments, each with a leading axis of replicas, and returns results with a leading axis
    of replicas, as `jax.vmap` does. It compiles once per shape of its arguments.

    *Memory*: the bytes that XLA reports for temporaries and results.

    **Raises** `MemoryError` with the estimate where all replicas, or with `"auto"` a single one, do not fit.

    **Example**

        >>> ens.chunked(lambda w: w**2, 2)(jnp.arange(5))  # two at a time
        Array([ 0,  1,  4,  9, 16], dtype=int32)
    """
    if isinstance(chunk, int):
        return _mapped(function, chunk)
    chosen: dict[Any, Callable[..., Any]] = {}

    def mapped(*stacked: PyTree) -> PyTree:
        num_replicas(stacked, "replicas")
        dynamic, static = eqx.partition(stacked, eqx.is_array)
        leaves, treedef = jax.tree.flatten(static)
        shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), jax.tree.leaves(dynamic))
        layout = (treedef, tuple(leaves), jax.tree.structure(dynamic), tuple(shapes))
        if layout not in chosen:
            chosen[layout] = _that_fits(function, dynamic, static, chunk == "auto", memory)
        return chosen[layout](dynamic)

    return mapped


def _mapped(function: Callable[..., Any], size: int) -> Callable[..., Any]:
    def mapped(*stacked: PyTree) -> PyTree:
        num = num_replicas(stacked, "replicas")
        dynamic, static = eqx.partition(stacked, eqx.is_array)
        one = lambda dynamic: call("function", function, "a replica of replicas", *eqx.combine(dynamic, static))
        if size >= num:
            return jax.vmap(one)(dynamic)
        return jax.lax.map(one, dynamic, batch_size=size)

    return mapped


def _that_fits(
    function: Callable[..., Any], dynamic: PyTree, static: PyTree, shrink: bool, memory: float | None
) -> Callable[..., Any]:
    limit = available_bytes() if memory is None else memory
    num = size = num_replicas(dynamic, "replicas")
    while True:
        mapped = _mapped(function, size)
        compiled = jax.jit(lambda dynamic: mapped(*eqx.combine(dynamic, static)))  # noqa: B023
        need = _bytes_needed(compiled, dynamic)
        if need <= limit:
            return compiled
        advice = "" if shrink else '; chunk="auto" or a number does a part at a time'
        if not shrink or size == 1:
            many = f"{num} replicas" if size == num else "one replica at a time"
            raise MemoryError(f"{many} need about {need / 1e6:.4g} MB, {limit / 1e6:.4g} MB are free{advice}")
        size = max(1, min(size // 2, int(size * limit / need)))


def _bytes_needed(compiled: Callable[..., Any], dynamic: PyTree) -> int:
    analysis = compiled.lower(dynamic).compile().memory_analysis()  # type: ignore[attr-defined]
    return analysis.temp_size_in_bytes + analysis.output_size_in_bytes
