"""Searches that know of subnetworks: configuration, report."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from ..common.cells import rows, run_cells
from ..common.config import Common, NonNegative, Out, Positive, Seeds, Some
from ..common.report import save, write_csv
from .branches import HYPER_STEPS
from .parts import STRATEGIES, BaseName, StrategyName, cells, run_cell
from .plots import draw
from .tables import curves_of, least_important, summarise

PartName = Literal["synthetic", "digits", "parcel", "inside"]
PART_NAMES: tuple[PartName, ...] = get_args(PartName)
BASES: tuple[BaseName, ...] = get_args(BaseName)
QUICK: dict[str, Any] = {
    "parts": ("synthetic", "digits"),
    "bases": ("random",),
    "seeds": 3,
    "network_seeds": 2,
    "digits_trials": 24,
    "digits_steps": 150,
    "digits_final_steps": 500,
}


@dataclass(frozen=True)
class Config(Common):
    """Search a model of several subnetworks as a whole and by its parts.

    divide: divide and conquer, the best subnetworks of the best trials combined. adaptive: trials are spent on one
    subnetwork at a time, drawn by its importance (PED-ANOVA, for networks the ridge regression, which needs fewer
    trials). both: the second around the first. Both are after arXiv:2202.11841, reconstructed from its abstract. They
    stand around random search and Optuna's TPE.

    synthetic: sums of functions of three blocks, with equal and with skewed weights. digits: a network of two branches
    for the halves of handwritten digits, dense or convolutional, and one for noise; which is the least important?
    Training digits are also turned and shifted a little. parcel: an emulator of aerosol activation with a branch for
    the particles and one for the air. inside: digits with few training images; the branches' penalties follow their
    hypergradients within each trial, or are searched like everything else, at equal numbers of gradients.
    """

    parts: Some[PartName] = PART_NAMES  # Parts to run.
    bases: Some[BaseName] = BASES  # Base searchers of the synthetic part.
    branches: Some[Literal["dense", "cnn"]] = ("dense", "cnn")  # Branches for the halves of digits.
    strategies: Some[StrategyName] = STRATEGIES  # Strategies around the base searcher.
    first_seed: NonNegative = 1000  # The first seed of every part. Settings were chosen on seeds below 1000.
    seeds: Seeds = 20  # Repetitions of the synthetic part.
    network_seeds: Positive = 10  # Repetitions of digits and inside.
    parcel_seeds: Positive = 10  # Repetitions of parcel.
    random_trials: Positive = 200  # Trials of a synthetic search around random search.
    tpe_trials: Positive = 150  # Trials of a synthetic search around TPE.
    digits_trials: Positive = 60  # Trials of a search on digits.
    parcel_trials: Positive = 40  # Trials of a search on the parcel model.
    digits_steps: Positive = 1000  # Updates per trial on digits.
    num_noise: Positive = 4
    """Inputs of noise on digits. With many the branch learns the training images by heart, and its size matters."""
    inside_steps: Positive = 400  # Updates per trial of inside.
    parcel_steps: Positive = 1000  # Updates per trial on the parcel model.
    digits_final_steps: Positive = 5000  # Updates of the best networks on digits, trained once more.
    parcel_final_steps: Positive = 10_000  # Updates of the best networks on the parcel model, trained once more.
    batch: Positive = 4  # Trials asked for and trained at once.
    out: Out = Path("results/subnetworks")

    def __post_init__(self):
        super().__post_init__()
        if "base" not in self.strategies:
            raise ValueError(f"strategies must hold base, to compare with, got {self.strategies}")
        if self.inside_steps < HYPER_STEPS:
            raise ValueError(f"inside_steps must be at least {HYPER_STEPS}, got {self.inside_steps}")


def main(config: Config) -> dict[str, Any]:
    """Runs what is missing and reports."""
    run = lambda advance, **labels: run_cell(config, advance, labels)
    lines = rows(run_cells(config, cells(config), run, "searches"), "runs")
    table = summarise(lines)
    write_csv(config.out / "trials.csv", history := curves_of(lines))
    draw(config, lines)
    runs = [{name: value for name, value in line.items() if name not in ("curve", "gradients")} for line in lines]
    runs = [run | {"final": line["curve"][-1]} for run, line in zip(runs, lines, strict=True)]
    title = (
        "final: lowest validation value, median over seeds; ratio: to that of the base; efficiency: trials the base "
        "needs\nto its own final median over trials the method needs to it; test: mean ± standard deviation."
    )
    return save(config, runs, table, history, title, least_important=least_important(lines))
