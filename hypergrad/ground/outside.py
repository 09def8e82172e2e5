"""A checksum of what functions of Python read from outside themselves, which compiled programs hold as it was."""

import dis
import inspect
import zlib
from collections.abc import Iterator
from functools import partial
from types import CodeType
from typing import Any

import jax
import numpy as np

from .identity import to_bytes, to_numpy

NUMBERS = (bool, int, float, complex, str, bytes, type(None), np.generic)
LIBRARIES = {"builtins", "collections", "equinox", "jax", "jaxlib", "jaxopt", "logging", "numpy", "optax"}
MOST, SMALL = 1000, 1024  # values that are looked at, and entries up to which an array of JAX is read


def read_outside(*functions: Any) -> int:
    """Returns a checksum of the numbers, text and arrays that functions read from outside, helpers included.

    These are defaults, bound arguments, variables and globals, also in dictionaries, tuples and the fields of objects.
    Lists, and what a function changes itself, are taken for notes of its calls.
    """
    total = 0
    for _, value in zip(range(MOST), _values(list(functions)), strict=False):
        total = zlib.crc32(_content(value), total)
    return total


def _content(value: Any) -> Any:
    if not isinstance(value, np.ndarray | jax.Array):
        return f"{type(value)} {value!r}".encode()
    if isinstance(value, jax.Array) and (value.size > SMALL or value.is_deleted()):
        return str(id(value)).encode()  # which never changes
    return to_bytes(to_numpy(value))


def _values(left: list[Any]) -> Iterator[Any]:
    """Yields the numbers and arrays that can be reached."""
    seen: set[int] = set()
    for value in left:  # which grows meanwhile
        if isinstance(value, NUMBERS) or _is_array(value):
            yield value
        elif id(value) not in seen:
            seen.add(id(value))
            left += _parts(value)


def _is_array(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return not value.dtype.hasobject
    return isinstance(value, jax.Array) and not isinstance(value, jax.core.Tracer)


def _parts(value: Any) -> list[Any]:
    """Returns what a container, function or object holds."""
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, partial):
        return [value.func, *value.args, *value.keywords.values()]
    if inspect.ismethod(value):
        return [value.__func__, value.__self__]
    if inspect.isfunction(value):
        return [] if _is_of_library(value) else _read(value)
    if inspect.ismodule(value) or inspect.isclass(value):
        return []
    if callable(inside := getattr(value, "__wrapped__", None)):  # compiled by its user
        return [inside]
    return [] if _is_of_library(type(value)) else list(getattr(value, "__dict__", {}).values())


def _is_of_library(value: Any) -> bool:
    return str(value.__module__).partition(".")[0] in LIBRARIES


def _read(function: Any) -> list[Any]:
    """Returns the defaults of a function, and the variables and globals that it reads and does not set."""
    code, own = function.__code__, set(_names(function.__code__, "STORE_GLOBAL", "STORE_DEREF"))
    found = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            found += [] if name in own else [cell.cell_contents]
        except ValueError:  # of a variable that has no value yet
            continue
    names = set(_names(code, "LOAD_GLOBAL")) - own
    found += [function.__globals__[name] for name in sorted(names & set(function.__globals__))]
    if any(True for _ in _names(code, "STORE_SUBSCR", "STORE_ATTR")):  # of an entry or a field of one of these
        found = [
            value for value in found if _is_array(value) or isinstance(value, (*NUMBERS, tuple)) or callable(value)
        ]
    return found


def _names(code: CodeType, *operations: str) -> Iterator[str]:
    """Yields the names on which a function and those inside it perform some operations."""
    yield from (step.argval for step in dis.get_instructions(code) if step.opname in operations)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant, *operations)
