"""The state of a searcher: all that it asked for and was told, in plain values that JSON can hold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from ..ground.checks import instance
from .growing import Growing
from .plain import reading
from .space import Space
from .trial import FinishedTrial, Result, Trial, revised


class Spent(NamedTuple):
    """Work of all finished trials, in the units of a `hypergrad.Budget`."""

    iterations: float = 0
    gradients: float = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class SearcherState:
    """The state of any searcher: everything it asked for and was told.

    - `seed`: the words of the key it began with. Ask number n draws from a generator seeded by (seed, n).
    - `asked`: trials asked for.
    - `pending`: those not yet told, oldest first.
    - `history`: everything told, oldest first, foreign trials and failures included.
    """

    space: Space
    seed: tuple[int, ...]
    asked: int = 0
    pending: tuple[Trial, ...] = ()
    history: Sequence[FinishedTrial] = field(default_factory=Growing)

    @property
    def ranked(self) -> list[FinishedTrial]:
        """The trials that neither failed nor were pruned, best first; of equals the older first."""
        usable = (one for one in self.history if not (one.result.failed or one.result.pruned))
        return sorted(usable, key=lambda one: one.result.value)

    @property
    def failures(self) -> list[FinishedTrial]:
        """The trials that failed."""
        return [one for one in self.history if one.result.failed]

    @cached_property
    def best(self) -> FinishedTrial | None:
        """The first of `ranked`, if there is one."""
        return next(iter(self.ranked), None)

    @cached_property
    def num_failed(self) -> int:
        """The number of trials that failed."""
        return len(self.failures)

    @cached_property
    def spent(self) -> Spent:
        """Work of all trials, foreign ones not included."""
        own = [one.result for one in self.history if one.trial.number is not None]
        return Spent(*(sum(getattr(result, unit) for result in own) for unit in Spent._fields))

    def after_ask(self, trial: Trial) -> "SearcherState":
        """Returns the state once `trial` was asked for."""
        after = revised(self, asked=self.asked + 1, pending=(*self.pending, trial))
        vars(after).update(best=self.best, num_failed=self.num_failed, spent=self.spent)  # fills the cached properties
        return after

    def after_tell(self, trial: Trial, result: Result) -> "SearcherState":
        """Returns the state once the result of `trial` is known."""
        pending = tuple(other for other in self.pending if trial.number is None or other.number != trial.number)
        new = FinishedTrial(trial, result)
        after = revised(self, pending=pending, history=_growing(self.history).grown(new))
        usable = not (result.failed or result.pruned)
        better = usable and (self.best is None or result.value < self.best.result.value)
        more = Spent() if trial.number is None else Spent(result.iterations, result.gradients, result.seconds)
        vars(after).update(
            best=new if better else self.best,
            num_failed=self.num_failed + result.failed,
            spent=Spent(*(a + b for a, b in zip(self.spent, more, strict=True))),
        )
        return after

    def to_json(self) -> dict[str, Any]:
        """Returns a dictionary that JSON can hold."""
        return {
            "space": self.space.to_json(),
            "seed": list(self.seed),
            "asked": self.asked,
            "pending": [trial.to_json() for trial in self.pending],
            "history": [{"trial": one.trial.to_json(), "result": one.result.to_json()} for one in self.history],
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "SearcherState":
        """Inverts `to_json`. **Raises** `ValueError` for anything else."""
        with reading("found", "SearcherState"):
            told = [FinishedTrial(Trial(**one["trial"]), Result.from_json(one["result"])) for one in found["history"]]
            pending = tuple(Trial(**trial) for trial in found["pending"])
            return cls(Space.from_json(found["space"]), tuple(found["seed"]), found["asked"], pending, Growing(told))


def _growing(history: Sequence[FinishedTrial]) -> Growing[FinishedTrial]:
    return history if isinstance(history, Growing) else Growing(history)


STATE = instance("state", SearcherState, "the state that init, ask or tell returned")
