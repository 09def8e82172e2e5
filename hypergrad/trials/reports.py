"""The values that a trial reports while it trains."""

from collections.abc import Callable

from ..ground.checks import Rule, checked, integer
from .plain import number


class Report:
    """The values that a trial reports."""

    def __init__(self, is_hopeless: Callable[[int, float], bool] | None):
        self.values: list[list[float]] = []
        self.is_hopeless = is_hopeless

    @checked(integer("step", least=0), Rule("value", "a number", number))
    def __call__(self, step: int, value: float) -> bool:
        """Keeps a value, and returns whether the trial would be stopped."""
        self.values.append([step, float(value)])
        return self.is_hopeless is not None and self.is_hopeless(step, float(value))
