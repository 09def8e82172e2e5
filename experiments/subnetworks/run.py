"""Searches that know of subnetworks: configuration, report."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
import tyro
from tqdm.auto import tqdm

import hypergrad as hg

from ..common.command import require_positive, require_some, save
from ..common.report import mean_and_spread, write_csv
from .branches import HYPER_STEPS, Task, Training, aerosol, branch_space, everything, halves
from .functions import WEIGHTS
from .parts import Done, efficiency, networks, synthetic, told
from .plots import draw
from .strategies import STRATEGIES, BaseName, StrategyName, searcher

Positive = Annotated[int, tyro.conf.arg(metavar="N")]
PartName = Literal["synthetic", "digits", "parcel", "inside"]
QUICK: dict[str, Any] = {
    "parts": ("synthetic", "digits"),
    "bases": ("random",),
    "seeds": 3,
    "network_seeds": 2,
    "digits_trials": 24,
    "digits_steps": 150,
}


@dataclass(frozen=True)
class Config:
    """Does it pay to search a model of several subnetworks by its parts?

    divide: divide and conquer, the best subnetworks of the best trials combined. adaptive: trials are spent on one
    subnetwork at a time, drawn by its importance (PED-ANOVA, for networks the ridge regression, which needs fewer
    trials). both: the second around the first. Both are after
    arXiv:2202.11841, reconstructed from its abstract. They stand around random search and Optuna's TPE.

    synthetic: sums of functions of three blocks, with equal and with skewed weights. digits: a network of two branches
    for the halves of handwritten digits and one for noise; which is the least important? parcel: an emulator of aerosol
    activation with a branch for the particles and one for the air. inside: digits with few training images; the
    branches' penalties follow their hypergradients within each trial, or are searched like everything else, at equal
    numbers of gradients.
    """

    parts: tuple[PartName, ...] = get_args(PartName)
    """Which parts to run."""
    bases: tuple[BaseName, ...] = get_args(BaseName)
    """Base searchers of the synthetic part."""
    strategies: tuple[StrategyName, ...] = STRATEGIES
    """What to put around them."""
    seeds: Positive = 20
    """Repetitions of the synthetic part around random search; half as many around TPE, which is slow."""
    network_seeds: Positive = 10
    """Repetitions of digits and inside."""
    parcel_seeds: Positive = 3
    """Repetitions of parcel."""
    random_trials: Positive = 200
    """Trials of a synthetic search around random search."""
    tpe_trials: Positive = 150
    """Trials of a synthetic search around TPE."""
    digits_trials: Positive = 60
    """Trials of a search on digits."""
    parcel_trials: Positive = 40
    """Trials of a search on the parcel model."""
    digits_steps: Positive = 1000
    """Updates per trial on digits."""
    num_noise: Positive = 4
    """Inputs of noise on digits. With many the branch learns the training images by heart, and its size matters."""
    inside_steps: Positive = 400
    """Updates per trial of inside."""
    parcel_steps: Positive = 1000
    """Updates per trial on the parcel model."""
    final_steps: Positive = 10_000
    """Updates of the best networks of parcel, trained once more."""
    batch: Positive = 4
    """Trials asked for and trained at once."""
    out: Path = Path("results/subnetworks")
    """Output folder; journals in it, so that a run that was stopped goes on."""
    quick: bool = False
    """Three seeds of the synthetic part around random search, two short ones of digits: shows that it runs."""

    def __post_init__(self):
        require_positive(self, "seeds", "network_seeds", "parcel_seeds", "random_trials", "tpe_trials", "batch")
        require_positive(
            self,
            "digits_trials",
            "parcel_trials",
            "digits_steps",
            "num_noise",
            "inside_steps",
            "parcel_steps",
            "final_steps",
        )
        require_some(self, "parts", "bases", "strategies")
        if "base" not in self.strategies:
            raise ValueError(f"strategies must hold base, to compare with, got {self.strategies}")
        if self.inside_steps < HYPER_STEPS:
            raise ValueError(f"inside_steps must be at least {HYPER_STEPS}, got {self.inside_steps}")


def run_synthetic(config: Config, done: Done, bar) -> list[dict[str, Any]]:
    """Every weighting, base and strategy."""
    lines = []
    for weights in WEIGHTS:
        for base in config.bases:
            trials = config.random_trials if base == "random" else config.tpe_trials
            for strategy in config.strategies:
                make = partial(synthetic, weights, base, strategy, trials=trials, warmup=20)
                for seed in range(synthetic_seeds(config, base)):
                    cell = {"part": "synthetic", "task": weights, "base": base, "strategy": strategy, "seed": seed}
                    lines.append(done.get(cell | {"trials": trials}, partial(make, seed=seed)))
                    bar.update()
    return lines


def synthetic_seeds(config: Config, base: BaseName) -> int:
    """Half as many around TPE, at least one."""
    return config.seeds if base == "random" else max(1, config.seeds // 2)


def run_digits(config: Config, done: Done, bar) -> list[dict[str, Any]]:
    """Random search with every strategy, on digits with a branch of noise; the best network of each search trained once
    more, on the training and the validation rows."""
    lines: list[dict[str, Any]] = []
    training = None
    for seed in range(config.network_seeds):
        task = halves(seed, 1100, 347, config.num_noise)
        training = training or Training(task.spec, config.digits_steps, 64, cosine=True)
        for strategy in config.strategies:
            method = searcher("random", strategy, max(8, config.digits_trials // 3), hg.RidgeImportance())
            line = one(config, done, "digits", task, training, method, strategy, seed, config.digits_trials)
            method = hg.Listed(((line["params"], None),))
            final = one(config, done, "final", everything(task), training, method, strategy, seed, 1, size=1)
            lines.append(line | {"final_test": final["test"], "final_size": final["size"]})
            bar.update()
    return lines


def run_parcel(config: Config, done: Done, bar) -> list[dict[str, Any]]:
    """TPE with every strategy, on the parcel model; the best network of each search trained for longer."""
    task = aerosol()
    training, longer = (
        Training(task.spec, steps, 256, cosine=True) for steps in (config.parcel_steps, config.final_steps)
    )
    lines = []
    for seed in range(config.parcel_seeds):
        for strategy in config.strategies:
            method = searcher("tpe", strategy, max(8, config.parcel_trials // 3), hg.RidgeImportance())
            line = one(config, done, "parcel", task, training, method, strategy, seed, config.parcel_trials)
            method = hg.Listed(((line["params"], None),))
            final = one(config, done, "final", task, longer, method, strategy, seed, 1, size=1)
            lines.append(line | {"final_test": final["test"], "final_size": final["size"]})
            bar.update()
    return lines


def run_inside(config: Config, done: Done, bar) -> list[dict[str, Any]]:
    """Penalties by hypergradient within random search's trials, against as many gradients without."""
    lines: list[dict[str, Any]] = []
    training: dict[str, Training] = {}
    for seed in range(config.network_seeds):
        task = halves(seed, 300, 397, 32)
        space = branch_space(task.spec.names)
        if not training:
            training = {
                "outside": Training(task.spec, config.inside_steps, 64, cosine=False),
                "inside": Training(task.spec, config.inside_steps, 64, cosine=False, space=space),
            }
        for name, method in training.items():
            trials = config.digits_trials
            if name == "inside":  # as many gradients as the other
                trials = max(1, trials * config.inside_steps // inside_gradients(config))
            lines.append(one(config, done, "inside", task, method, hg.RandomSearcher(), name, seed, trials))
            bar.update()
    return lines


def inside_gradients(config: Config) -> int:
    """Gradient equivalents of a trial that tunes its penalties: training, and for each hyper-step five step-VJPs of
    weight 2 and an outer gradient."""
    each = config.inside_steps // HYPER_STEPS
    return HYPER_STEPS * (each + 2 * min(5, each) + 1)


def one(
    config: Config,
    done: Done,
    part: str,
    task: Task,
    training: Training,
    method: Any,
    strategy: str,
    seed: int,
    trials: int,
    size: int | None = None,
) -> dict[str, Any]:
    """One search of networks, from the file if it is there."""
    base = "tpe" if part == "parcel" else "random"
    cell: dict[str, Any] = {"part": part, "task": part, "base": base, "strategy": strategy}
    inputs = [number for _, number in task.spec.blocks]
    cell |= {"seed": seed, "trials": trials, "steps": training.steps, "inputs": inputs}
    journal = config.out / f"{part}_{strategy}_{seed}_{training.steps}_{inputs}.jsonl"
    return done.get(cell, lambda: told(networks(task, training, method, seed, trials, size or config.batch, journal)))


PARTS = {"synthetic": run_synthetic, "digits": run_digits, "parcel": run_parcel, "inside": run_inside}


def main(config: Config) -> dict[str, Any]:
    """Run and report."""
    config.out.mkdir(parents=True, exist_ok=True)
    done, count = Done(config.out / "searches.jsonl"), len(config.strategies)
    totals = {
        "synthetic": 2 * count * sum(synthetic_seeds(config, base) for base in config.bases),
        "digits": count * config.network_seeds,
        "parcel": count * config.parcel_seeds,
        "inside": 2 * config.network_seeds,
    }
    with tqdm(total=sum(totals[part] for part in config.parts), unit=" searches") as bar:
        lines = [line for part in config.parts for line in PARTS[part](config, done, bar)]
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


def summarise(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line per part, task, base and strategy."""
    groups: dict[tuple, list] = {}
    for line in lines:
        groups.setdefault((line["part"], line["task"], line["base"], line["strategy"]), []).append(line)
    table = []
    for (part, task, base, strategy), members in groups.items():
        reference = groups.get((part, task, base, "outside" if part == "inside" else "base"), members)
        curves, plain = ([one["curve"] for one in group] for group in (members, reference))
        final, against = (float(np.median([c[-1] for c in group])) for group in (curves, plain))
        worth = None if part == "inside" else efficiency(plain, curves)
        table.append(
            {
                "part": part,
                "task": task,
                "base": base,
                "strategy": strategy,
                "seeds": len(members),
                "final": f"{final:.4g}",
                "ratio": f"{final / against:.2f}",
                "wins": sum(a[-1] < b[-1] for a, b in zip(curves, plain, strict=True)),
                "efficiency": "-" if worth is None else f"{worth:.2f}",
                "test": mean_and_spread(one.get("final_test", one.get("test")) for one in members),
            }
        )
    return table


def least_important(lines: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """For each part and strategy, in how many searches each measure finds the branch of noise the least important."""
    counts: dict[str, dict[str, int]] = {}
    for line in lines:
        if line["part"] in ("digits", "inside"):
            count = counts.setdefault(f"{line['part']}, {line['strategy']}", {})
            for measure in ("ped_anova", "ridge", "hypergradient"):
                weights = line[measure]
                lowest = weights["noise"] < min(weight for block, weight in weights.items() if block != "noise")
                count[measure] = count.get(measure, 0) + lowest
    return counts


def curves_of(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every trial of every search as a line."""
    return [
        {name: line[name] for name in ("part", "task", "base", "strategy", "seed")} | {"trial": k, "best": value}
        for line in lines
        for k, value in enumerate(line["curve"])
    ]
