"""A checksum of what functions of Python read from outside themselves, which compiled programs hold as it was."""

import dis
import hashlib
import inspect
import sys
import sysconfig
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from types import CodeType
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr
from jaxtyping import PyTree

from .identity import digest, to_numpy, update_digest, without_addresses
from .jaxprs import CALLBACKS, held

NUMBERS = (bool, int, float, complex, str, bytes, type(None), np.generic)
INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})
APPENDS = {"append", "clear", "extend", "insert", "pop", "remove"}
MOST, SMALL = 1000, 1024  # values that are looked at, and entries up to which an array of JAX is read


class ReadsOutside(eqx.Module):
    """A module with functions of a user: one made after a change outside of these goes with other programs."""

    outside: str = eqx.field(static=True, init=False, repr=False, default="")

    def __check_init__(self) -> None:
        object.__setattr__(self, "outside", read_outside(*_fields(self, set())))


def read_outside(*functions: Any) -> str:
    """Returns the SHA-256 of the numbers, text and arrays that functions read from outside, helpers included.

    These are defaults, bound arguments, variables and globals, also in dictionaries, tuples and lists, and the fields
    of objects that any of the functions names. What a function changes itself is taken for notes of its calls, and so
    are lists where any of the functions appends to one or the like. Of installed packages only the functions are
    followed that they were given.
    """
    total = hashlib.sha256()
    for value in _reached(*functions):
        if isinstance(value, jax.Array) and (value.size > SMALL or value.is_deleted()):
            total.update(str(id(value)).encode())  # which never changes
        elif isinstance(value, np.ndarray | jax.Array):
            update_digest(total, to_numpy(value))
        else:
            total.update(f"{type(value)} {value!r}".encode())
    return total.hexdigest()


def program_digest(function: Callable[..., Any], *args: PyTree) -> str:
    """Returns the SHA-256 of what `function` computes: its jaxpr and constants, but without addresses in memory."""
    jaxpr, _, _ = eqx.filter_make_jaxpr(function)(*args)
    return hashlib.sha256(f"{without_addresses(str(jaxpr))} {digest(_constants(jaxpr))}".encode()).hexdigest()


def _constants(jaxpr: ClosedJaxpr | Jaxpr) -> list[Any]:
    """Returns the arrays that a program holds, in the functions it calls too, and what those of Python read."""
    found = list(jaxpr.consts) if isinstance(jaxpr, ClosedJaxpr) else []
    for equation in jaxpr.eqns:
        if equation.primitive.name in CALLBACKS and equation.outvars:  # others change no result
            found += _reached(getattr(equation.params["callback"], "callback_func", None))
        for inside in held(equation):
            found += _constants(inside)
    return found


def _reached(*functions: Any) -> list[Any]:
    """Returns the numbers, text and arrays that functions read from outside."""
    names: set[str] = set()
    while True:
        found, met = _walk(list(functions), names)
        if met <= names:
            return found
        names |= met


def _walk(left: list[Any], names: set[str]) -> tuple[list[Any], set[str]]:
    """Returns the numbers and arrays that can be reached over fields of these names, and the names in all code met."""
    found: list[Any] = []
    met: set[str] = set()
    seen: set[int] = set()
    for value in left:  # which grows meanwhile
        if len(found) == MOST:
            break
        if isinstance(value, NUMBERS) or _is_array(value):
            found.append(value)
        elif id(value) not in seen:
            seen.add(id(value))
            left += _parts(value, names)
            if inspect.isfunction(value) and not _is_installed(value.__module__):
                met |= _named(value.__code__)
    return found, met


def _is_array(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return not value.dtype.hasobject
    return isinstance(value, jax.Array) and not isinstance(value, jax.core.Tracer)


def _parts(value: Any, names: set[str]) -> list[Any]:
    """Returns what a container, function or object holds."""
    if isinstance(value, tuple) or (isinstance(value, list) and not names & APPENDS):
        return list(value[:MOST])
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, partial):
        return [value.func, *value.args, *value.keywords.values()]
    if inspect.ismethod(value):
        return [value.__func__, value.__self__]
    if inspect.isfunction(value):
        return _read(value)
    if inspect.ismodule(value) or inspect.isclass(value):
        return []
    if callable(inside := getattr(value, "__wrapped__", None)):  # compiled by its user
        return [inside]
    return _fields(value, names)


@lru_cache
def _is_installed(module: str | None) -> bool:
    """Returns whether a module is of Python itself or of an installed package."""
    if module is None:
        return False
    if module.partition(".")[0] in sys.stdlib_module_names - {"__main__"}:
        return True
    path = getattr(sys.modules.get(module), "__file__", None)
    return path is not None and path.startswith(INSTALLED)


def _fields(value: Any, names: set[str]) -> list[Any]:
    """Returns the functions that an object holds, and its fields, methods and properties that are named.

    Of a module of Equinox the functions alone: other fields are arguments of compiled programs.
    """
    own = getattr(value, "__dict__", {})
    if isinstance(value, eqx.Module):
        found = [part for part in (*jax.tree.leaves(value), *own.values()) if callable(part)]
    else:
        found = [field for name, field in own.items() if name in names or inspect.isfunction(field)]
    for name in [*sorted(names - set(own)), "__call__"]:
        method = inspect.getattr_static(type(value), name, None)
        method = getattr(method, "fget", None) or getattr(method, "__func__", method)
        found += [method] if inspect.isfunction(method) else []
    return found


def _read(function: Any) -> list[Any]:
    """Returns the defaults of a function, and the variables and globals that it reads and does not set."""
    code, own = function.__code__, _names(function.__code__, "STORE_GLOBAL", "STORE_DEREF")
    found = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            found += [] if name in own else [cell.cell_contents]
        except ValueError:  # of a variable that has no value yet
            continue
    if _is_installed(function.__module__):
        held = (_parts(value, set()) if isinstance(value, tuple | dict) else [value] for value in found)
        return [inside for values in held for inside in values if callable(inside)]
    names = _names(code, "LOAD_GLOBAL") - own
    found += [function.__globals__[name] for name in sorted(names & set(function.__globals__))]
    if _names(code, "STORE_SUBSCR", "STORE_ATTR"):  # of an entry or a field of one of these
        found = [
            value for value in found if _is_array(value) or isinstance(value, (*NUMBERS, tuple)) or callable(value)
        ]
    return found


@lru_cache(maxsize=MOST)
def _names(code: CodeType, *operations: str) -> frozenset[Any]:
    """Returns the names on which a function and those inside it perform some operations, `None` for an entry."""
    steps = (step for inside in _codes(code) for step in dis.get_instructions(inside))
    return frozenset(step.argval for step in steps if step.opname in operations)


def _named(code: CodeType) -> set[str]:
    """Returns the names that a function and those inside it read, in text too, as `getattr` takes it."""
    texts = {text for inside in _codes(code) for text in inside.co_consts if isinstance(text, str)}
    return texts.union(*(inside.co_names for inside in _codes(code))) - _names(code, "STORE_ATTR")


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)
