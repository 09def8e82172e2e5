"""Objects such as studies and processes, which searchers and objectives keep from call to call, and no copy shares."""

from typing import Any

import equinox as eqx


class Uncopied:
    """An object that is kept from call to call; a copy, also in another process, is a new one."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()


def uncopied_field(kind: type[Uncopied]) -> Any:
    """Returns a field of a module that holds such an object, no part of its value."""
    return eqx.field(default_factory=kind, static=True, repr=False)
