"""Objects that searchers and objectives keep from call to call, such as studies and processes."""

from typing import Any

import equinox as eqx


class Kept:
    """An object that is kept from call to call; a copy, also in another process, is a new one."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()


def kept_field(kind: type[Kept]) -> Any:
    """Returns a field of a module that holds such an object, no part of its value."""
    return eqx.field(default_factory=kind, static=True, repr=False)
