"""The budget of a run."""

import time
from typing import Any

import equinox as eqx

from .ground.checks import field, integer, real
from .ground.total import LARGEST


class Budget(eqx.Module):
    """The most that a run may spend, in one unit: the same for every search.

    - `iterations`: updates of the model's parameters.
    - `gradients`: gradient equivalents, see `Counts.gradients`.
    - `seconds`: wall time, compilation included, looked at between chunks.

    A step is begun as long as something is left, so a budget is exceeded by less than one step.

    **Raises** `TypeError` or `ValueError` unless exactly one is given and it is a positive number.
    """

    iterations: int | None = field(integer("iterations", most=LARGEST, optional=True), None)
    gradients: int | None = field(integer("gradients", most=LARGEST, optional=True), None)
    seconds: float | None = field(real("seconds", optional=True), None)

    def __check_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        if len(given) != 1:
            raise ValueError(f"give one of iterations, gradients, seconds; got {given}")
        ((name, value),) = given.items()
        if not value > 0:
            raise ValueError(f"budget must be positive, got {name}={value}")

    @property
    def unit(self) -> str:
        """The unit: `iterations`, `gradients` or `seconds`."""
        return next(name for name, value in vars(self).items() if value is not None)

    @property
    def amount(self) -> float:
        """The number of these units."""
        return getattr(self, self.unit)

    def used(self, spent: Any, started: float) -> float:
        """Returns how much of it a search has used that has `spent` so much and began at the time `started`."""
        return time.monotonic() - started if self.unit == "seconds" else int(getattr(spent, self.unit))

    def is_spent(self, spent: Any, started: float) -> bool:
        """Says if nothing of it is left."""
        return self.used(spent, started) >= self.amount


def as_budget(budget: Any) -> Budget:
    """Returns a `Budget`; an integer means iterations."""
    return budget if isinstance(budget, Budget) else Budget(iterations=integer("budget", most=LARGEST)(budget))
