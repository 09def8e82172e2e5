"""The budget of a run."""

import math
import time
from collections.abc import Mapping
from typing import Any

import equinox as eqx

from .ground.checks import field, integer, real
from .ground.total import LARGEST


class Budget(eqx.Module):
    """The most that a run may spend, in one unit: the same for every search.

    - `iterations`: updates of the model's parameters.
    - `gradients`: gradient equivalents, see `Counts.gradients`.
    - `epochs`: the share of the training rows that was read, see `Counts.rows`: a gradient of all rows is one epoch.
    - `seconds`: wall time, compilation included, checked between chunks.

    A step is begun as long as something is left, so a budget is exceeded by less than one step.

    **Raises** `TypeError` or `ValueError` unless exactly one is given and it is a positive number.

    **Example**

        >>> hg.Budget(gradients=1000)
        Budget(gradients=1000)
    """

    iterations: int | None = field(integer("iterations", most=LARGEST, optional=True), None)
    gradients: int | None = field(integer("gradients", most=LARGEST, optional=True), None)
    seconds: float | None = field(real("seconds", optional=True), None)
    epochs: float | None = field(real("epochs", optional=True), None)

    def __check_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        if len(given) != 1:
            raise ValueError(f"give one of iterations, gradients, seconds, epochs; got {given}")
        ((name, value),) = given.items()
        if not value > 0:
            raise ValueError(f"budget must be positive, got {name}={value}")

    @property
    def unit(self) -> str:
        """The unit: `iterations`, `gradients`, `seconds` or `epochs`."""
        return next(name for name, value in vars(self).items() if value is not None)

    @property
    def amount(self) -> float:
        """The number of these units."""
        return getattr(self, self.unit)

    @property
    def count(self) -> str | None:
        """The name of the count in `Counts` that it bounds; `None` for seconds."""
        return {"seconds": None, "epochs": "rows"}.get(self.unit, self.unit)

    def limit(self, num_rows: int) -> int:
        """Returns the count at which it is spent, where an epoch is `num_rows` rows."""
        if self.unit == "epochs":
            return min(math.ceil(self.amount * num_rows * (1 - 1e-12)), LARGEST)  # a product may be rounded up
        return LARGEST if self.count is None else min(math.ceil(self.amount), LARGEST)

    def used(self, spent: Mapping[str, int], started: float, num_rows: int) -> float:
        """Returns how much of it a search has used that has `spent` so much and began at the time `started`."""
        if self.count is None:
            return time.monotonic() - started
        return spent[self.count] / (num_rows if self.unit == "epochs" else 1)


def as_budget(budget: Any) -> Budget:
    """Returns a `Budget`; an integer means iterations."""
    return budget if isinstance(budget, Budget) else Budget(iterations=integer("budget", most=LARGEST)(budget))
