"""Sums that outgrow 32 bits."""

import operator
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

WORD = 2**32
LARGEST = 2**63 - 1


class Total(eqx.Module):
    """A nonnegative integer below 2⁶³ in two words of 32 bits, whatever the precision of JAX.

        total = Total.of(0) + jnp.int32(5)
        int(total), total < 10, f"{total}", np.asarray(total)

    Sums and comparisons with totals and nonnegative integers work inside compiled functions too. The words may have
    axes: comparisons are then arrays, and `np.asarray` gives an int64 array.
    """

    high: Array  # uint32
    low: Array  # uint32

    __array_ufunc__ = None  # NumPy's scalars leave comparisons and sums to this class

    @staticmethod
    def of(number: Any) -> "Total":
        """Returns an integer, an integer array or a total as a total.

        **Raises** `ValueError` for a negative number.
        """
        if isinstance(number, Total):
            return number
        if isinstance(number, jax.Array) and number.dtype.itemsize <= 4:
            return Total(jnp.zeros(number.shape, jnp.uint32), number.astype(jnp.uint32))
        if isinstance(number, jax.core.Tracer):
            return Total((number >> 32).astype(jnp.uint32), number.astype(jnp.uint32))
        whole = np.asarray(number, np.int64)
        if np.any(whole < 0):
            raise ValueError(f"a total is not negative, got {number}")
        return Total(*(jnp.asarray(word.astype(np.uint32)) for word in np.divmod(whole, WORD)))

    @staticmethod
    def argument(number: int) -> "Total":
        """Returns an integer for a compiled function to take, of NumPy's numbers, in a tenth of the time of `of`."""
        words: Any = map(np.uint32, divmod(number, WORD))
        return Total(*words)

    def __add__(self, other: Any) -> "Total":
        other = Total.of(other)
        low = self.low + other.low  # modulo 2³²
        return Total(self.high + other.high + (low < self.low).astype(jnp.uint32), low)

    __radd__ = __add__

    @staticmethod
    def product(count: Any, factor: int) -> "Total":
        """Returns the product of a nonnegative 32-bit integer, or an array of them, and an integer below 2³¹."""
        (a, b), (c, d) = (divmod(number, 2**16) for number in (count.astype(jnp.uint32), factor))
        c, d = jnp.uint32(c), jnp.uint32(d)
        shifted = lambda number: Total(number >> 16, number << 16)
        return Total(a * c, b * d) + shifted(a * d) + shifted(b * c)

    def __sub__(self, other: Any) -> Any:
        """Returns the difference on the host, an int64 number or array."""
        return (np.asarray(self) - np.asarray(other))[()]

    def __rsub__(self, other: Any) -> Any:
        return -(self - other)

    def __lt__(self, other: Any) -> Any:
        return self._compare(other, operator.lt, _less)

    def __gt__(self, other: Any) -> Any:
        return self._compare(other, operator.gt, lambda a, b: _less(b, a))

    def __le__(self, other: Any) -> Any:
        return self._compare(other, operator.le, lambda a, b: ~_less(b, a))

    def __ge__(self, other: Any) -> Any:
        return self._compare(other, operator.ge, lambda a, b: ~_less(a, b))

    def __eq__(self, other: Any) -> Any:
        return self._compare(other, operator.eq, _same)

    def __ne__(self, other: Any) -> Any:
        return self._compare(other, operator.ne, lambda a, b: ~_same(a, b))

    __hash__ = None  # type: ignore[assignment]

    def _compare(self, other: Any, on_host: Callable[..., Any], compiled: Callable[["Total", "Total"], Array]) -> Any:
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((self, other))):
            return compiled(self, Total.of(other))
        found = on_host(np.asarray(self), np.asarray(other))
        return found if np.ndim(found) else bool(found)

    @property
    def rounded(self) -> Array:
        """The nearest floating number, also inside compiled functions."""
        kind = jnp.result_type(float)
        return self.high.astype(kind) * float(WORD) + self.low.astype(kind)

    def __int__(self) -> int:
        return (int(self.high) << 32) + int(self.low)

    __index__ = __int__

    def __float__(self) -> float:
        return float(int(self))

    def __bool__(self) -> bool:
        return int(self) != 0

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Returns the int64 array on the host."""
        high, low = (np.asarray(word).astype(np.int64) for word in (self.high, self.low))
        return np.asarray((high << 32) + low, dtype)

    def __format__(self, form: str) -> str:
        return format(np.asarray(self)[()], form)

    def __repr__(self) -> str:
        known = not isinstance(self.low, jax.core.Tracer | jax.ShapeDtypeStruct)
        return str(np.asarray(self)) if known else f"int64[{','.join(map(str, self.low.shape))}]"


def _less(a: Total, b: Total) -> Array:
    return (a.high < b.high) | ((a.high == b.high) & (a.low < b.low))


def _same(a: Total, b: Total) -> Array:
    return (a.high == b.high) & (a.low == b.low)
