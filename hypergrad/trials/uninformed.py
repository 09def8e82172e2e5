"""Searchers that learn nothing: random, quasi-random, grid, a list."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ensembles.ground.memory import refuse_too_large

from ..ground.checks import Rule, checked, field, instance, integer, several
from .leaves import Categorical, Int
from .searcher import SPACE, AbstractSearcher, Proposal
from .space import Params, Space
from .state import SearcherState
from .trial import Result, Trial
from .uncopied import Uncopied, uncopied_field


class Random(AbstractSearcher):
    """Random search: every leaf drawn by itself, uniformly over its range (or its logarithm).

    **Source**: Bergstra and Bengio (2012).

    **Example**

        >>> state = hg.trials.search_trials(hg.trials.Random(), space, objective, key=key, num_trials=20)
        >>> print(f"{state.best.result.value:.3f} with {state.best.trial.params['units']} units")
        0.001 with 20 units
    """

    def propose(self, state: SearcherState, random: np.random.Generator, fixed: Mapping[str, Any]) -> Proposal:
        """Proposes a random point of the unit cube."""
        return state.space.decoded(random.random(len(state.space.leaves)), fixed), {}

    def publish(self, state: SearcherState, trial: Trial, result: Result) -> None:
        """Does nothing."""


class Sobol(AbstractSearcher):
    """A scrambled Sobol sequence over the unit cube: more even than random.

    Ask number n takes point n. A strategy that asks it only now and then leaves out the points between.

    **Raises** `ValueError` at an ask for a space of more than 21,201 leaves.

    **Source**: Sobol (1967); Owen (1998) for the scrambling; Bergstra and Bengio (2012) for their use here.

    **Example**

        >>> state = hg.trials.search_trials(hg.trials.Sobol(), space, objective, key=key, num_trials=20)
        >>> print(f"{state.best.result.value:.3f} with {state.best.trial.params['units']} units")
        0.009 with 20 units
    """

    def propose(self, state: SearcherState, random: np.random.Generator, fixed: Mapping[str, Any]) -> Proposal:
        """Proposes point number `state.asked` of the sequence."""
        from scipy.stats import qmc

        if (number := len(state.space.leaves)) > qmc.Sobol.MAXDIM:
            raise ValueError(f"space has {number} leaves, and Sobol sequences have at most {qmc.Sobol.MAXDIM}")
        sequence = qmc.Sobol(number, rng=np.random.default_rng(state.seed))
        if state.asked:
            sequence.fast_forward(state.asked)
        return state.space.decode(sequence.random(1)[0], fixed), {}

    def publish(self, state: SearcherState, trial: Trial, result: Result) -> None:
        """Does nothing."""


class _Kept(Uncopied):
    """The combinations of the latest ask, and what they are of."""

    latest: tuple[Space, Mapping[str, Any], list[Params]] | None = None


class Grid(AbstractSearcher):
    """All combinations of `points` values per leaf, for plots: the last leaf moves fastest.

    Integers and choices of which there are fewer than `points` take each value once. Once all combinations have been
    asked for it begins again; `size(space)` tells how many there are.

    **Raises** `MemoryError` at the first ask where these are too many.

    **Example**

        >>> hg.trials.Grid(3).size(space)
        9
    """

    points: int = field(integer("points", least=1))
    kept: _Kept = uncopied_field(_Kept)

    def combinations(self, space: Space, fixed: Mapping[str, Any]) -> list[Params]:
        """Returns all combinations, each once: leaves that are not active do not count."""
        free = [name for name in space.leaves if name not in fixed]
        most = math.prod(self._number(space.leaves[name]) for name in free)
        refuse_too_large(most * 100.0 * len(space.leaves), "points", "the grid")
        values = [[fixed[name]] if name in fixed else self._values(leaf) for name, leaf in space.leaves.items()]
        found: dict[tuple[Any, ...], Params] = {}
        for chosen in itertools.product(*values):
            params = space.decode(np.full(len(values), 0.5), dict(zip(space.leaves, chosen, strict=True)))
            found.setdefault(tuple(params.items()), params)
        return list(found.values())

    @checked(SPACE)
    def size(self, space: Space) -> int:
        """Returns the number of combinations."""
        return len(self.combinations(space, {}))

    def propose(self, state: SearcherState, random: np.random.Generator, fixed: Mapping[str, Any]) -> Proposal:
        """Proposes the next combination in order."""
        latest = self.kept.latest
        if latest is None or latest[0] is not state.space or latest[1] != fixed:
            latest = self.kept.latest = state.space, dict(fixed), self.combinations(state.space, fixed)
        every = latest[2]
        return dict(every[state.asked % len(every)]), {}

    def publish(self, state: SearcherState, trial: Trial, result: Result) -> None:
        """Does nothing."""

    def _number(self, leaf: Any) -> int:
        """Returns the number of values of a leaf."""
        if isinstance(leaf, Categorical):
            return len(leaf.choices)
        return min(leaf.high - leaf.low + 1, self.points) if isinstance(leaf, Int) else self.points

    def _values(self, leaf: Any) -> list[Any]:
        if isinstance(leaf, Categorical):
            return list(leaf.choices)
        is_small = isinstance(leaf, Int) and leaf.high - leaf.low < self.points
        positions = (np.arange(self.points) + 0.5) / self.points if self.points == 1 else np.linspace(0, 1, self.points)
        return list(range(leaf.low, leaf.high + 1)) if is_small else list(dict.fromkeys(map(leaf.decode, positions)))


def _origins(value: Any) -> tuple[int | None, ...]:
    if isinstance(value, str | bytes):
        raise TypeError
    return tuple(integer("origins", least=0, optional=True)(one) for one in value)


class FixedList(AbstractSearcher):
    """A list of values to try in order, and a searcher for afterwards.

    - `listed`: the params of each trial.
    - `origins`: the numbers of the trials that these repeat, for `Trial.meta["origin"]`.
    - `then`: asked once the list is exhausted. Its asks are numbered on.

    **Example**

        >>> listed = hg.trials.FixedList([{"units": 16, "lr": 0.01}], then=hg.trials.Random())
        >>> state = hg.trials.search_trials(listed, space, objective, key=key, num_trials=2)
        >>> state.history[0].trial.params
        {'units': 16, 'lr': 0.01}
    """

    listed: tuple[Params, ...]
    origins: tuple[int | None, ...]
    then: AbstractSearcher | None

    @checked(
        several("listed", Mapping, "a list of dictionaries from names to values"),
        Rule("origins", "a list of numbers of trials and None", _origins, optional=True),
        instance("then", AbstractSearcher, "a searcher", optional=True),
    )
    def __init__(
        self,
        listed: Sequence[Params],
        *,
        origins: Sequence[int | None] | None = None,
        then: AbstractSearcher | None = None,
    ):
        self.listed, self.then = tuple(listed), then
        self.origins = tuple([None] * len(self.listed) if origins is None else origins)
        if len(self.origins) != len(self.listed):
            raise ValueError(f"origins must have one entry for each of {len(self.listed)} trials, got {origins}")

    def propose(self, state: SearcherState, random: np.random.Generator, fixed: Mapping[str, Any]) -> Proposal:
        """Proposes the next of the list. **Raises** `ValueError` at its end if nothing comes after."""
        if state.asked < len(self.listed):
            origin = self.origins[state.asked]
            try:
                listed = state.space.checked(self.listed[state.asked])
            except ValueError as error:
                raise ValueError(f"listed[{state.asked}]: {error}") from None
            params = state.space.decode(state.space.encode(listed), listed | dict(fixed))
            return params, {} if origin is None else {"origin": origin}
        if self.then is None:
            raise ValueError(f"only {len(self.listed)} trials are listed")
        return self.then.propose(state, random, fixed)

    def publish(self, state: SearcherState, trial: Trial, result: Result) -> None:
        """Leaves it to the searcher that comes afterwards."""
        if self.then is not None:
            self.then.publish(state, trial, result)
