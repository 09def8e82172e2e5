"""Trials, their results, and the state of a search: plain values that JSON can hold."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .space import Params, Space


@dataclass(frozen=True)
class Trial:
    """One set of hyperparameters to train with.

    - `number`: its place in the search that asked for it; `None` for a foreign trial, told but never asked.
    - `params`: values of the active leaves.
    - `fidelity`: the fraction of the training data to use, in (0, 1].
    - `meta`: how the searcher came to it.
    """

    number: int | None
    params: Params
    fidelity: float = 1.0
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """What training with a trial gave; lower is better.

    - `value`: the validation loss. A trial whose value is not finite has failed.
    - `cost`: seconds it took, compilation included; `compilations` and `compile_seconds` say how much that was.
    - `size`: cost of using the trained model, e.g. its number of parameters.
    - `tuned`: hyperparameters that moved within the trial, at their last values: they replace the trial's own.
    - `block_norms`: mean norm of the hypergradient over each block, a free measure of importance.
    - `block_scores`: how good each block is by itself, lower is better, where that can be said.
    - `metrics`: further numbers.
    - `error`: why the trial failed.
    """

    value: float
    cost: float = 0.0
    compilations: int = 0
    compile_seconds: float = 0.0
    size: float | None = None
    tuned: dict[str, Any] = field(default_factory=dict)
    block_norms: dict[str, float] = field(default_factory=dict)
    block_scores: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    error: str | None = None

    @property
    def failed(self) -> bool:
        """Whether there is no finite value."""
        return self.error is not None or not math.isfinite(self.value)

    @classmethod
    def failure(cls, error: str, **more: Any) -> "Result":
        """A result without a value."""
        return cls(math.inf, error=error, **more)

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it: numbers that are not finite by name."""
        return _without_infinities(asdict(self))

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Result":
        """The inverse of `to_json`."""
        return cls(**_with_infinities(dict(found)))


def _without_infinities(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_infinities(item) for key, item in value.items()}
    return {"not finite": repr(value)} if isinstance(value, float) and not math.isfinite(value) else value


def _with_infinities(value: Any) -> Any:
    if isinstance(value, dict):
        if set(value) == {"not finite"}:
            return float(value["not finite"])
        return {key: _with_infinities(item) for key, item in value.items()}
    return value


@dataclass(frozen=True)
class FinishedTrial:
    """A trial with its result."""

    trial: Trial
    result: Result


@dataclass(frozen=True)
class SearcherState:
    """All that any searcher carries: what it asked for and what it was told.

    - `seed`: the words of the key it began with. Ask number n draws from a generator seeded by (seed, n).
    - `asked`: trials asked for.
    - `pending`: those not yet told, oldest first.
    - `history`: everything told, oldest first, foreign trials and failures included.
    """

    space: Space
    seed: tuple[int, ...]
    asked: int = 0
    pending: tuple[Trial, ...] = ()
    history: tuple[FinishedTrial, ...] = ()

    @property
    def complete(self) -> list[FinishedTrial]:
        """What did not fail, best first; of equals the older first."""
        return sorted((told for told in self.history if not told.result.failed), key=lambda told: told.result.value)

    @property
    def best(self) -> FinishedTrial | None:
        """The best so far; `None` before the first that did not fail."""
        return next(iter(self.complete), None)

    @property
    def failures(self) -> list[FinishedTrial]:
        """What failed."""
        return [told for told in self.history if told.result.failed]

    def after_ask(self, trial: Trial) -> "SearcherState":
        """The state once `trial` was asked for."""
        return replace(self, asked=self.asked + 1, pending=(*self.pending, trial))

    def after_tell(self, trial: Trial, result: Result) -> "SearcherState":
        """The state once the result of `trial` is known."""
        pending = tuple(other for other in self.pending if trial.number is None or other.number != trial.number)
        return replace(self, pending=pending, history=(*self.history, FinishedTrial(trial, result)))

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "space": self.space.to_json(),
            "seed": list(self.seed),
            "asked": self.asked,
            "pending": [asdict(trial) for trial in self.pending],
            "history": [{"trial": asdict(told.trial), "result": told.result.to_json()} for told in self.history],
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "SearcherState":
        """The inverse of `to_json`."""
        history = (FinishedTrial(Trial(**one["trial"]), Result.from_json(one["result"])) for one in found["history"])
        pending = tuple(Trial(**trial) for trial in found["pending"])
        return cls(Space.from_json(found["space"]), tuple(found["seed"]), found["asked"], pending, tuple(history))
