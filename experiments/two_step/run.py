"""Two-step search: configuration, trials at every fraction of the data, report."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from scipy.stats import spearmanr
from tqdm.auto import tqdm

import hypergrad as hg

from ..aerosol.data import Splits, four_modes, parcel
from ..common.config import Common, NonNegative, Out, Positive, Some
from ..common.report import mean_and_spread, save, write_csv
from .model import Schedule, architectures, objective
from .plots import draw

QUICK: dict[str, Any] = {
    "num_trials": 15,
    "fractions": (0.01, 0.04, 1.0),
    "seeds": 1,
    "steps": 1000,
    "batch": 256,
    "max_width": 32,
    "shapes": 3,
    "growth": (),
}


@dataclass(frozen=True)
class Config(Common):
    """Does a search on a little data find the networks that are best with all of it, and what does it save?

    Random architectures (layers and units) of an emulator are trained at every fraction of the data, the same
    architectures at each. From that: the rank correlation with the loss after training on all data; what the `top` best
    at a fraction give when trained on all data, which is the two-step search; where the best of all stood; and the
    speed-up of the two steps over training all on all data, with and without compilation. The updates and the rows per
    update fall with the square root of the fraction, to 500 and 128. After Yu et al. (2023), whose data are not public:
    the data are the scheme of Abdul-Razzak and Ghan (arg4) or our runs of a parcel model (parcel).
    """

    data: Literal["arg4", "parcel"] = "arg4"
    """arg4: four modes, by the scheme, as many rows as wished. parcel: one mode, by a parcel model, 18,000 rows."""
    num_train: Positive = 128_000
    """Training rows of arg4."""
    fractions: Some[float] = (0.0025, 0.01, 0.04, 0.16, 1.0)
    """Fractions of the training rows; the last must be 1."""
    num_trials: Positive = 100
    """Architectures."""
    top: Positive = 5
    """How many are trained again on all data; also how many train at once."""
    first_seed: NonNegative = 1
    """The first seed. Initial weights were chosen on seed 0, others given up on 0 to 2."""
    seeds: Positive = 3
    """Repetitions, each with other architectures, initial weights and shuffles."""
    steps: Positive = 3000
    """Updates on all data."""
    batch: Positive = 512
    """Rows per update on all data."""
    max_depth: Positive = 4
    """Most hidden layers."""
    max_width: Positive = 64
    """Most units in a layer."""
    shapes: NonNegative = 12
    """Trials to train once more with one program per architecture, to see what compiling each costs; 0: none."""
    growth: tuple[int, ...] = (32_000, 128_000, 512_000, 2_000_000, 6_000_000)
    """Numbers of rows of arg4 at which training on all of them is timed, updates in proportion."""
    growth_trials: tuple[int, ...] = (100, 1000)
    """Numbers of architectures for which these times are a speed-up."""
    out: Out = Path("results/two_step")
    cache: bool = False
    """Keep compiled programs for the next run, which then reports shorter times of compilation."""

    def __post_init__(self):
        super().__post_init__()
        if self.fractions[-1] != 1.0 or not all(0 < f <= 1 for f in self.fractions):
            raise ValueError(f"fractions must lie in (0, 1] and end with 1, got {self.fractions}")
        if list(self.fractions) != sorted(set(self.fractions)):
            raise ValueError(f"fractions must rise, got {self.fractions}")
        if not self.top <= self.num_trials:
            raise ValueError(f"top is {self.top}, above num_trials = {self.num_trials}")


def make_objective(config: Config, splits: Splits, seed: int, padded: bool = True, steps: int | None = None):
    """The objective of one seed: one shuffle of the training rows, one validation set."""
    schedule = Schedule(steps or config.steps, config.batch)
    shuffle = jax.random.key(1000 + seed)
    size = config.top if padded else 1
    return objective(splits, schedule, shuffle, config.max_depth, config.max_width, padded, size)


def run_seed(config: Config, splits: Splits, seed: int, bar) -> dict[float, hg.trials.SearcherState]:
    """All trials at all fractions; trial k is the same architecture at each."""
    found = {}
    space = architectures(config.max_depth, config.max_width)
    train = make_objective(config, splits, seed)
    for fraction in config.fractions:
        done = [0]

        def advance(state, done=done):
            bar.update(len(state.history) - done[0])
            done[0] = len(state.history)

        found[fraction] = hg.trials.search_trials(
            hg.trials.Random(),
            space,
            train,
            key=jax.random.key(seed),
            num_trials=config.num_trials,
            batch=config.top,
            fidelity=fraction,
            journal=config.out / f"{config.data}_{seed}_{fraction:g}.jsonl",
            callback=advance,
        )
        bar.update(config.num_trials - done[0])
    return found


def costs(state: hg.trials.SearcherState) -> tuple[float, float]:
    """Seconds of training, seconds of compilation."""
    compiling = sum(told.result.compile_seconds for told in state.history)
    return sum(told.result.seconds for told in state.history) - compiling, compiling


def judge(
    config: Config, seed: int, fraction: float, few: hg.trials.SearcherState, full: hg.trials.SearcherState
) -> dict[str, Any]:
    """What a two-step search from this fraction gives, against training all trials on all data."""
    usable = [
        k for k in range(config.num_trials) if not (few.history[k].result.failed or full.history[k].result.failed)
    ]
    first = np.array([few.history[k].result.value for k in usable])
    last = np.array([full.history[k].result.value for k in usable])
    order = np.argsort(first, kind="stable")
    chosen = order[: config.top]
    train, compiling = costs(few)
    all_train, all_compiling = costs(full)
    again = all_train * config.top / config.num_trials
    best = usable[int(chosen[np.argmin(last[chosen])])]
    return {
        "seed": seed,
        "fraction": fraction,
        "rows": round(fraction * (config.num_train if config.data == "arg4" else 18_000)),
        "spearman": float(spearmanr(first, last).statistic),
        "place_of_best": int(np.flatnonzero(order == np.argmin(last))[0]) + 1,
        "excess": float(last[chosen].min() / last.min() - 1),
        "test": full.history[best].result.metrics["test"],
        "speed_up": all_train / (train + again),
        "speed_up_compiled": (all_train + all_compiling) / (train + compiling + again + all_compiling),
        "seconds": train,
        "compile_seconds": compiling,
        "failed": config.num_trials - len(usable),
    }


def main(config: Config) -> dict[str, Any]:
    """Run and report."""
    config.out.mkdir(parents=True, exist_ok=True)
    splits = four_modes(config.num_train) if config.data == "arg4" else parcel()[0]
    with tqdm(total=config.seeds * len(config.fractions) * config.num_trials, unit=" trials") as bar:
        found = [run_seed(config, splits, seed, bar) for seed in config.seed_range()]
    runs = [
        judge(config, seed, fraction, states[fraction], states[1.0])
        for seed, states in zip(config.seed_range(), found, strict=True)
        for fraction in config.fractions[:-1]
    ]
    columns = ("spearman", "place_of_best", "excess", "test", "speed_up", "speed_up_compiled")
    table = [
        {"fraction": fraction, "rows": next(run["rows"] for run in runs if run["fraction"] == fraction)}
        | {name: mean_and_spread(run[name] for run in runs if run["fraction"] == fraction) for name in columns}
        for fraction in config.fractions[:-1]
    ]
    fronts = [hg.trials.pareto_front(states[1.0].ranked) for states in found]
    small = [hg.trials.smallest_within_tolerance(states[1.0].ranked, 0.05) for states in found]
    grown = growth(config)
    more = {
        "front": [[{"size": one.result.size, "value": one.result.value} for one in front] for front in fronts],
        "smallest_within_5_percent": [one and {"size": one.result.size, "value": one.result.value} for one in small],
        "per_shape": per_shape(config, splits, found[0]),
        "growth": grown,
    }
    history = [
        row(config, seed, told, f)
        for seed, states in zip(config.seed_range(), found, strict=True)
        for f in states
        for told in states[f].history
    ]
    write_csv(config.out / "trials.csv", history)
    draw(config, found, runs, grown)
    title = (
        f"{config.data}, {config.num_trials} architectures, {config.seeds} seeds, mean ± standard deviation; the best "
        f"{config.top} trained again.\nexcess: loss of the best of these over that of the best of all, less 1."
    )
    return save(config, runs, table, history, title, **more)


def row(config: Config, seed: int, told: hg.trials.FinishedTrial, fraction: float) -> dict[str, Any]:
    """One trial as a line."""
    result, units = told.result, [told.trial.params.get(f"units_{i}") for i in range(1, config.max_depth + 1)]
    return {
        "seed": seed,
        "fraction": fraction,
        "trial": told.trial.number,
        "units": "-".join(str(unit) for unit in units if unit is not None),
        "size": result.size,
        "value": result.value,
        "test": result.metrics.get("test"),
        "seconds": result.seconds,
        "compile_seconds": result.compile_seconds,
        "error": result.error,
    }


def per_shape(config: Config, splits: Splits, states: dict[float, hg.trials.SearcherState]) -> dict[str, float] | None:
    """Some trials once more, each in a program of its own size, against the same in one program for all."""
    if not config.shapes:
        return None
    fraction = config.fractions[min(2, len(config.fractions) - 1)]
    number = min(config.shapes, config.num_trials)
    state = hg.trials.search_trials(
        hg.trials.Random(),
        architectures(config.max_depth, config.max_width),
        make_objective(config, splits, config.first_seed, padded=False),
        key=jax.random.key(config.first_seed),
        num_trials=number,
        fidelity=fraction,
    )
    train, compiling = costs(state)
    padded_train, padded_compiling = costs(states[fraction])
    return {
        "fraction": fraction,
        "trials": number,
        "programs": sum(told.result.compilations > 0 for told in state.history),
        "seconds_per_trial": train / number,
        "compile_seconds_per_trial": compiling / number,
        "padded_seconds_per_trial": padded_train / config.num_trials,
        "padded_compile_seconds": padded_compiling,
    }


def growth(config: Config) -> list[dict[str, float]]:
    """The speed-up where the rows and the updates grow and the first step stays as it is.

    By the times of one batch on all data and of two batches of the first step, which are taken to be those of all.
    """
    if config.data != "arg4" or not config.growth:
        return []
    first = config.fractions[min(2, len(config.fractions) - 2)]
    start, start_compiling = timed(config, config.num_train, first, 2 * config.top)
    lines = []
    for rows in config.growth:
        each, compiling = timed(config, rows, 1.0, config.top)
        for trials in config.growth_trials:
            every, steps = trials * each, trials * start + config.top * each
            compiled = (every + compiling) / (steps + start_compiling + compiling)
            line = {"rows": rows, "trials": trials, "seconds_per_trial": each, "seconds_per_first_trial": start}
            lines.append(line | {"speed_up": every / steps, "speed_up_compiled": compiled})
    return lines


def timed(config: Config, rows: int, fraction: float, number: int) -> tuple[float, float]:
    """Seconds per trial of a few trials, and seconds of compilation, at so many rows, updates in proportion."""
    steps = max(1, round(config.steps * rows / config.num_train))
    state = hg.trials.search_trials(
        hg.trials.Random(),
        architectures(config.max_depth, config.max_width),
        make_objective(config, four_modes(rows), config.first_seed, steps=steps),
        key=jax.random.key(config.first_seed),
        num_trials=number,
        batch=config.top,
        fidelity=fraction,
        journal=config.out / f"growth_{rows}_{fraction:g}.jsonl",
    )
    train, compiling = costs(state)
    return train / number, compiling
