"""Search spaces: named leaves in blocks, some of them conditional."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from ..ground import checks
from ..ground.checks import Rule, check_fields, instance, shown, text
from .leaves import Categorical, Float, Int, When
from .plain import reading

Params = dict[str, Any]  # name -> value, of the active leaves only
AnyLeaf = Float | Int | Categorical
KINDS = {kind.__name__: kind for kind in (Float, Int, Categorical)}  # as files name them


LEAVES = instance("leaves", Mapping, "a dictionary from names to Float, Int or Categorical")


def _point(value: Any) -> np.ndarray:
    found = np.asarray(value if isinstance(value, np.ndarray) else list(value))
    if found.dtype.kind not in "iuf" or found.ndim != 1:
        raise TypeError
    if not np.all((found >= 0) & (found <= 1)):
        raise ValueError
    return found


POINT = Rule("point", "one number from 0 to 1 for each leaf", _point)
PARAMS = instance("params", Mapping, "a dictionary from names of leaves to values")


@dataclass(frozen=True)
class Space:
    """Named leaves in a fixed order, parents before the leaves that depend on them.

        Space({"layers": Int(1, 3, block="net"), "units_3": Int(8, 64, block="net", when=When("layers", at_least=3)),
               "lr": Float(1e-4, 1e-1, log=True)})

    **Raises** `TypeError` or `ValueError`, naming the leaf, for what is no leaf, or a condition on a later or unknown
    leaf or one that cannot hold.

    **Example**

        >>> space.decode([0.5, 0.5])["units"], space.blocks
        (22, {'net': ('units',), 'optimiser': ('lr',)})
    """

    leaves: Mapping[str, AnyLeaf]

    def __post_init__(self) -> None:
        check_fields(self, LEAVES)
        if not self.leaves:
            raise ValueError("leaves is empty: the space has no leaves")
        earlier: dict[str, AnyLeaf] = {}
        for name, leaf in self.leaves.items():
            if not isinstance(name, str) or not isinstance(leaf, Float | Int | Categorical):
                raise TypeError(f"leaves[{name!r}] must be a Float, Int or Categorical by its name, got {leaf!r}")
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

    @checks.checked(PARAMS)
    def active(self, params: Mapping[str, Any]) -> tuple[str, ...]:
        """Returns the leaves that are active at these values. **Raises** `ValueError` for one without a value."""
        return self._active(params)

    def _active(self, params: Mapping[str, Any]) -> tuple[str, ...]:
        known: Params = {}
        for name, leaf in self.leaves.items():
            if leaf.when is None or leaf.when.holds(known):
                if name not in params:
                    raise ValueError(f"params lacks {name!r}")
                known[name] = params[name]
        return tuple(known)

    @checks.checked(PARAMS)
    def checked(self, params: Mapping[str, Any]) -> Params:
        """Returns the same values, in order and as Python's own types.

        **Raises** `ValueError` naming the leaf that is unknown, missing, not active, of a wrong type or out of range.
        """
        given = self.checked_some(params, "params")
        active = self._active(given)
        if extra := [name for name in given if name not in active]:
            raise ValueError(f"params has {extra[0]!r}, which is not active where {self.leaves[extra[0]].when}")
        return {name: given[name] for name in active}

    def checked_some(self, values: Mapping[str, Any], argument: str) -> Params:
        """Returns values of some of the leaves, checked one by one. **Raises** `ValueError` naming the argument."""
        if unknown := [name for name in values if name not in self.leaves]:
            names = ", ".join(self.leaves)
            raise ValueError(f"{shown(unknown[0])} is not in the space, which has {names} (in {argument})")
        checked = {}
        for name, value in values.items():
            try:
                checked[name] = self.leaves[name].checked(value)
            except ValueError as error:
                raise ValueError(f"{name} {error} (in {argument})") from None
        return checked

    @checks.checked(
        text("block", optional=True), instance("at", Mapping, "a dictionary from names of leaves to values")
    )
    def restrict(self, block: str | None, at: Mapping[str, Any]) -> Params:
        """Returns the values to hold fixed so that `block` (`None`: the shared leaves) moves alone from `at`.

        **Raises** `ValueError` for a block that is not in the space.
        """
        if block is not None and block not in self.blocks:
            raise ValueError(f"block {block!r} is not in the space, which has {', '.join(self.blocks) or 'none'}")
        try:
            given = self.checked(at)
        except ValueError as error:
            raise ValueError(f"at must have a value for every leaf: {error}") from None
        return {name: value for name, value in given.items() if self.leaves[name].block != block}

    @checks.checked(PARAMS)
    def encode(self, params: Mapping[str, Any]) -> np.ndarray:
        """Returns a point of the unit cube, one coordinate per leaf; 1/2 where a leaf is not active.

        **Raises** `ValueError` naming the leaf that is unknown or whose value does not fit.
        """
        params = self.checked_some(params, "params")
        return np.array([leaf.encode(params[name]) if name in params else 0.5 for name, leaf in self.leaves.items()])

    @checks.checked(POINT, instance("fixed", Mapping, "a dictionary from names of leaves to values"))
    def decode(self, point: Iterable[float], fixed: Mapping[str, Any] = MappingProxyType({})) -> Params:
        """Returns the values at a point of the unit cube, those in `fixed` taking precedence.

        Fixed leaves that turn out not to be active are left out.
        """
        if len(point) != len(self.leaves):  # type: ignore[arg-type]
            raise ValueError(f"point must have {len(self.leaves)} numbers, one for each leaf, got {point}")
        return self.decoded(np.asarray(point), fixed)

    def decoded(self, point: np.ndarray, fixed: Mapping[str, Any]) -> Params:
        """Returns what `decode` does, of a point that is known to fit."""
        params: Params = {}
        for (name, leaf), position in zip(self.leaves.items(), point.tolist(), strict=True):
            if leaf.when is None or leaf.when.holds(params):
                params[name] = fixed[name] if name in fixed else leaf.decode(position)
        return params

    def to_json(self) -> list[dict[str, Any]]:
        """Returns a list that JSON can hold."""
        return [{"name": name, "kind": type(leaf).__name__} | asdict(leaf) for name, leaf in self.leaves.items()]

    @classmethod
    def from_json(cls, leaves: Iterable[Mapping[str, Any]]) -> "Space":
        """Inverts `to_json`. **Raises** `ValueError` for anything else."""
        found = {}
        with reading("leaves", "Space"):
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
