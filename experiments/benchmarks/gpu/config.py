"""Options, sizes, and which processes a part has."""

import dataclasses
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ...common.config import Options, Out, Positive, PositiveFloat, Some, default_data_dir

Part = Literal["device", "ensembles", "cost", "study", "weights", "proton"]
PARTS: tuple[Part, ...] = ("device", "ensembles", "cost", "study", "weights", "proton")
SHARES: dict[Part, float] = {
    "device": 0.13,
    "ensembles": 0.15,
    "cost": 0.27,
    "study": 0.14,
    "weights": 0.06,
    "proton": 0.25,
}
VARIANTS: dict[Part, tuple[str, ...]] = {"weights": ("greedy", "unrolled")}  # processes of a part; one elsewhere
QUICK: dict[str, Any] = {"replicas": (4,)}


class Sizes(NamedTuple):
    """The sizes of all measurements, on a GPU."""

    product: int = 4096  # rows of the square matrices
    steps: int = 500  # training steps of an ensemble in one timing
    measured: float = 1.5  # seconds of every energy measurement at least
    rounds: int = 5  # interleaved repetitions
    hidden: tuple[int, int] = (2048, 2048)  # of the network of the cost table
    rows: int = 4096  # its training rows, all in every step
    horizon: int = 50  # its training steps
    estimators: int = 100  # rows of the cost table at most
    wide: tuple[int, int] = (2600, 3050)  # hidden layers of the network with one hyperparameter per weight
    updates: int = 100  # its training steps in one timing
    unrolled: int = 20  # and those that a hypergradient is taken through
    images: Literal["mnist", "digits"] = "mnist"
    scale: float = 1.0  # of the updates in the study
    methods: tuple[str, ...] = ("greedy", "random", "drmad", "hoag", "tpe")  # of the study, in the order of their value
    seeds: int = 2
    trials: int = 30  # of the proton fit at most


QUICK_SIZES = Sizes(
    product=128,
    steps=5,
    measured=0.0,
    rounds=2,
    hidden=(16, 16),
    rows=64,
    horizon=20,  # the horizon of the longest truncated estimator
    estimators=2,
    wide=(16, 16),
    updates=4,
    unrolled=3,
    images="digits",
    scale=0.001,
    methods=("greedy",),
    seeds=1,
    trials=1,
)


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Ensembles, cost of the estimators, the MNIST study, ten million hyperparameters and proton fits on one GPU.

    The parts run in this order, each within its share of the time, with what earlier parts left. gpu.json holds device,
    versions, precision and all rows; what did not fit is listed there. On a CPU, `--parts device ensembles` gives the
    figures that --cpu-figures takes.
    """

    minutes: PositiveFloat = 8.0  # Time for everything.
    parts: Some[Part] = PARTS  # Parts to run.
    replicas: Some[Positive] = (1000, 4000, 1, 100, 10, 300)
    """Sizes of the ensembles, in the order in which they are measured."""
    cpu_figures: Path | None = None
    """gpu.json of a run on a CPU, which the ensembles are compared with; that run may still be going on."""
    commit: str | None = None  # Commit to name in the results; by default git is asked.
    data_dir: Path | None = dataclasses.field(default_factory=default_data_dir)
    """Folder with the folder mnist [environment: HYPERGRAD_DATA]."""
    out: Out = Path("results/gpu")
    seed: int = 0  # Seed of data and initial weights.
    quick: bool = False  # All parts at tiny sizes, for a CPU: shows that it runs, measures nothing.

    @property
    def sizes(self) -> Sizes:
        """The full sizes, or the tiny ones."""
        return QUICK_SIZES if self.quick else Sizes()


def from_json(found: dict[str, Any]) -> Config:
    """Returns the options that were written as JSON."""
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
    paths = {name: Path(values[name]) for name in ("cpu_figures", "data_dir", "out") if values[name] is not None}
    return Config(**values | paths)
