"""A count of the programs that JAX compiles, and of the seconds that takes."""

import functools
import threading
from typing import NamedTuple

import jax

COMPILE = "/jax/core/compile/backend_compile_duration"
LOWER = "/jax/core/compile/jaxpr_to_mlir_module_duration"


class Compilations(NamedTuple):
    """Programs compiled, and the seconds of lowering and compiling them."""

    number: int
    seconds: float

    def since(self, earlier: "Compilations") -> "Compilations":
        """Returns the programs compiled after `earlier`."""
        return Compilations(self.number - earlier.number, self.seconds - earlier.seconds)


def compilations() -> Compilations:
    """Returns all since the first call in this process: subtract two of them.

    **Example**

        >>> before = hg.trials.compilations()
        >>> _ = jax.jit(lambda a: a * 3.14159 + 2)(jnp.ones(7))
        >>> hg.trials.compilations().since(before).number > 0
        True
    """
    return _heard().total


class _Heard:
    """The total of what JAX's own monitoring reports, from any thread."""

    def __init__(self) -> None:
        self.total, self.lock = Compilations(0, 0.0), threading.Lock()

    def listen(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event in (COMPILE, LOWER):
            with self.lock:
                number, seconds = self.total
                self.total = Compilations(number + (event == COMPILE), seconds + duration_secs)


@functools.cache
def _heard() -> _Heard:
    """Returns the total, which counts from the first call on."""
    heard = _Heard()
    jax.monitoring.register_event_duration_secs_listener(heard.listen)
    return heard
