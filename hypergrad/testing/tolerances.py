"""One table of relative tolerances by dtype, and the comparison that uses it."""

import contextlib
import contextvars
from collections.abc import Collection, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from ..ground.checks import checked, choice, real, shown

# same:      one formula in another order of operations
# gradient:  the same derivative by another route
# difference: a derivative against finite differences
# solved:    an iterative solution against a direct one
RELATIVE: dict[np.dtype[Any], dict[str, float]] = {
    np.dtype("float64"): {"same": 1e-12, "gradient": 1e-9, "difference": 1e-7, "solved": 1e-8},
    np.dtype("float32"): {"same": 1e-5, "gradient": 1e-4, "difference": np.inf, "solved": 1e-3},
}

NUMBERS = ("float32", "float64", "int32", "int64")

_factor = contextvars.ContextVar("factor", default=1.0)


@checked(real("factor", above=0))
@contextlib.contextmanager
def loosened(factor: float) -> Iterator[None]:
    """Makes every tolerance `factor` times as wide inside the block."""
    token = _factor.set(_factor.get() * factor)
    try:
        yield
    finally:
        _factor.reset(token)


def flat(tree: PyTree) -> Any:
    """Joins all leaves into one vector."""
    return np.concatenate([np.ravel(np.asarray(leaf)) for leaf in jax.tree.leaves(tree)])


def relative_error(found: PyTree, expected: PyTree) -> float:
    """Returns ‖found - expected‖ / ‖expected‖ over all leaves together."""
    found, expected = flat(found), flat(expected)
    ensure(found.shape == expected.shape, f"{found.size} numbers found, {expected.size} expected")
    size = np.linalg.norm(expected)
    return float(np.linalg.norm(found - expected) / (size if size > 0 else 1))


@checked(choice("kind", *RELATIVE[np.dtype("float64")]))
def assert_close(found: PyTree, expected: PyTree, kind: str = "same") -> None:
    """Asserts equality to the tolerance of `kind` for the dtype of `found`.

    **Raises** `TypeError` where leaves are no numbers of float32 or float64.
    """
    _refuse_others("found", found, NUMBERS[:2])
    _refuse_others("expected", expected, NUMBERS)
    error = relative_error(found, expected)
    limit = RELATIVE[flat(found).dtype][kind] * _factor.get()
    ensure(error <= limit, f"relative error {error:.3g} > {limit:.3g}\n found    {found}\n expected {expected}")


def _refuse_others(name: str, tree: PyTree, kinds: Collection[str]) -> None:
    """Raises `TypeError` naming the argument unless it holds numbers of one of these kinds."""
    leaves = jax.tree.leaves(tree)
    if not leaves or any(_type_of(leaf) not in kinds for leaf in leaves):
        raise TypeError(f"{name} must be arrays of float32 or float64, got {shown(tree)}")


def _type_of(leaf: Any) -> str:
    """Returns the name of the type of an array or a number, none for an object that cannot be looked at."""
    try:
        return str(getattr(leaf, "dtype", None) or np.asarray(leaf).dtype)
    except Exception:
        return ""


def ensure(condition: Any, message: str) -> None:
    """Raises `AssertionError` with the message unless the condition holds; also under `python -O`."""
    if not condition:
        raise AssertionError(message)
