"""Options that experiments share, and the rules that option types carry."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

import tyro

from .data import Splits, split

T = TypeVar("T")


class Rule(NamedTuple):
    """A condition on the value of an option, and the complaint where it does not hold."""

    holds: Callable[[Any], bool]
    complaint: str


ABOVE_ZERO = Rule(lambda value: value > 0, "must be positive")
NOT_NEGATIVE = Rule(lambda value: value >= 0, "must not be negative")
COUNTABLE = Rule(lambda value: value < 2**31, "is above 2147483647")
Positive = Annotated[int, tyro.conf.arg(metavar="N"), ABOVE_ZERO, COUNTABLE]
PositiveFloat = Annotated[float, ABOVE_ZERO]
NonNegative = Annotated[int, tyro.conf.arg(metavar="N"), NOT_NEGATIVE, COUNTABLE]
NonNegativeFloat = Annotated[float, NOT_NEGATIVE]
Fraction = Annotated[float, Rule(lambda value: 0 < value < 1, "must lie between 0 and 1")]
NOT_EMPTY = Rule(lambda value: len(value) > 0, "is empty")
Series = Annotated[tuple[T, ...], NOT_EMPTY]
Some = Annotated[tuple[T, ...], NOT_EMPTY, Rule(lambda value: len(set(value)) == len(value), "names one twice")]


def described(text: str, metavar: str | None = None) -> Any:
    """Returns the annotation that describes an option, for types of options that configurations give other defaults."""
    return tyro.conf.arg(help=text, metavar=metavar)


Out = Annotated[Path, described("Output folder. It also holds the finished cells of a run that was stopped.")]
Quick = Annotated[bool, described("Smaller sizes, which show that it runs.")]
Cache = Annotated[
    bool, described("Keep compiled programs in the user's cache folder, or in JAX_COMPILATION_CACHE_DIR, for later.")
]
REPETITIONS = "Number of repetitions, each with its own split, initial weights and noise."
Seeds = Annotated[int, described(REPETITIONS, "N"), ABOVE_ZERO, COUNTABLE]
Digits = Annotated[
    Literal["digits", "mnist"],
    described("digits: 8 x 8, ships with scikit-learn. mnist: 28 x 28, from --data-dir or downloaded."),
]
Train = Annotated[int, described("Training rows.", "N"), ABOVE_ZERO, COUNTABLE]
Valid = Annotated[int, described("Validation rows.", "N"), ABOVE_ZERO, COUNTABLE]


@dataclass(frozen=True)
class Checked:
    """A configuration whose options keep the rules of their types.

    **Raises** `ValueError` naming the first option that breaks the `Rule` of its type.
    """

    def __post_init__(self):
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            for complaint in _complaints(hint, getattr(self, name)):
                raise ValueError(f"{name} {complaint}, got {getattr(self, name)}")


def _complaints(hint: Any, value: Any) -> Iterator[str]:
    """Yields the complaints about a value of this type, and about its parts if it is a tuple."""
    yield from (
        rule.complaint for rule in getattr(hint, "__metadata__", ()) if isinstance(rule, Rule) and not rule.holds(value)
    )
    bare = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    if get_origin(bare) is tuple:
        for part in value:
            yield from _complaints(get_args(bare)[0], part)


@dataclass(frozen=True)
class Options(Checked):
    """Options of every command."""

    out: Out = Path("results")
    quick: Quick = False
    cache: Cache = True


@dataclass(frozen=True)
class Common(Options):
    """Options of every experiment."""

    seeds: Seeds = 3
    first_seed: NonNegative = 0  # The first of the seeds.

    def seed_range(self, number: int | None = None) -> range:
        """Returns the seeds of the experiment, or another number of them, from the first."""
        return range(self.first_seed, self.first_seed + (self.seeds if number is None else number))


def default_data_dir() -> Path | None:
    """Returns the folder that the environment variable HYPERGRAD_DATA names, if it is set."""
    folder = os.environ.get("HYPERGRAD_DATA")
    return Path(folder) if folder else None


@dataclass(frozen=True)
class WithData(Common):
    """Options of an experiment that reads data sets."""

    data_dir: Path | None = field(default_factory=default_data_dir)
    """Folder that holds the data sets, each in it or in a folder of its own name [environment: HYPERGRAD_DATA]."""


@dataclass(frozen=True)
class OnDigits(WithData):
    """Options of an experiment on handwritten digits."""

    data: Digits = "digits"


@dataclass(frozen=True)
class OnSplits(OnDigits):
    """Options of an experiment on handwritten digits split in three."""

    num_train: Train = 800
    num_valid: Valid = 400

    def splits(self, seed: int) -> Splits:
        """Returns the training, validation and test rows of a seed."""
        return split(self.data, self.data_dir, seed, self.num_train, self.num_valid)
