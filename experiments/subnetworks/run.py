"""Searches that know of subnetworks: configuration, report."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from tqdm.auto import tqdm

import hypergrad as hg

from ..common.config import Common, NonNegative, Out, Positive, Seeds, Some
from ..common.report import save, write_csv
from .branches import HYPER_STEPS, Task, Training, aerosol, branch_space, everything, halves, moved
from .functions import WEIGHTS
from .parts import Done, networks, synthetic, told
from .plots import draw
from .strategies import STRATEGIES, BaseName, StrategyName, searcher
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
    """Does it pay to search a model of several subnetworks by its parts?

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

    parts: Some[PartName] = PART_NAMES
    """Which parts to run."""
    bases: Some[BaseName] = BASES
    """Base searchers of the synthetic part."""
    branches: Some[Literal["dense", "cnn"]] = ("dense", "cnn")
    """Branches for the halves of digits."""
    strategies: Some[StrategyName] = STRATEGIES
    """What to put around them."""
    first_seed: NonNegative = 1000
    """The first seed of every part. Settings were chosen on seeds below 1000."""
    seeds: Seeds = 20
    """Repetitions of the synthetic part."""
    network_seeds: Positive = 10
    """Repetitions of digits and inside."""
    parcel_seeds: Positive = 10
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
    digits_final_steps: Positive = 5000
    """Updates of the best networks on digits, trained once more."""
    parcel_final_steps: Positive = 10_000
    """Updates of the best networks on the parcel model, trained once more."""
    batch: Positive = 4
    """Trials asked for and trained at once."""
    out: Out = Path("results/subnetworks")

    def __post_init__(self):
        super().__post_init__()
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
                for seed in config.seed_range():
                    cell = {"part": "synthetic", "task": weights, "base": base, "strategy": strategy, "seed": seed}
                    lines.append(done.get(cell | {"trials": trials}, partial(make, seed=seed)))
                    bar.update()
    return lines


def run_digits(config: Config, done: Done, bar) -> list[dict[str, Any]]:
    """Random search with every strategy, on digits with a branch of noise; dense branches, and convolutions."""
    lines: list[dict[str, Any]] = []
    for kind in config.branches:
        training: tuple[Training, ...] = ()
        for seed in config.seed_range(config.network_seeds):
            task = halves(seed, 1100, 347, config.num_noise, kind == "cnn")
            all_rows, task = moved(everything(task), seed), moved(task, seed)
            training = training or short_and_long(task, config.digits_steps, config.digits_final_steps, 64)
            for strategy in config.strategies:
                method = searcher("random", strategy, max(8, config.digits_trials // 3), hg.trials.RidgeImportance())
                cell = (strategy, seed, config.digits_trials)
                lines.append(found_and_trained(config, done, "digits", (task, all_rows), training, method, cell))
                bar.update()
    return lines


def run_parcel(config: Config, done: Done, bar) -> list[dict[str, Any]]:
    """TPE with every strategy, on the parcel model."""
    task = aerosol()
    training = short_and_long(task, config.parcel_steps, config.parcel_final_steps, 256)
    lines = []
    for seed in config.seed_range(config.parcel_seeds):
        for strategy in config.strategies:
            method = searcher("tpe", strategy, max(8, config.parcel_trials // 3), hg.trials.RidgeImportance())
            cell = (strategy, seed, config.parcel_trials)
            lines.append(found_and_trained(config, done, "parcel", (task, task), training, method, cell))
            bar.update()
    return lines


def short_and_long(task: Task, steps: int, final_steps: int, batch: int) -> tuple[Training, ...]:
    """How trials are trained, and how the best network is."""
    return tuple(Training(task.spec, number, batch, cosine=True) for number in (steps, final_steps))


def found_and_trained(
    config: Config,
    done: Done,
    part: str,
    tasks: tuple[Task, Task],
    training: tuple[Training, ...],
    method: hg.trials.AbstractSearcher,
    cell: tuple[str, int, int],
) -> dict[str, Any]:
    """A search on the first task with the first training, its best network once more on the second with the second."""
    line = one(config, done, part, tasks[0], training[0], method, *cell)
    best = hg.trials.FixedList([line["params"]])
    final = one(config, done, "final", tasks[1], training[1], best, *cell[:2], trials=1, size=1)
    return line | {"final_test": final["test"], "final_size": final["size"]}


def run_inside(config: Config, done: Done, bar) -> list[dict[str, Any]]:
    """Penalties by hypergradient within random search's trials, against as many gradients without."""
    lines: list[dict[str, Any]] = []
    training: dict[str, Training] = {}
    for seed in config.seed_range(config.network_seeds):
        task = halves(seed, 300, 397, 32)
        space = branch_space(task.spec)
        if not training:
            training = {
                "outside": Training(task.spec, config.inside_steps, 64, cosine=False),
                "inside": Training(task.spec, config.inside_steps, 64, cosine=False, space=space),
            }
        for name, method in training.items():
            trials = config.digits_trials
            if name == "inside":  # as many gradients as the other
                trials = max(1, trials * config.inside_steps // inside_gradients(config))
            lines.append(one(config, done, "inside", task, method, hg.trials.Random(), name, seed, trials))
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
    base = "tpe" if task.name == "parcel" else "random"
    cell: dict[str, Any] = {"part": part, "task": task.name, "base": base, "strategy": strategy}
    inputs = list(task.spec.inputs)
    cell |= {"seed": seed, "trials": trials, "steps": training.steps, "inputs": inputs}
    name = f"{part}_{task.name}_{strategy}_{seed}_{training.steps}_{inputs}".replace(", ", "_")
    journal = config.out / f"{name}.jsonl"
    return done.get(cell, lambda: told(networks(task, training, method, seed, trials, size or config.batch, journal)))


PARTS = {"synthetic": run_synthetic, "digits": run_digits, "parcel": run_parcel, "inside": run_inside}


def main(config: Config) -> dict[str, Any]:
    """Run and report."""
    config.out.mkdir(parents=True, exist_ok=True)
    done, count = Done(config.out / "searches.jsonl"), len(config.strategies)
    totals = {
        "synthetic": len(WEIGHTS) * len(config.bases) * count * config.seeds,
        "digits": len(config.branches) * count * config.network_seeds,
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
