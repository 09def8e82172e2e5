"""Schedules of the relative tolerance ε_k of `HOAG`. **Source**: Pedregosa (2016), section 4."""

from collections.abc import Callable

import optax
from jaxtyping import Array

from .ground.checks import checked, real

Schedule = Callable[[Array], Array]  # hyper-step k = 0, 1, ... -> relative tolerance
INITIAL = real("initial", above=0)


@checked(INITIAL, real("rate", above=0, below=1))
def exponential(initial: float = 1e-3, rate: float = 0.9) -> Schedule:
    """Returns k -> ε_k = initial · rate^k.

    **Example**

        >>> [round(float(hg.tolerances.exponential()(k)), 6) for k in range(3)]
        [0.001, 0.0009, 0.00081]
    """
    return optax.exponential_decay(initial, 1, rate)


@checked(INITIAL)
def quadratic(initial: float = 0.1) -> Schedule:
    """Returns k -> ε_k = initial / (k + 1)².

    **Example**

        >>> [round(float(hg.tolerances.quadratic()(k)), 6) for k in range(3)]
        [0.1, 0.025, 0.011111]
    """
    return lambda k: initial / (k + 1.0) ** 2


@checked(INITIAL)
def cubic(initial: float = 0.1) -> Schedule:
    """Returns k -> ε_k = initial / (k + 1)³.

    **Example**

        >>> [round(float(hg.tolerances.cubic()(k)), 6) for k in range(3)]
        [0.1, 0.0125, 0.003704]
    """
    return lambda k: initial / (k + 1.0) ** 3
