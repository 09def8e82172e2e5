"""Warnings about parameters that are not trained as their container suggests, and about losses that draw once."""

import contextlib
import random
import warnings
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .tree import named_leaves


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


@contextlib.contextmanager
def warning_of_draws(name: str) -> Iterator[None]:
    """Warns where the function that is traced inside draws from the global generators of NumPy or Python.

    It would draw once and for all, while JAX traces it, and anew in the trace of its derivative.
    """
    before = _generators()
    yield
    if found := [module for module, state in _generators().items() if state != before[module]]:
        _warn(
            f"{name} draws from {' and '.join(found)} while JAX traces it: the numbers are constants of the compiled "
            "steps, not new ones at every step; draw with jax.random from its argument key"
        )


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
