"""Kinds of arguments: a right value, and which other values are right, wrong, or a matter of taste."""

import dataclasses
import datetime
import decimal
import fractions
import functools
import math
import numbers
import re
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import hypergrad as hg

Verdict = bool | None  # True: must be taken; False: must be refused; None: either
LARGE = 10**6


def value(label: str) -> Any:
    """A value that is tried, by its description; iterators are made anew."""
    return iter([1, 2]) if "_iterator" in label else values()[label]


@functools.cache
def values() -> dict[str, Any]:
    """All values that are tried, by a description."""
    found = [
        None,
        True,
        False,
        np.True_,
        "text",
        "",
        b"bytes",
        0,
        1,
        -1,
        2,
        2.5,
        -2.5,
        0.5,
        math.nan,
        math.inf,
        -math.inf,
    ]
    found += [10**9, 10**12, 10**30, -(10**30), 1e308, -1e308, np.int64(2), np.uint8(3), np.float64(2), np.float32(0.5)]
    found += [np.float16(math.nan), jnp.int32(2), jnp.float32(0.5), jnp.float32(math.inf), 3j, np.complex64(1j)]
    found += [[], [1, 2], (), (1.0,), {}, {"a": 1}, {1, 2}, object(), object, int, len, lambda: None, lambda *_: None]
    found += [np.zeros(0), np.zeros(3), np.full(3, math.nan), np.array("a"), np.array([None]), jnp.ones((2, 3))]
    found += [jnp.ones(3, jnp.int8), np.ones(2, complex), np.array([True, False]), np.array(["2020"], "datetime64[D]")]
    found += [jax.random.PRNGKey(0), jax.random.key(0), jax.random.split(jax.random.key(0)), jnp.zeros(3, jnp.uint32)]
    found += [decimal.Decimal("0.5"), fractions.Fraction(1, 2), range(3), iter([1, 2]), hg.CG(), hg.CG, hg.Status.OK]
    return labelled([*found, *odd()])


def odd() -> list[Any]:
    """Values that Python, NumPy or JAX have trouble with themselves; not lists too deep for JAX, which harms itself."""
    found = [10**400, -(10**400), Hostile(), Hostile, ValueError("no"), ValueError, ..., NotImplemented]
    found += [slice(2), memoryview(b"ab"), bytearray(b"ab"), "a\0b", "\ud800", "x" * 10_000, datetime.date(2020, 1, 1)]
    found += [{1: 2}, {"a": {"a": None}}, {"a": math.nan}, {"b": object()}, [None], ["a", 1], [[1, 2], [3]], {None: 1}]
    found += [np.longdouble(0.5), np.array(0.5, object), np.ma.masked, np.ma.array([1.0, 2.0], mask=[True, False])]
    found += [np.zeros(3, [("a", int)]), jnp.bfloat16(2), jnp.zeros((0, 2)), jax.ShapeDtypeStruct((3,), jnp.float32)]
    return [*found, jnp.ones((2, 2), complex), np.arange(3.0)[::-1], np.ones(3, ">f8"), np.float64(-0.0), 5e-324, 2**31]


class Hostile:
    """An object that raises whatever it is asked."""

    def _raise(self, *_):
        raise RuntimeError("hostile")

    __repr__ = __str__ = __len__ = __iter__ = __bool__ = __float__ = __int__ = __index__ = __array__ = _raise
    __lt__ = __gt__ = __le__ = __ge__ = __getitem__ = __contains__ = _raise


def labelled(found: list[Any]) -> dict[str, Any]:
    return {f"{i}: {type(value).__name__} {shown(value)}": value for i, value in enumerate(found)}


def shown(value: Any) -> str:
    """The value, where that reads the same in every process."""
    try:
        text = ascii(value)
    except Exception:
        text = "without a text"
    return re.sub(r"0x[0-9a-f]+", "", text)[:40].replace("\n", " ")


@dataclasses.dataclass
class Kind:
    """One argument: `right` makes a right value, `judge` gives the verdict on another."""

    right: Callable[[], Any]
    judge: Callable[[Any], Verdict]
    own: bool = False  # a function whose errors are its own

    def verdict(self, value: Any) -> Verdict:
        """The verdict; a value that cannot even be judged is wrong."""
        try:
            return self.judge(value)
        except Exception:
            return False


def number(value: Any) -> Any:
    """The Python number that a value stands for, or None."""
    if isinstance(value, np.ndarray | jax.Array):
        if value.ndim or value.dtype == object or isinstance(value, np.ma.MaskedArray):
            return None
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            return None
        value = np.asarray(value)[()]
    if isinstance(value, np.floating) or type(value).__name__ == "bfloat16":
        value = float(value)
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        return None
    return value


def Int(right: int, least: float = -math.inf, most: float = math.inf, optional: bool = False) -> Kind:  # noqa: N802
    def judge(value):
        if value is None:
            return optional
        found = number(value)
        if found is None or (not isinstance(found, int) and not math.isfinite(found)) or found != int(found):
            return False
        return None if least <= found <= most and abs(found) > LARGE else least <= found <= most

    return Kind(lambda: right, judge)


def Real(  # noqa: N802
    right: float, least=-math.inf, most=math.inf, above=-math.inf, below=math.inf, optional=False, infinite=False
) -> Kind:
    def judge(value):
        if value is None:
            return optional
        found = number(value)
        if found is None or isinstance(found, decimal.Decimal | fractions.Fraction) or math.isnan(found):
            return None if isinstance(value, decimal.Decimal | fractions.Fraction) else False
        if 0 < abs(found) < sys.float_info.min:
            return None  # XLA takes it for 0
        if abs(found) > LARGE:
            in_range = least <= found <= most and above < found < below
            return None if in_range and (infinite or math.isfinite(found)) else False
        return least <= found <= most and above < found < below

    return Kind(lambda: right, judge)


def Bool(right: bool = False) -> Kind:  # noqa: N802
    return Kind(lambda: right, lambda value: isinstance(value, bool | np.bool_))


def Word(right: str, *others: Any) -> Kind:  # noqa: N802
    return Kind(lambda: right, lambda value: isinstance(value, str) and value in (right, *others))


def Function(right: Callable, optional: bool = False, own: bool = False) -> Kind:  # noqa: N802
    """A function that nobody calls before it is used can be any."""
    return Kind(lambda: right, lambda value: None if callable(value) or (value is None and optional) else False, own)


def Key(optional: bool = False) -> Kind:  # noqa: N802
    def judge(value):
        if value is None:
            return optional
        return isinstance(value, jax.Array) and (
            (jnp.issubdtype(value.dtype, jax.dtypes.prng_key) and value.shape == ())
            or (value.dtype == jnp.uint32 and value.shape == (2,))
        )

    return Kind(lambda: jax.random.key(1), judge)


def Only(right: Callable[[], Any], optional: bool = False) -> Kind:  # noqa: N802
    """An object of some class: nothing else will do."""
    return Kind(right, lambda value: value is None and optional)


def Some(right: Callable[[], Any]) -> Kind:  # noqa: N802
    """Anything may do, such as data that only the user's loss understands; nothing may end in a foreign error."""
    return Kind(right, lambda value: None)


def Path() -> Kind:  # noqa: N802
    """The path of a file that need not be given."""
    return Kind(
        lambda: None, lambda value: True if value is None else None if isinstance(value, str) and value else False
    )


def Rows(right: Callable[[], Any], optional: bool = False) -> Kind:  # noqa: N802
    """An array of one shape, whose entries are finite numbers."""

    def judge(value):
        if value is None:
            return optional
        try:
            array = np.asarray(value)
        except TypeError:
            return False
        wanted = np.shape(right())
        if array.dtype.kind not in "fiub" or array.shape != wanted or not np.all(np.isfinite(array)):
            return False
        return None

    return Kind(right, judge)


def numeric(value):
    """The array of real numbers that a value is, or None."""
    if isinstance(value, str | bytes | dict | set | bool | np.bool_) or value is None:
        return None
    try:
        array = np.asarray(value)
    except Exception:
        return None
    return array if jnp.issubdtype(array.dtype, jnp.floating) or array.dtype.kind in "iu" else None


def Text(right, optional=False):  # noqa: N802
    return Kind(lambda: right, lambda value: (isinstance(value, str) and value != "") or (value is None and optional))


def Mapping(right):  # noqa: N802
    """A dictionary: its names and values may be wrong, nothing else can be right."""
    return Kind(lambda: right, lambda value: None if isinstance(value, dict) else False)


def Listed(right):  # noqa: N802
    """A sequence of which an empty one may do."""
    return Kind(right, lambda value: None if not np.size(value) and isinstance(value, list | tuple | dict) else False)


def Ints(right, most):  # noqa: N802
    def judge(value):
        array = numeric(value)
        if array is None or not np.array_equal(array, np.round(array)) or array.shape not in ((), (2,)):
            return False
        return bool(np.all((array >= 1) & (array <= most)))

    return Kind(lambda: right, judge)


def LogVariance():  # noqa: N802
    """A number, or a tree of arrays like the weights or a prefix of it."""
    return Kind(lambda: 0.0, lambda v: None if isinstance(v, dict | list | tuple) or numeric(v) is not None else False)
