"""The fit: search under equal budgets, one-sigma selection, final ensemble, everything written."""

import dataclasses
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

import ensembles as ens
import hypergrad as hg

from ..common.config import Common, Out, Positive, PositiveFloat, Seeds, Some
from ..common.report import as_json, environment, mean_and_spread, text_table, write_csv, write_json
from . import plots
from .data import Measurements, Name, Partition, ProtonTables, load
from .search import Ranges, searches
from .space import Choices
from .statistics import Judge, final_statistics, fold_statistics
from .training import Fit, Sizes
from .trials import Trials, as_rows, point

Method = Literal["gradient", "random", "tpe"]
QUICK = {"replicas": 4, "steps": 150, "trials": 8, "starts": 3, "final_replicas": 20, "final_steps": 600}
FULL = {"replicas": 100, "steps": 4000, "trials": 250, "final_replicas": 100, "final_steps": 10000, "own_splits": True}


@dataclass(frozen=True)
class Config(Common):
    """The structure of the proton from 2054 measurements: an ensemble of networks and its hyperparameters.

    Every replica fits its own fluctuation of the data. A trial trains `replicas` of them without each of four folds of
    whole data sets, all in one program; L1 is their mean chi2 on the fold left out. Hypergradients, random search and
    TPE (Optuna) look for the lowest L1 under one budget of gradients. Of all trials within one sigma of the lowest, the
    ten with the largest spread on held-out data provide the final ensemble, in turns, fitted to all data.

    The output folder holds summary.json, trials.csv, replicas.npz (all predictions), table.md and plots. A run that was
    stopped goes on where it was when started again with the same options.

    After NNPDF (2024), arXiv:2410.16248; --full is of its size. Ours: NLO theory, the hyperparameters with a gradient,
    and the ranges stated in docs/proton.md. Not for physics.
    """

    full: bool = False
    """The size of the publication, for a GPU: 100 replicas, 4000 steps, 250 trials, a split for every replica."""
    data: Name = "proton"
    """proton: 11 sets of deep-inelastic scattering. diabetes: a regression that ships with scikit-learn."""
    partition: Partition = "balanced"
    """Which sets of the proton data make up the folds."""
    methods: Some[Method] = ("gradient", "random", "tpe")
    """Which searches to run."""
    seeds: Seeds = 1
    """Repetitions of all searches, each with its own replicas."""
    trials: Positive = 20
    """Budget of every search and seed, in trials without hypergradient."""
    replicas: Positive = 8
    """Replicas of a trial, for every fold."""
    steps: Positive = 400
    """Training steps of a trial at most (epochs: all points at every step)."""
    estimator: Literal["implicit", "reverse", "drmad"] = "reverse"
    """Of the hypergradient: Gauss-Newton and conjugate gradients at the end of training (cannot see learning rate,
    clipping and initial weights, which stay), the last steps exactly, or along a stored path."""
    horizon: Positive = 10
    """Last training steps that reverse differentiates."""
    starts: Positive = 5
    """Random trials before the first hypergradient, the centre of the box among them."""
    hyper_rate: PositiveFloat = 0.1
    """Adam's rate on hyperparameters scaled to [-1, 1]."""
    widths: Some[Positive] = (25, 20)
    """Hidden units of the first trial."""
    least_width: Positive = 10
    """Fewest units that a search may choose."""
    most_width: Positive = 45
    """Most units; smaller networks are masks of this one."""
    train_fraction: float = 0.75
    """Of the points of every set that a replica sees; the others stop its training."""
    own_splits: bool = False
    """Another choice of these points for every replica, at more memory."""
    best: float = 0.85
    """Share of the replicas, those of lowest chi2, that L1 averages over."""
    sigma: Literal["trials", "replicas"] = "trials"
    """Which standard deviation selects."""
    threshold: PositiveFloat = 3.0
    """Trials of larger L1 have failed and do not count for sigma."""
    chosen: Positive = 10
    """Sets of hyperparameters in the final ensemble, at most."""
    final_replicas: Positive = 100
    """Replicas fitted to all sets."""
    final_steps: Positive = 2000
    """Their training steps at most."""
    out: Out = Path("results/proton")

    def __post_init__(self):
        super().__post_init__()
        if self.quick and self.full:
            raise ValueError("quick and full exclude each other")
        if not 0 < self.train_fraction < 1:
            raise ValueError(f"train_fraction must be between 0 and 1, got {self.train_fraction}")
        if not 0 < self.best <= 1:
            raise ValueError(f"best must be above 0 and at most 1, got {self.best}")
        if min(self.replicas, self.final_replicas) < 2:
            raise ValueError("replicas and final_replicas must be at least 2: the spread of one is 0")
        if not self.least_width <= min(self.widths) <= max(self.widths) <= self.most_width:
            raise ValueError(f"widths must be from {self.least_width} to {self.most_width}, got {self.widths}")

    def sizes(self, final: bool) -> Sizes:
        """What decides the shapes of a fit."""
        number, steps = (self.final_replicas, self.final_steps) if final else (self.replicas, self.steps)
        widths = (self.most_width,) * len(self.widths)
        return Sizes(number, steps, widths, self.train_fraction, self.own_splits, self.best)

    def first(self) -> Choices:
        """The choices of the first trial."""
        return Choices(np.array(self.widths), max(1, round(0.2 * self.steps)), False, False, True)


def make_estimator(config: Config, inner: hg.AbstractInnerSolver) -> hg.AbstractEstimator:
    """What the option says."""
    if config.estimator == "implicit":
        return hg.Implicit(inner, hg.CG(30, damping=0.1), curvature=hg.gauss_newton)
    if config.estimator == "drmad":
        return hg.DrMAD(inner, knots=max(1, config.steps // 10), max_growth=100.0, check=None)
    return hg.Reverse(inner, horizon=min(config.horizon, config.steps), check=None)


def search(config: Config, measured: Measurements) -> tuple[Fit, list[dict[str, Any]]]:
    """All trials of all searches and seeds."""
    ranges = Ranges(config.least_width, (config.most_width,) * len(config.widths), config.steps)
    unseen = ("log_rate", "log_clip", "log_scale") if config.estimator == "implicit" else ()
    budget, trials = config.trials * config.steps, []
    form = "{l_bar}{bar}| {n:.0f}/{total} gradients [{elapsed}<{remaining}{postfix}]"
    with tqdm(total=budget * config.seeds * len(config.methods), bar_format=form) as bar:
        for seed in config.seed_range():
            fit = Fit(measured, config.sizes(final=False), seed, cross=True)
            maker = Trials(fit, lambda inner: make_estimator(config, inner), unseen, config.out / "trials")
            made = searches(fit.space, ranges, config.first(), config.starts, config.hyper_rate)
            for name in config.methods:
                bar.set_postfix_str(f"{name}, seed {seed}")
                trials += maker.follow(name, seed, made[name](seed), budget, bar.update)
    return fit, trials


def select(config: Config, trials: list[dict[str, Any]]) -> dict[str, ens.Selection]:
    """The trials within one sigma of the lowest L1, by both readings of sigma; the most conservative come first."""
    column = lambda name: np.array([np.nan if trial[name] is None else trial[name] for trial in trials], float)
    none = [np.nan] * config.replicas
    replicas = np.array([trial["replica_L1"] or none for trial in trials], float)
    threshold = max(config.threshold, float(np.nanmin(column("L1"))))
    readings: tuple[Literal["trials", "replicas"], ...] = ("trials", "replicas")
    rule = partial(ens.one_sigma, column("L1"), column("L3"), config.chosen)
    return {sigma: rule(sigma=sigma, replica_losses=replicas, threshold=threshold) for sigma in readings}


def final_fit(config: Config, measured: Measurements, chosen: list[dict[str, Any]]) -> tuple[Fit, Any, Any, Any]:
    """The ensemble on all points, its replicas spread in turns over the sets chosen; patience is the same share of the
    steps as in the search. Returns the fit, its problem, the members and their hyperparameters."""
    fit = Fit(measured, config.sizes(final=True), config.first_seed + 1000, cross=False)
    sets = ens.spread_replicas(config.final_replicas, len(chosen))
    units, choices = zip(*(point(trial) for trial in chosen), strict=True)
    stack = lambda trees: jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *trees)
    unit = jax.tree.map(lambda a: a.astype(jnp.result_type(float)), ens.take_sets(stack(units), sets))
    longer = [c._replace(patience=max(1, round(c.patience * config.final_steps / config.steps))) for c in choices]
    problem, inner = fit.prepare(ens.take_sets(stack(longer), sets))
    estimate = hg.evaluate(inner, problem, fit.start, unit, jax.random.key(0))
    return fit, problem, estimate.params, unit


def main(config: Config) -> dict[str, Any]:
    """Run what is missing, write everything, return the summary."""
    prepare(config)
    measured = load(config.data, config.partition, config.first_seed)
    fit, trials = search(config, measured)
    selection = select(config, trials)
    chosen = [trials[i] for i in selection[config.sigma].chosen]
    final, problem, members, unit = final_fit(config, measured, chosen)
    predictions = final.predictions(members, unit, problem)[0]
    statistics = final_statistics(measured, predictions)
    best = min((trial for trial in trials if trial["L1"] is not None), key=lambda trial: trial["L1"])
    with np.load(config.out / "trials" / f"{best['method']}-{best['seed']}.npz") as file:
        fold_predictions = file["predictions"]
    write_arrays(config.out / "replicas.npz", measured, predictions, statistics["kept"], fold_predictions)
    summary = {
        "config": config,
        "environment": environment(),
        "sigma": config.sigma,
        "points": len(measured.values),
        "hyperparameters": len(fit.space),
        "final": statistics,
        "best_trial": {key: best[key] for key in ("method", "seed", "number", "point")}
        | fold_statistics(Judge(measured, measured.folds), fold_predictions, config.best),
        "selection": {name: found._asdict() for name, found in selection.items()},
        "table": compare(config, trials),
    }
    written = write(config, fit, trials, as_json(summary))
    keep = np.array(statistics["kept"])
    plots.draw_all(config.out, measured, trials, written, predictions, keep)
    if isinstance(measured.tables, ProtonTables):
        x, f = plots.distributions(final, members, unit, problem, keep)
        plots.draw_distributions(config.out / "pdfs.png", x, f, measured.tables.basis)
    return written


def compare(config: Config, trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line per search: the lowest L1, and the share of the budget until the lowest L1 of TPE is reached."""
    runs: dict[tuple[str, int], list[dict]] = {}
    for trial in trials:
        if trial["L1"] is not None:
            runs.setdefault((trial["method"], trial["seed"]), []).append(trial)
    lowest = {run: min(trial["L1"] for trial in done) for run, done in runs.items()}
    budget, table = config.trials * config.steps, []
    for method in config.methods:
        mine = {seed: done for (name, seed), done in runs.items() if name == method}
        shares = [
            min((t["gradients_so_far"] for t in done if t["L1"] <= lowest.get(("tpe", seed), -np.inf)), default=None)
            for seed, done in mine.items()
        ]
        reached = [share / budget for share in shares if share is not None]
        table.append(
            {
                "search": method,
                "lowest L1": mean_and_spread(lowest[method, seed] for seed in mine),
                "trials": mean_and_spread(len(done) for done in mine.values()),
                "share of the budget to TPE's lowest L1": mean_and_spread(reached),
                "reached": f"{len(reached)} of {len(mine)}",
                "seconds": mean_and_spread(sum(t["seconds"] for t in done) for done in mine.values()),
            }
        )
    return table


def prepare(config: Config) -> None:
    """Refuse a folder that holds another run."""
    config.out.mkdir(parents=True, exist_ok=True)
    path, wanted = config.out / "config.json", as_json(dataclasses.replace(config, out=Path("")))
    if path.exists() and (found := json.loads(path.read_text())) != wanted:
        differs = {key: (found.get(key), wanted[key]) for key in wanted if found.get(key) != wanted[key]}
        raise SystemExit(
            f"{config.out} holds another run; choose another --out or delete it. There and here: {differs}"
        )
    write_json(path, wanted)


def write_arrays(path: Path, measured: Measurements, predictions, kept, fold_predictions) -> None:
    """Everything that every statistic can be computed from."""
    np.savez_compressed(
        path,
        predictions=predictions.astype(np.float32),
        kept=np.array(kept),
        fold_predictions=fold_predictions,
        data=measured.values,
        covariance=measured.covariance,
        folds=measured.folds,
        set_of_point=measured.set_of_point,
        sets=np.array(measured.sets),
    )


def write(config: Config, fit: Fit, trials: list[dict[str, Any]], summary: dict[str, Any]) -> dict[str, Any]:
    """summary.json, trials.csv, table.md; print the essence."""
    write_json(config.out / "summary.json", summary)
    write_csv(config.out / "trials.csv", as_rows(trials, fit))
    text = text_table(summary["table"])
    (config.out / "table.md").write_text(text + "\n")
    final = summary["final"]
    print(f"\n{config.data}: {config.trials} trials of {config.steps} steps a search, {config.seeds} seeds\n\n{text}")
    print(
        f"\nfinal ensemble: {final['num_kept']} replicas, chi2/N of the mean {final['chi2_of_mean']:.3f}, "
        f"of a replica {final['chi2_mean_replica']:.3f}, phi {final['phi']:.3f}, written to {config.out}"
    )
    return summary
