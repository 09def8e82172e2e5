"""Two-step search: configuration, trials at every fraction of the data, report."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import jax

import hypergrad as hg

from ..aerosol.data import four_modes, parcel
from ..common.cells import Advance, Labels, grid, rows, run_cells
from ..common.config import Common, NonNegative, Out, Positive, Some
from ..common.data import Splits
from ..common.report import mean_and_spread, save, write_csv
from .judge import growth, judge, per_shape, row
from .model import Network, Schedule, objective
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
    """Search on a little data, train the best with all of it, and measure what that saves.

    Random architectures (layers and units) of an emulator are trained at every fraction of the data, the same
    architectures at each. From that: the rank correlation with the loss after training on all data; what the `top` best
    at a fraction give when trained on all data, which is the two-step search; where the best of all stood; and the
    speed-up of the two steps over training all on all data, with and without compilation. The updates and the rows per
    update fall with the square root of the fraction, to 500 and 128. After Yu et al. (2023), whose data are not public:
    the data are the scheme of Abdul-Razzak and Ghan (arg4) or our runs of a parcel model (parcel).
    """

    data: Literal["arg4", "parcel"] = "arg4"
    """arg4: four modes, by the scheme, as many rows as wished. parcel: one mode, by a parcel model, 18,000 rows."""
    num_train: Positive = 128_000  # Training rows of arg4.
    fractions: Some[float] = (0.0025, 0.01, 0.04, 0.16, 1.0)  # Fractions of the training rows; the last must be 1.
    num_trials: Positive = 100  # Architectures.
    top: Positive = 5  # Number trained again on all data; also the number that train at once.
    first_seed: NonNegative = 1  # The first seed. Initial weights were chosen on seed 0, others given up on 0 to 2.
    seeds: Positive = 3  # Repetitions, each with other architectures, initial weights and shuffles.
    steps: Positive = 3000  # Updates on all data.
    batch: Positive = 512  # Rows per update on all data.
    max_depth: Positive = 4  # Most hidden layers.
    max_width: Positive = 64  # Most units in a layer.
    shapes: NonNegative = 12
    """Trials to train once more with one program per architecture, to see what compiling each costs; 0: none."""
    growth: tuple[int, ...] = (32_000, 128_000, 512_000, 2_000_000, 6_000_000)
    """Numbers of rows of arg4 at which training on all of them is timed, updates in proportion."""
    growth_trials: tuple[int, ...] = (100, 1000)  # Numbers of architectures for which these times are a speed-up.
    out: Out = Path("results/two_step")
    cache: bool = False  # Keep compiled programs for the next run, which then reports shorter times of compilation.

    def __post_init__(self):
        super().__post_init__()
        if self.fractions[-1] != 1.0 or not all(0 < f <= 1 for f in self.fractions):
            raise ValueError(f"fractions must lie in (0, 1] and end with 1, got {self.fractions}")
        if list(self.fractions) != sorted(set(self.fractions)):
            raise ValueError(f"fractions must rise, got {self.fractions}")
        if not self.top <= self.num_trials:
            raise ValueError(f"top is {self.top}, above num_trials = {self.num_trials}")

    def network(self, padded: bool = True) -> Network:
        """Returns the largest network."""
        return Network(self.max_depth, self.max_width, padded)

    def middle(self, last: int) -> float:
        """Returns the third fraction, or the one that is `last` from the end if there are fewer."""
        return self.fractions[min(2, len(self.fractions) - last)]


@lru_cache(maxsize=1)
def splits_of(config: Config, num_rows: int) -> Splits:
    """Returns the data, with so many training rows of arg4."""
    return four_modes(num_rows) if config.data == "arg4" else parcel()[0]


def cells(config: Config) -> list[Labels]:
    """Returns the labels of all searches: at each fraction; with a program for each shape; at each number of rows."""
    found = grid(seed=config.seed_range(), fraction=config.fractions)
    if config.shapes:
        found.append({"part": "shapes", "shapes": min(config.shapes, config.num_trials), "fraction": config.middle(1)})
    if config.data == "arg4" and config.growth:
        first = {"part": "growth", "rows": config.num_train, "fraction": config.middle(2)}
        found += [first, *grid(part=("growth",), rows=config.growth, fraction=(1.0,))]
    return found


def run_cell(config: Config, advance: Advance, **labels: Any) -> dict[str, Any]:
    """Runs one search; trial k is the same architecture with the same initial weights in all of one seed.

    One of all architectures below all of the data is a two-step search. Its first trials are the history.
    """
    seed, fraction = labels.get("seed", config.first_seed), labels["fraction"]
    network, num_rows = config.network(padded="shapes" not in labels), labels.get("rows", config.num_train)
    schedule = Schedule(max(1, round(config.steps * num_rows / config.num_train)), config.batch)
    size, shuffle = config.top if network.padded else 1, jax.random.key(1000 + seed)
    what = (
        hg.trials.Random(),
        network.space(),
        objective(splits_of(config, num_rows), shuffle, schedule, network, size),
    )
    journal = config.out / "trials" / "_".join(f"{name}_{value}" for name, value in labels.items())
    journal.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"key": jax.random.key(seed), "batch": size, "journal": journal}
    if "seed" in labels and fraction < 1:
        second = lambda told: bool(told) and told[0].trial.fidelity == 1
        done = lambda told: (len(told) + config.num_trials * second(told)) / (config.num_trials + config.top)
        options |= {"callback": lambda state: advance(done(state.history)), "num_trials": config.num_trials}
        states = hg.trials.two_step(*what, fraction=fraction, top=config.top, **options).states
    else:
        number = config.num_trials if "seed" in labels else labels.get("shapes", config.top * (1 + (fraction < 1)))
        options |= {"callback": lambda state: advance(len(state.history) / number), "num_trials": number}
        options |= {"journal": f"{journal}.jsonl"}
        states = (hg.trials.search_trials(*what, fidelity=fraction, **options),)
    history = [row(config, one) for one in states[0].history] if "seed" in labels else []
    return {"states": [state.to_json() for state in states], "history": history}


def main(config: Config) -> dict[str, Any]:
    """Runs what is missing and reports."""
    labels = cells(config)
    done = run_cells(config, labels, lambda advance, **labels: run_cell(config, advance, **labels), "searches")
    states = [[hg.trials.SearcherState.from_json(state) for state in cell["states"]] for cell in done]
    of = lambda name: {
        (one[name], one["fraction"]): found for one, found in zip(labels, states, strict=True) if name in one
    }
    searches, shapes, grown = of("seed"), of("shapes"), growth(config, of("rows"))
    runs = [judge(config, key, found, searches[key[0], 1.0][0]) for key, found in searches.items() if key[1] < 1]
    columns = ("spearman", "place_of_best", "excess", "test", "speed_up", "speed_up_compiled")
    table = [
        {"fraction": fraction, "rows": next(run["rows"] for run in runs if run["fraction"] == fraction)}
        | {name: mean_and_spread(run[name] for run in runs if run["fraction"] == fraction) for name in columns}
        for fraction in config.fractions[:-1]
    ]
    ranked = [searches[seed, 1.0][0].ranked for seed in config.seed_range()]
    brief = lambda one: one and {"size": one.result.size, "value": one.result.value}
    more = {
        "front": [[brief(one) for one in hg.trials.pareto_front(every)] for every in ranked],
        "smallest_within_5_percent": [brief(hg.trials.smallest_within_tolerance(every, 0.05)) for every in ranked],
        "per_shape": per_shape(config, shapes, searches),
        "growth": grown,
    }
    history = rows(done, "history")
    write_csv(config.out / "trials.csv", history)
    draw(config, {fraction: searches[config.first_seed, fraction][0] for fraction in config.fractions}, runs, grown)
    title = (
        f"{config.data}, {config.num_trials} architectures, {config.seeds} seeds, mean ± standard deviation; the best "
        f"{config.top} trained again.\nexcess: loss of the best of these over that of the best of all, less 1."
    )
    return save(config, runs, table, history, title, **more)
