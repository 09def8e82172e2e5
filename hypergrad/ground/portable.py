"""Functions in a form that can be pickled: `jax.nn.relu` and the lambdas inside `equinox.nn` cannot themselves."""

import dataclasses
import importlib
import marshal
import sys
import types
from typing import Any


@dataclasses.dataclass(frozen=True)
class PortableFunction:
    """A function of a module that can be imported elsewhere: by its name or, without a closure, by its code.

    Two are equal where their functions do the same.
    """

    module: str
    name: str
    code: types.CodeType | None

    def load(self) -> Any:
        """Returns the function."""
        module = importlib.import_module(self.module)
        return getattr(module, self.name) if self.code is None else types.FunctionType(self.code, vars(module))

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self.module, self.name, None if self.code is None else marshal.dumps(self.code))


def _unpickled(module: str, name: str, code: bytes | None) -> PortableFunction:
    return PortableFunction(module, name, None if code is None else marshal.loads(code))


def portable(leaf: Any) -> Any:
    """Returns a function as a `PortableFunction` where that is possible, and anything else as it is."""
    module, name = getattr(leaf, "__module__", None), getattr(leaf, "__qualname__", None)
    if not callable(leaf) or not isinstance(module, str) or not isinstance(name, str) or module == "__main__":
        return leaf
    if getattr(sys.modules.get(module), name, None) is leaf:
        return PortableFunction(module, name, None)
    if isinstance(leaf, types.FunctionType) and not (leaf.__closure__ or leaf.__defaults__ or leaf.__kwdefaults__):
        return PortableFunction(module, name, leaf.__code__)
    return leaf


def loaded(leaf: Any) -> Any:
    """Returns what `portable` was given."""
    return leaf.load() if isinstance(leaf, PortableFunction) else leaf
