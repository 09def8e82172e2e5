"""Short texts of numbers and pytrees, for the classes that users print."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import wadler_lindig as wl
from jaxtyping import PyTree

from .files import check_path, naming
from .total import Total

ENTRIES = 6  # entries of an array, and leaves of a pytree, that are written out


def show(tree: PyTree) -> str:
    """Shows the numbers of a pytree on one line, each leaf after its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda leaf: isinstance(leaf, Total))
    if not leaves:
        return "none"
    named = ((jax.tree_util.keystr(path, simple=True, separator="."), show_leaf(leaf)) for path, leaf in leaves)
    texts = [f"{name} {text}" if name else text for name, text in named]
    more = len(texts) - ENTRIES
    return ", ".join(texts[:ENTRIES]) + (f" and {more} more" if more > 0 else "")


def show_leaf(leaf: Any) -> str:
    """Shows a number, a few numbers, or the shape and range of many; only the shape of what has no value here."""
    if isinstance(leaf, Total) and values_of(leaf.low) is not None:
        leaf = np.asarray(leaf)
    if not (isinstance(leaf, np.ndarray | np.generic | jax.Array | jax.ShapeDtypeStruct)):
        return f"{leaf:.6g}" if isinstance(leaf, float) else str(leaf)
    shape = f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
    if not (jnp.issubdtype(leaf.dtype, jnp.number) or jnp.issubdtype(leaf.dtype, jnp.bool_)):
        return shape
    array = values_of(leaf)
    if array is None or array.size == 0:
        return shape
    if array.ndim == 0:
        return _number(array[()])
    if array.ndim == 1 and array.size <= ENTRIES:
        return f"[{', '.join(map(_number, array))}]"
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        return shape
    finite = array[np.isfinite(array)] if jnp.issubdtype(array.dtype, jnp.inexact) else array
    bad = f", {array.size - finite.size} not finite" if finite.size < array.size else ""
    if not finite.size:
        return f"{shape}{bad}"
    low, high = _number(finite.min()), _number(finite.max())
    return f"{shape} {'all ' + low if low == high else f'from {low} to {high}'}{bad}"


def values_of(leaf: Any) -> np.ndarray | None:
    """Returns the array on the host; `None` under a transformation, after donation, or if several processes hold it."""
    if isinstance(leaf, jax.core.Tracer | jax.ShapeDtypeStruct):
        return None
    if isinstance(leaf, jax.Array) and (leaf.is_deleted() or not leaf.is_fully_addressable):
        return None
    return np.asarray(leaf)


def show_size(tree: PyTree) -> str:
    """Shows the number of arrays in a model, of their entries, and their types."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, np.ndarray | jax.Array)]
    kinds = ", ".join(dict.fromkeys(str(leaf.dtype) for leaf in leaves))
    arrays = "1 array" if len(leaves) == 1 else f"{len(leaves)} arrays"
    return f"{arrays}, {sum(leaf.size for leaf in leaves)} numbers ({kinds})"


def paragraph(title: str, lines: Iterable[str]) -> str:
    """Joins a title and indented lines."""
    return "\n  ".join([title, *(line for line in lines if line)])


def show_fields(instance: Any) -> str:
    """Shows a dataclass by the fields that are not as they are by default."""
    values = ((field, getattr(instance, field.name)) for field in dataclasses.fields(instance) if field.repr)
    texts = [f"{field.name}={value!r}" for field, value in values if value != _default(field)]
    return f"{type(instance).__name__}({', '.join(texts)})"


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def show_call(name: str, arguments: Mapping[str, Any], options: dict[str, Any]) -> wl.AbstractDoc:
    """Shows an object by the call that makes it; `options` are those that Equinox gives to `__pdoc__`."""
    docs = wl.named_objs(arguments.items(), **options)
    return wl.bracketed(wl.TextDoc(f"{name}("), docs, wl.comma, wl.TextDoc(")"), options["indent"])


def _number(value: Any) -> str:
    kind = np.asarray(value).dtype
    if jnp.issubdtype(kind, jnp.complexfloating):
        return f"{complex(value):.6g}"
    return f"{float(value):.6g}" if jnp.issubdtype(kind, jnp.floating) else str(value)


def new_figure(width: float, height: float) -> Any:
    """Returns an empty figure of matplotlib, in inches. **Raises** `ImportError` with the extra to install."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plot needs matplotlib: pip install 'hypergrad-jax[plot]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Any, path: Any) -> None:
    """Writes a figure of matplotlib into a file.

    **Raises** `TypeError`, `ValueError` or `OSError` naming `path` where it is no path of a file that can be written,
    or has a suffix of no format.
    """
    text = check_path(path, "path")
    try:
        with naming(text, "path"):
            figure.savefig(text, dpi=150)
    except ValueError as error:
        raise ValueError(f"path={text!r}: {error}") from None
