"""A count of the programs that JAX compiles, and of the seconds that takes."""

import functools
from typing import NamedTuple

import jax


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
    return Compilations(len(_listening()["number"]), sum(_listening()["seconds"]))


@functools.cache
def _listening() -> dict[str, list[float]]:
    """Returns lists that JAX's own monitoring appends to."""
    heard: dict[str, list[float]] = {"number": [], "seconds": []}

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            heard["number"].append(1)
        if event in ("/jax/core/compile/backend_compile_duration", "/jax/core/compile/jaxpr_to_mlir_module_duration"):
            heard["seconds"].append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return heard
