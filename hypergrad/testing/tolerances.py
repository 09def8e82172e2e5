"""One table of relative tolerances by dtype, and the comparison that uses it."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

# same:      one formula in another order of operations
# gradient:  the same derivative by another route
# difference: a derivative against finite differences
# solved:    an iterative solution against a direct one
RELATIVE = {
    np.dtype("float64"): {"same": 1e-12, "gradient": 1e-9, "difference": 1e-7, "solved": 1e-8},
    np.dtype("float32"): {"same": 1e-5, "gradient": 1e-4, "difference": np.inf, "solved": 1e-3},
}

_factor = contextvars.ContextVar("factor", default=1.0)


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


def assert_close(found: PyTree, expected: PyTree, kind: str = "same") -> None:
    """Asserts equality to the tolerance of `kind` for the dtype of `found`."""
    error = relative_error(found, expected)
    limit = RELATIVE[flat(found).dtype][kind] * _factor.get()
    ensure(error <= limit, f"relative error {error:.3g} > {limit:.3g}\n found    {found}\n expected {expected}")


def ensure(condition: Any, message: str) -> None:
    """Raises `AssertionError` with the message unless the condition holds; also under `python -O`."""
    if not condition:
        raise AssertionError(message)
