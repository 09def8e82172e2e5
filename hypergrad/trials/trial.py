"""Trials and their results: plain values that JSON can hold."""

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, TypeVar

from ensembles.ground.kinds import HIGHEST

from ..ground.checks import Rule, boolean, check_fields, function, instance, integer, real, shown, text
from ..ground.show import show_fields
from .plain import numbers, plain, reading, with_infinities, without_infinities
from .space import PARAMS, Params


def _ignored(step: int, value: float) -> bool:
    return False


NUMBER = integer("number", least=0, optional=True)
FIDELITY = real("fidelity", above=0, most=1)
META = instance("meta", dict, "a dictionary")
REPORT = function("report", "(step, value) -> true to stop")


@dataclass(frozen=True)
class Trial:
    """One set of hyperparameters to train with.

    - `number`: its number in the search that asked for it; `None` for a foreign trial, told but never asked.
    - `params`: values of the active leaves.
    - `fidelity`: the fraction of the training data to use, in (0, 1].
    - `meta`: how the searcher came to it.
    - `report(step, value)`: tells an intermediate value, such as the validation loss after an epoch, and returns True
      if the pruner of the search would stop the trial. Its training then ends with `Result(value, pruned=True)`, or
      with `optuna.TrialPruned`.
    """

    number: int | None
    params: Params
    fidelity: float = 1.0
    meta: dict[str, Any] = field(default_factory=dict)
    report: Callable[[int, float], bool] = field(default=_ignored, repr=False, compare=False)  # not saved

    def __post_init__(self) -> None:
        check_fields(self, NUMBER, PARAMS, FIDELITY, META, REPORT)
        if self.meta:
            try:
                object.__setattr__(self, "meta", plain(self.meta))
            except (TypeError, RecursionError) as error:
                raise TypeError(f"meta of a Trial must be plain numbers, text or arrays of them: {error}") from None

    def __repr__(self) -> str:
        """Shows what is not as it is by default."""
        return show_fields(self)

    @property
    def origin(self) -> int | None:
        """The number of the trial that this one repeats, its own if there is none."""
        found = self.meta.get("origin")
        return self.number if found is None else found

    @property
    def needs_hypergradient(self) -> bool:
        """True where the searcher will use `Result.hypergradient`; all other trials can do without."""
        return "descent" in self.meta

    def to_json(self) -> dict[str, Any]:
        """Returns a dictionary that JSON can hold."""
        return {name: value for name, value in vars(self).items() if name != "report"}


RESULT_FIELDS = (
    *(real(name, least=0) for name in ("iterations", "gradients", "seconds", "compile_seconds")),
    *(instance(name, dict, "a dictionary") for name in ("tuned", "metrics")),
    *(Rule(n, "a dictionary of numbers", numbers) for n in ("hypergradient", "block_norms", "block_scores")),
    real("size", least=0, optional=True),
    integer("compilations", least=0),
    instance("reported", list, "a list of pairs of step and value"),
    boolean("pruned"),
    text("error", optional=True),
    instance("exception", Exception, "an exception", optional=True),
)


@dataclass(frozen=True)
class Result:
    """The outcome of training with a trial; lower is better.

    - `value`: the validation loss. A trial whose value is not finite has failed.
    - `iterations`, `gradients`: work done, updates of the model's parameters and gradient equivalents as in
      `hypergrad.Counts`. A budget of `search_trials` is spent by them.
    - `seconds`: time taken, compilation included; `compilations` and `compile_seconds` tell how much that was.
    - `size`: cost of using the trained model, e.g. its number of parameters.
    - `hypergradient`: derivative of `value` by `Float` leaves, by the logarithm where a leaf has `log`.
    - `tuned`: hyperparameters that moved within the trial, at their last values: they replace the trial's own.
    - `block_norms`: mean norm of the hypergradient over each block, a free measure of importance.
    - `block_scores`: a score of each block by itself, lower is better.
    - `metrics`: further numbers, or lists and dictionaries of them.
    - `reported`: pairs of step and intermediate value; the search fills them in.
    - `pruned`: the trial was stopped early. Its value is the last one, infinite if there is none. It is not ranked.
    - `error`: why the trial failed.

    Scalars of NumPy and JAX become Python numbers, arrays lists. **Raises** `TypeError` for a value that is no number.
    """

    value: float
    iterations: float = 0
    gradients: float = 0
    seconds: float = 0.0
    compilations: int = 0
    compile_seconds: float = 0.0
    size: float | None = None
    hypergradient: dict[str, float] = field(default_factory=dict)
    tuned: dict[str, Any] = field(default_factory=dict)
    block_norms: dict[str, float] = field(default_factory=dict)
    block_scores: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    reported: list[list[float]] = field(default_factory=list)
    pruned: bool = False
    error: str | None = None
    exception: Exception | None = field(default=None, repr=False, compare=False)  # not saved

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if not _is_default(name, value)}
        for name, value in given.items():
            if name != "exception":
                try:
                    object.__setattr__(self, name, plain(value))
                except (TypeError, RecursionError) as error:
                    raise TypeError(f"{name} of a Result must be plain numbers or arrays of them: {error}") from None
        for name in ("value", "iterations", "gradients", "seconds", "size"):
            if name not in given:
                continue
            number = getattr(self, name)
            if isinstance(number, list) and len(number) == 1 and not isinstance(given[name], list | tuple):
                number = number[0]
            if number is None and name == "size":
                continue
            if isinstance(number, bool) or not isinstance(number, int | float):
                raise TypeError(f"{name} of a Result must be a number, got {shown(number)}")
            if isinstance(number, int) and abs(number) > HIGHEST:
                raise ValueError(f"{name} of a Result is too large for a floating number, got {shown(number)}")
            object.__setattr__(self, name, float(number) if name in ("value", "size") else number)
        check_fields(self, *[rule for rule in RESULT_FIELDS if rule.name in given])

    def __repr__(self) -> str:
        """Shows what is not as it is by default."""
        return show_fields(self)

    @property
    def failed(self) -> bool:
        """True without a finite value, unless the trial was pruned."""
        return self.error is not None or not (self.pruned or math.isfinite(self.value))

    @classmethod
    def failure(cls, error: str | Exception, **more: Any) -> "Result":
        """Returns a result without a value, for a reason or for an exception. **Raises** `TypeError` for another."""
        if not isinstance(error, str | Exception):
            raise TypeError(f"error must be text or an exception, got {shown(error)}")
        if isinstance(error, str):
            return cls(math.inf, error=error, **more)
        return cls(math.inf, error=f"{type(error).__name__}: {error}", exception=error, **more)

    def to_json(self) -> dict[str, Any]:
        """Returns a dictionary that JSON can hold, with numbers that are not finite by name."""
        return without_infinities({name: value for name, value in vars(self).items() if name != "exception"})

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Result":
        """Inverts `to_json`. **Raises** `ValueError` for anything else."""
        with reading("found", "Result"):
            return cls(**with_infinities(dict(found)))


DEFAULTS: dict[str, Any] = {one.name: one.default for one in fields(Result) if one.default_factory is MISSING}
EMPTY: dict[str, Any] = {one.name: one.default_factory for one in fields(Result) if one.default_factory is not MISSING}


def _is_default(name: str, value: Any) -> bool:
    """Returns whether a field of a result was not given, or is empty."""
    return value is DEFAULTS[name] if name in DEFAULTS else type(value) is EMPTY[name] and not value


Kind = TypeVar("Kind")


def revised(instance: Kind, **changes: Any) -> Kind:
    """Returns a copy with other values of some fields, which are known to fit: nothing is checked again."""
    copy = object.__new__(type(instance))
    vars(copy).update(vars(instance) | changes)
    return copy


@dataclass(frozen=True)
class FinishedTrial:
    """A trial with its result."""

    trial: Trial
    result: Result

    def __post_init__(self) -> None:
        check_fields(self, TRIAL, RESULT)


TRIAL = instance("trial", Trial, "a Trial")
RESULT = instance("result", Result, "a Result")
