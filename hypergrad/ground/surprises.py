"""Warnings about parameters that are not trained as their container suggests, and about losses that draw once."""

import random
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jaxtyping import PyTree

from .identity import to_numpy
from .jaxprs import held
from .tree import named_leaves

OTHER = "F16_F16_F32"  # a precision that nobody sets: the second trace is never run


def warn_of_numbers(params: PyTree, name: str) -> None:
    """Warns of Python's floating numbers in a dictionary, list or tuple: they are constants, and are not trained.

    The fields of a module are options of its layers and pass.
    """
    leaves = named_leaves(params, name, is_leaf=lambda part: isinstance(part, eqx.Module))
    if found := [path for path, leaf in leaves if type(leaf) is float]:
        _warn(
            f"{', '.join(found)} is a number of Python's, which is a constant: it is not trained; make it an array, as "
            "in jnp.asarray(0.0), or close over it"
        )


def warn_of_ties(params: PyTree, trained: PyTree, name: str) -> None:
    """Warns of arrays that occur more than once among those that are trained: the copies are trained apart.

    Arrays all of whose entries are equal, such as zeros to start from, pass.
    """
    places = defaultdict(list)
    for (path, leaf), moved in zip(named_leaves(params, name), _flags(params, trained), strict=True):
        if moved and isinstance(leaf, np.ndarray | jax.Array) and not isinstance(leaf, jax.core.Tracer):
            places[id(leaf)].append((path, leaf))
    for found in places.values():
        if len(found) > 1 and not _is_constant(found[0][1]):
            _warn(
                f"{' and '.join(path for path, _ in found)} are one array, whose copies are trained apart: to tie them "
                "use equinox.nn.Shared, or one array in both places of the loss; otherwise make a jnp.copy"
            )


def shape_of(name: str, function: Callable[..., PyTree], *args: PyTree) -> PyTree:
    """Returns the shapes of `function(*args)`. Warns where it would have other numbers in the next trace.

    Such numbers come from a generator of NumPy or Python, a counter or the clock. They would be drawn once and for all,
    while JAX traces the function, and anew in the trace of its derivative. The second trace has another default
    precision, whose name no trace that JAX has cached has.
    """
    before = _generators()
    program, shapes, static = eqx.filter_make_jaxpr(function)(*args)
    with jax.default_matmul_precision(OTHER):
        same = _same(program, eqx.filter_make_jaxpr(function)(*args)[0])
    if found := [module for module, state in _generators().items() if state != before[module]]:
        _warn(
            f"{name} draws from {' and '.join(found)} while JAX traces it: the numbers are constants of the compiled "
            "steps, not new ones at every step; draw with jax.random from its argument key"
        )
    elif not same:
        _warn(
            f"{name} is another function each time that JAX traces it: it reads something that changes, such as a "
            "generator of NumPy, a counter, or the time. Compiled programs, such as those of a value and of its "
            "derivative, hold different numbers, all of them constants; draw with jax.random from its argument key, "
            "and hand over what changes in the data"
        )
    return eqx.combine(shapes, static)


def _same(one: ClosedJaxpr, other: ClosedJaxpr) -> bool:
    """Returns whether two traces of a function are of the same operations on the same numbers."""
    first, second = list(_parts(one)), list(_parts(other))
    return len(first) == len(second) and all(map(_alike, first, second))


def _parts(program: ClosedJaxpr | Jaxpr) -> Iterator[Any]:
    """Yields the constants and the names of the operations of a program, and of the functions that it calls."""
    if isinstance(program, ClosedJaxpr):
        yield from program.consts
        program = program.jaxpr
    for equation in program.eqns:
        yield equation.primitive.name
        yield from (atom.val for atom in equation.invars if isinstance(atom, Literal))
        for inside in held(equation):
            yield from _parts(inside)
    yield from (atom.val for atom in program.outvars if isinstance(atom, Literal))


def _alike(one: Any, other: Any) -> bool:
    if one is other or isinstance(one, jax.core.Tracer) or isinstance(other, jax.core.Tracer):
        return True  # of a traced array nothing more is known
    return to_numpy(one).tobytes() == to_numpy(other).tobytes()


def _generators() -> dict[str, Any]:
    """Returns the states of the global generators, to be compared."""
    parts = jax.tree.leaves(np.random.get_state(legacy=False))
    return {"random": random.getstate(), "numpy.random": [np.asarray(part).tobytes() for part in parts]}


def _flags(params: PyTree, trained: PyTree) -> list[bool]:
    """Returns, for every leaf of the parameters, whether it is trained."""
    return jax.tree.leaves(jax.tree.map(lambda _, moved: moved is not None, params, trained))


def _is_constant(leaf: np.ndarray | jax.Array) -> bool:
    return leaf.size < 2 or bool(jnp.all(leaf == jnp.ravel(leaf)[0]))


def _warn(text: str) -> None:
    warnings.warn(text, UserWarning, stacklevel=2)
