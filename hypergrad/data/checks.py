"""Checks of the data that a problem is given, before anything is computed."""

from collections.abc import Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ensembles.ground.axes import refuse_no_numbers

from ..ground.arrays import taken_over
from ..ground.hparams import num_not_finite
from ..ground.tree import named_leaves


def check_data(data: PyTree, name: str) -> PyTree:
    """Returns the data as JAX arrays. Raises where they are no numbers, empty, not finite, or out of JAX's range."""
    for path, leaf in named_leaves(data, name, is_leaf=lambda part: isinstance(part, Iterator)):
        if isinstance(leaf, str | bytes):
            raise TypeError(f"{path} is text; data must be numbers")
        if isinstance(leaf, np.ma.MaskedArray):
            raise TypeError(f"{path} is a masked array, whose mask would be lost; fill it in or leave the rows out")
        if isinstance(leaf, np.ndarray) and not leaf.dtype.isnative:
            raise TypeError(f'{path} is of the byte order {leaf.dtype.str}; use .astype(x.dtype.newbyteorder("="))')
        if not eqx.is_array_like(leaf):
            _refuse_object(path, leaf)
            continue  # a function, as in a model that makes features
        refuse_no_numbers(path, leaf)
        kind = jnp.result_type(leaf)
        if np.size(leaf) == 0:
            raise ValueError(f"{path} is empty (shape {np.shape(leaf)})")
        if isinstance(leaf, jax.core.Tracer) or not jnp.issubdtype(kind, jnp.inexact):
            continue
        if bad := num_not_finite(leaf):
            raise ValueError(f"{path} holds {bad} values that are NaN or infinite")
    return taken_over(data, name)


def _refuse_object(path: str, leaf: object) -> None:
    """Raises `TypeError` for what is neither an array nor a function: it would be read once, while JAX traces."""
    if callable(leaf):
        return
    kind = f"{type(leaf).__module__}.{type(leaf).__qualname__}"
    if isinstance(leaf, Iterator):
        raise TypeError(
            f"{path} is an iterator ({kind}): training would read it once and go on with that one item; give the "
            "arrays themselves, in hypergrad.Batches if steps are to read parts, or the iterator to run(stream=...)"
        )
    raise TypeError(
        f"{path} is a {kind}; data must be arrays, or a pytree of them: convert it first, e.g. with .to_numpy() or "
        "numpy.asarray"
    )
