"""Shapes of results, and results of checks, remembered for arguments of one form."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
from jaxtyping import PyTree

Found = TypeVar("Found")


def shapes_of(function: Callable[..., PyTree], *args: PyTree) -> PyTree:
    """Returns `eqx.filter_eval_shape(function, *args)`, traced once for arguments of one form.

    The form is structure, shapes, types, all leaves that are no arrays of JAX, and JAX's options for types. Where one
    of these cannot be hashed nothing is remembered.
    """
    leaves, structure = jax.tree.flatten((function, args))
    leaves = [_form(leaf) if isinstance(leaf, jax.Array) else leaf for leaf in leaves]
    kinds = tuple(map(type, leaves))  # because 1 == 1.0 == True
    try:
        hash((structure, *leaves))
    except TypeError:
        return _traced(structure, leaves)
    options = jax.config.jax_enable_x64, jax.config.jax_numpy_dtype_promotion  # type: ignore[attr-defined]
    return _remembered(structure, tuple(leaves), kinds, options)


def remembered(check: Callable[..., Found], *args: PyTree) -> Found:
    """Returns `check(*args)`, flags or `None`, which follow from the form of the arguments alone.

    The check runs once for arguments of one form, see `shapes_of`, with traced arrays in their place. Where it raises,
    and inside a transformation, nothing is remembered, and the check runs on the arguments themselves.
    """
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(args)):
        return check(*args)
    try:
        return shapes_of(check, *args)
    except Exception:
        return check(*args)


def forget() -> None:
    """Forgets all that is remembered, as `jax.clear_caches` does with what is compiled."""
    _remembered.cache_clear()


def _form(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    kind = jax.typeof(leaf)
    return jax.ShapeDtypeStruct(kind.shape, kind.dtype, weak_type=kind.weak_type)


@functools.lru_cache(maxsize=128)
def _remembered(structure: Any, leaves: tuple[Any, ...], kinds: tuple[type, ...], options: tuple[Any, ...]) -> PyTree:
    return _traced(structure, leaves)


def _traced(structure: Any, leaves: Any) -> PyTree:
    function, args = jax.tree.unflatten(structure, leaves)
    return eqx.filter_eval_shape(function, *args)
