"""Search spaces: named leaves in blocks, some of them conditional."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

Params = dict[str, Any]  # name -> value, of the active leaves only


@dataclass(frozen=True)
class When:
    """A condition under which a leaf is active: its parent is active and has a certain value.

    Give one of `at_least` (for numbers) and `one_of` (a tuple of values).
    """

    parent: str
    at_least: float | None = None
    one_of: tuple[Any, ...] | None = None

    def __post_init__(self) -> None:
        if (self.at_least is None) == (self.one_of is None):
            raise ValueError(f"When({self.parent!r}) needs one of at_least and one_of")
        if self.one_of is not None:
            object.__setattr__(self, "one_of", tuple(self.one_of))

    def holds(self, params: Mapping[str, Any]) -> bool:
        """Returns True if these values meet it."""
        if self.parent not in params:
            return False
        value = params[self.parent]
        return value in self.one_of if self.one_of is not None else value >= self.at_least


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """The block (subnetwork) that a leaf belongs to, `None` for shared ones, and its condition."""

    block: str | None = None
    when: When | None = None


def _bounds(leaf: Any) -> None:
    kind = type(leaf).__name__
    for end in (leaf.low, leaf.high):
        if isinstance(end, bool) or not isinstance(end, int | float | np.number) or not math.isfinite(end):
            raise ValueError(f"{kind} needs finite bounds, got {leaf.low!r} and {leaf.high!r}")
    if leaf.low > leaf.high:
        raise ValueError(f"{kind} has low {leaf.low} above high {leaf.high}")
    if leaf.log and leaf.low <= 0:
        raise ValueError(f"{kind} with log=True needs a positive low, got {leaf.low}")


@dataclass(frozen=True)
class Float(Leaf):
    """A number in [low, high], uniform or, with `log`, uniform in its logarithm."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        _bounds(self)

    def checked(self, value: Any) -> float:
        """Returns the value as a Python number. **Raises** `ValueError` where it does not fit."""
        if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.number):
            raise ValueError(f"must be a number, got {value!r}")
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


@dataclass(frozen=True)
class Int(Leaf):
    """An integer from low to high, both included; with `log`, small ones are more likely."""

    low: int
    high: int
    log: bool = False

    def __post_init__(self) -> None:
        _bounds(self)
        for end in (self.low, self.high):
            if not isinstance(end, int | np.integer):
                raise ValueError(f"Int needs integer bounds, got {self.low!r} and {self.high!r}")

    def checked(self, value: Any) -> int:
        """Returns the value as a Python number. **Raises** `ValueError` where it does not fit."""
        if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
            raise ValueError(f"must be an integer, got {value!r}")
        if not self.low <= value <= self.high:
            raise ValueError(f"must lie in [{self.low}, {self.high}], got {value}")
        return int(value)

    def _cells(self) -> Float:
        return Float(self.low - 0.5, self.high + 0.5, self.log)

    def encode(self, value: int) -> float:
        """Returns the position of a value in [0, 1]."""
        return self._cells().encode(value)

    def decode(self, position: float) -> int:
        """Returns the value at a position in [0, 1]."""
        return int(min(max(math.floor(self._cells().decode(position) + 0.5), self.low), self.high))


@dataclass(frozen=True)
class Categorical(Leaf):
    """One of several values: strings, numbers, booleans or `None`, which JSON can hold."""

    choices: tuple[Any, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "choices", tuple(self.choices))
        if not self.choices or len(set(self.choices)) < len(self.choices):
            raise ValueError(f"Categorical needs choices that differ, got {self.choices}")
        if wrong := [c for c in self.choices if not (c is None or isinstance(c, bool | int | float | str))]:
            raise ValueError(f"Categorical takes strings, numbers, booleans and None, got {wrong[0]!r}")

    def checked(self, value: Any) -> Any:
        """Returns the choice that equals the value. **Raises** `ValueError` where none does."""
        for choice in self.choices:
            if choice == value and isinstance(choice, bool) == isinstance(value, bool | np.bool_):
                return choice
        raise ValueError(f"must be one of {self.choices}, got {value!r}")

    def encode(self, value: Any) -> float:
        """Returns the position of a value in [0, 1]."""
        return (self.choices.index(value) + 0.5) / len(self.choices)

    def decode(self, position: float) -> Any:
        """Returns the value at a position in [0, 1]."""
        return self.choices[min(int(position * len(self.choices)), len(self.choices) - 1)]


AnyLeaf = Float | Int | Categorical
KINDS = {kind.__name__: kind for kind in (Float, Int, Categorical)}  # as files name them


@dataclass(frozen=True)
class Space:
    """Named leaves in a fixed order, parents before the leaves that depend on them.

        Space({"layers": Int(1, 3, block="net"), "units_3": Int(8, 64, block="net", when=When("layers", at_least=3)),
               "lr": Float(1e-4, 1e-1, log=True)})

    **Raises** `TypeError` or `ValueError`, naming the leaf, for what is no leaf, or a condition on a later or unknown
    leaf or one that cannot hold.
    """

    leaves: Mapping[str, AnyLeaf]

    def __post_init__(self) -> None:
        if not self.leaves:
            raise ValueError("the space has no leaves")
        earlier: dict[str, AnyLeaf] = {}
        for name, leaf in self.leaves.items():
            if not isinstance(name, str) or not isinstance(leaf, Float | Int | Categorical):
                raise TypeError(f"leaf {name!r} must be a name with a Float, Int or Categorical, got {leaf!r}")
            if leaf.when is not None:
                _check_condition(name, leaf.when, earlier)
            earlier[name] = leaf
        object.__setattr__(self, "leaves", earlier)

    @property
    def blocks(self) -> dict[str, tuple[str, ...]]:
        """Names of the leaves of every block, in order of appearance; shared leaves are in none."""
        found: dict[str, tuple[str, ...]] = {}
        for name, leaf in self.leaves.items():
            if leaf.block is not None:
                found[leaf.block] = (*found.get(leaf.block, ()), name)
        return found

    def active(self, params: Mapping[str, Any]) -> tuple[str, ...]:
        """Returns the leaves that are active at these values. **Raises** `ValueError` for one without a value."""
        known: Params = {}
        for name, leaf in self.leaves.items():
            if leaf.when is None or leaf.when.holds(known):
                if name not in params:
                    raise ValueError(f"params lacks {name!r}")
                known[name] = params[name]
        return tuple(known)

    def checked(self, params: Mapping[str, Any]) -> Params:
        """Returns the same values, in order and as Python's own types.

        **Raises** `ValueError` naming the leaf that is unknown, missing, not active, of a wrong type or out of range.
        """
        given = self.checked_some(params)
        active = self.active(given)
        if extra := [name for name in given if name not in active]:
            raise ValueError(f"params has {extra[0]!r}, which is not active where {self.leaves[extra[0]].when}")
        return {name: given[name] for name in active}

    def checked_some(self, values: Mapping[str, Any]) -> Params:
        """Returns values of some of the leaves, checked one by one. **Raises** `ValueError` as `checked`."""
        if unknown := [name for name in values if name not in self.leaves]:
            raise ValueError(f"{unknown[0]!r} is not in the space, which has {', '.join(self.leaves)}")
        checked = {}
        for name, value in values.items():
            try:
                checked[name] = self.leaves[name].checked(value)
            except ValueError as error:
                raise ValueError(f"{name} {error}") from None
        return checked

    def restrict(self, block: str | None, at: Mapping[str, Any]) -> Params:
        """Returns the values to hold fixed so that `block` (`None`: the shared leaves) moves alone from `at`.

        **Raises** `ValueError` for a block that is not in the space.
        """
        if block is not None and block not in self.blocks:
            raise ValueError(f"block {block!r} is not in the space, which has {', '.join(self.blocks) or 'none'}")
        return {name: value for name, value in self.checked(at).items() if self.leaves[name].block != block}

    def encode(self, params: Mapping[str, Any]) -> np.ndarray:
        """Returns a point of the unit cube, one coordinate per leaf; 1/2 where a leaf is not active."""
        return np.array([leaf.encode(params[name]) if name in params else 0.5 for name, leaf in self.leaves.items()])

    def decode(self, point: Iterable[float], fixed: Mapping[str, Any] = MappingProxyType({})) -> Params:
        """Returns the values at a point of the unit cube, those in `fixed` taking precedence.

        Fixed leaves that turn out not to be active are left out.
        """
        params: Params = {}
        for (name, leaf), position in zip(self.leaves.items(), point, strict=True):
            if leaf.when is None or leaf.when.holds(params):
                params[name] = fixed[name] if name in fixed else leaf.decode(float(position))
        return params

    def to_json(self) -> list[dict[str, Any]]:
        """Returns a list that JSON can hold."""
        return [{"name": name, "kind": type(leaf).__name__} | asdict(leaf) for name, leaf in self.leaves.items()]

    @classmethod
    def from_json(cls, leaves: Iterable[Mapping[str, Any]]) -> "Space":
        """Inverts `to_json`."""
        found = {}
        for leaf in leaves:
            rest = {key: value for key, value in leaf.items() if key not in ("name", "kind", "when")}
            found[leaf["name"]] = KINDS[leaf["kind"]](**rest, when=When(**leaf["when"]) if leaf["when"] else None)
        return cls(found)


def _check_condition(name: str, when: When, earlier: Mapping[str, AnyLeaf]) -> None:
    if when.parent not in earlier:
        raise ValueError(f"leaf {name!r} depends on {when.parent!r}, which is not an earlier leaf")
    parent = earlier[when.parent]
    if when.one_of is not None:
        for value in when.one_of:
            try:
                parent.checked(value)
            except ValueError as error:
                raise ValueError(f"leaf {name!r} depends on {when.parent!r}, which {error}") from None
    elif isinstance(parent, Categorical):
        raise ValueError(f"leaf {name!r} has at_least on {when.parent!r}, which is categorical: use one_of")
    elif when.at_least is not None and when.at_least > parent.high:
        raise ValueError(f"leaf {name!r} needs {when.parent!r} >= {when.at_least}, but it ends at {parent.high}")
