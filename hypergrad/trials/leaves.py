"""Leaves of search spaces, some of them conditional."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..ground.checks import Rule, boolean, check_fields, instance, integer, real, shown, text
from ..ground.show import show_fields


def _distinct(values: Any) -> tuple[Any, ...]:
    """Returns strings, finite numbers, booleans and `None` that differ, as a tuple."""
    if isinstance(values, str | bytes | bytearray | memoryview | dict | np.ndarray):
        raise TypeError
    found = tuple(map(_plain, values))
    if not found or len(set(found)) < len(found):
        raise ValueError
    return found


def _plain(value: Any) -> Any:
    """Returns a string, a number, a boolean or `None` as it comes back from a journal."""
    value = value.item() if isinstance(value, np.integer | np.floating | np.bool_) else value
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError
    for kind, convert in ((str, str.__str__), (int, int), (float, float)):
        if isinstance(value, kind):
            return convert(value)
    raise TypeError


CHOICES = Rule("choices", "strings, finite numbers, booleans or None that differ", _distinct)
VALUES = Rule("one_of", "strings, finite numbers, booleans or None that differ", _distinct, optional=True)


@dataclass(frozen=True)
class When:
    """A condition under which a leaf is active: its parent is active and has a certain value.

    Give one of `at_least` (for numbers) and `one_of` (a tuple of values).

    **Example**

        >>> hg.trials.When("layers", at_least=2).holds({"layers": 3})
        True
    """

    parent: str
    at_least: float | None = None
    one_of: tuple[Any, ...] | None = None

    def __post_init__(self) -> None:
        check_fields(self, text("parent"), real("at_least", optional=True), VALUES)
        if (self.at_least is None) == (self.one_of is None):
            raise ValueError(f"When({self.parent!r}) needs one of at_least and one_of")

    def __repr__(self) -> str:
        """Shows what is not as it is by default."""
        return show_fields(self)

    def holds(self, params: Mapping[str, Any]) -> bool:
        """Returns whether these values meet it."""
        if self.parent not in params:
            return False
        value = params[self.parent]
        return value in self.one_of if self.one_of is not None else value >= self.at_least


WHEN = instance("when", When, "a When", optional=True)


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """The block (subnetwork) that a leaf belongs to, `None` for shared ones, and its condition."""

    block: str | None = None
    when: When | None = None

    def __post_init__(self) -> None:
        check_fields(self, text("block", optional=True), WHEN)

    def __repr__(self) -> str:
        """Shows what is not as it is by default."""
        return show_fields(self)


def _check_bounds(leaf: Any, bound: Callable[[str], Rule]) -> None:
    kind = type(leaf).__name__
    check_fields(leaf, bound("low"), bound("high"), boolean("log"))
    if leaf.low > leaf.high:
        raise ValueError(f"{kind} has low {leaf.low} above high {leaf.high}")
    if leaf.log and leaf.low <= 0:
        raise ValueError(f"{kind} with log=True needs a positive low, got {leaf.low}")


@dataclass(frozen=True, repr=False)
class Float(Leaf):
    """A number in [low, high], uniform or, with `log`, uniform in its logarithm.

    **Example**

        >>> round(hg.trials.Float(1e-4, 1e-2, log=True).decode(0.5), 6)
        0.001
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_bounds(self, real)
        if not math.isfinite(self.high - self.low):
            raise ValueError(f"Float has low {self.low} and high {self.high}, too far apart for floating numbers")

    def checked(self, value: Any) -> float:
        """Returns the value as a Python number. **Raises** `ValueError` where it does not fit."""
        if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.number):
            raise ValueError(f"must be a number, got {shown(value)}")
        if not self.low <= value <= self.high:
            raise ValueError(f"must lie in [{self.low}, {self.high}], got {value}")
        return float(value)

    def encode(self, value: float) -> float:
        """Returns the position of a value in [0, 1]."""
        low, high, value = (math.log(x) if self.log else x for x in (self.low, self.high, value))
        return (value - low) / (high - low) if high > low else 0.5

    def decode(self, position: float) -> float:
        """Returns the value at a position in [0, 1]."""
        low, high = (math.log(x) if self.log else x for x in (self.low, self.high))
        value = low + (high - low) * position
        return float(min(max(math.exp(value) if self.log else value, self.low), self.high))


@dataclass(frozen=True, repr=False)
class Int(Leaf):
    """An integer from low to high, both included; with `log`, small ones are more likely.

    **Example**

        >>> [hg.trials.Int(1, 3).decode(position) for position in (0.0, 0.5, 1.0)]
        [1, 2, 3]
    """

    low: int
    high: int
    log: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_bounds(self, integer)

    def checked(self, value: Any) -> int:
        """Returns the value as a Python number. **Raises** `ValueError` where it does not fit."""
        if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
            raise ValueError(f"must be an integer, got {shown(value)}")
        if not self.low <= value <= self.high:
            raise ValueError(f"must lie in [{self.low}, {self.high}], got {value}")
        return int(value)

    @cached_property
    def _cells(self) -> Float:
        return Float(self.low - 0.5, self.high + 0.5, self.log)

    def encode(self, value: int) -> float:
        """Returns the position of a value in [0, 1]."""
        return self._cells.encode(value)

    def decode(self, position: float) -> int:
        """Returns the value at a position in [0, 1]."""
        return int(min(max(math.floor(self._cells.decode(position) + 0.5), self.low), self.high))


@dataclass(frozen=True, repr=False)
class Categorical(Leaf):
    """One of several values: strings, numbers, booleans or `None`, which JSON can hold.

    **Example**

        >>> hg.trials.Categorical(("relu", "tanh")).decode(0.7)
        'tanh'
    """

    choices: tuple[Any, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, CHOICES)

    def checked(self, value: Any) -> Any:
        """Returns the choice that equals the value. **Raises** `ValueError` where none does."""
        for choice in self.choices:
            if choice == value and isinstance(choice, bool) == isinstance(value, bool | np.bool_):
                return choice
        raise ValueError(f"must be one of {self.choices}, got {shown(value)}")

    def encode(self, value: Any) -> float:
        """Returns the position of a value in [0, 1]."""
        return (self.choices.index(value) + 0.5) / len(self.choices)

    def decode(self, position: float) -> Any:
        """Returns the value at a position in [0, 1]."""
        return self.choices[min(int(position * len(self.choices)), len(self.choices) - 1)]
