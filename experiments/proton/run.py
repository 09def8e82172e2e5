"""The fit: search under equal budgets, one-sigma selection, final ensemble, everything written."""

from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

import ensembles as ens
import hypergrad as hg

from ..common.cells import Advance, rows, run_cells
from ..common.config import Common, Out, Positive, PositiveFloat, Seeds, Series, Some
from .data import Measurements, Name, Partition, load
from .hyperparameters import Choices, Ranges, stacked
from .report import Ensemble, Outcome, report
from .statistics import Judge
from .training import Fit, Sizes
from .trials import Row, Trainer, searchers

Method = Literal["gradient", "population", "random", "tpe", "plain"]
QUICK = {"replicas": 4, "steps": 150, "trials": 8, "starts": 3, "final_replicas": 20, "final_steps": 600}
FULL = {"replicas": 100, "steps": 4000, "trials": 250, "final_replicas": 100, "final_steps": 10000, "own_splits": True}


@dataclass(frozen=True)
class Config(Common):
    """The structure of the proton from 2054 measurements: an ensemble of networks and its hyperparameters.

    Every replica fits its own fluctuation of the data. A trial trains `replicas` of them without each of four folds of
    whole data sets, all in one program; L1 is their mean chi2 on the fold left out. Hypergradients, random search and
    TPE (Optuna) search for the lowest L1 under one budget of gradients, which plain training at the centre of the box
    may spend on one trial. Of all trials within one sigma of the lowest, the ten with the largest spread on held-out
    data provide the final ensemble, in turns, fitted to all data.

    The output folder holds summary.json, trials.csv, replicas.npz (all predictions), table.md and plots. A run that was
    stopped goes on where it was when started again with the same options.

    After NNPDF (2024), arXiv:2410.16248; --full is of its size. Ours: NLO theory, the hyperparameters with a gradient,
    and the ranges stated in docs/proton.md. Not for physics.
    """

    full: bool = False
    """The size of the publication, for a GPU: 100 replicas, 4000 steps, 250 trials, a split for every replica."""
    data: Name = "proton"
    """proton: 11 sets of deep-inelastic scattering. diabetes: a regression that ships with scikit-learn."""
    partition: Partition = "balanced"  # Choice of the sets that make up the folds.
    methods: Some[Method] = ("gradient", "population", "random", "tpe", "plain")
    """gradient: along the hypergradient of `estimator`, from the best of the first random trials. population: along
    that of L1 smoothed over `smoothing`, in all that is a number, from the best of the first trials of TPE. plain: the
    control, one trial of all the steps where the searches begin; it is not selected."""
    seeds: Seeds = 1  # Repetitions of all searches, each with its own replicas.
    trials: Positive = 20  # Budget of every search and seed, in trials without hypergradient.
    replicas: Positive = 8  # Replicas of a trial, for every fold.
    steps: Positive = 400  # Training steps of a trial at most (epochs: all points at every step).
    estimator: Literal["implicit", "reverse", "drmad"] = "reverse"
    """Hypergradient: Gauss-Newton and conjugate gradients at the end of training (cannot see learning rate,
    clipping and initial weights, which stay), the last steps exactly, or along a stored path."""
    horizon: Positive = 10  # Last training steps that reverse differentiates.
    starts: Positive = 5  # Trials before the first hypergradient, the centre of the box among them.
    hyper_rate: PositiveFloat = 0.1  # Adam's rate on hyperparameters scaled to [-1, 1].
    smoothing: PositiveFloat = 0.3
    """Standard deviation of the perturbed hyperparameters of population, scaled to [-1, 1]."""
    widths: Series[Positive] = (25, 20)  # Hidden units of the first trial.
    least_width: Positive = 10  # Fewest units that a search may choose.
    most_width: Positive = 45  # Most units; smaller networks are masks of this one.
    train_fraction: float = 0.75  # Share of every set that a replica sees; the other points stop its training.
    own_splits: bool = False  # A choice of these points for every replica, at more memory.
    best: float = 0.85  # Share of the replicas, those of lowest chi2, that L1 averages over.
    sigma: Literal["trials", "replicas"] = "trials"  # Standard deviation that selects.
    threshold: PositiveFloat = 3.0  # Trials of larger L1 have failed and do not count for sigma.
    chosen: Positive = 10  # Sets of hyperparameters in the final ensemble, at most.
    final_replicas: Positive = 100  # Replicas fitted to all sets.
    final_steps: Positive = 2000  # Their training steps at most.
    out: Out = Path("results/proton")

    def __post_init__(self):
        super().__post_init__()
        if self.quick and self.full:
            raise ValueError("quick and full exclude each other")
        if not 0 < self.train_fraction < 1:
            raise ValueError(f"train_fraction must be between 0 and 1, got {self.train_fraction}")
        if not 0 < self.best <= 1:
            raise ValueError(f"best must be above 0 and at most 1, got {self.best}")
        if not set(self.methods) - {"plain"}:
            raise ValueError("methods must name a search beside plain, whose trial provides no final ensemble")
        if min(self.replicas, self.final_replicas) < 2:
            raise ValueError("replicas and final_replicas must be at least 2: the spread of one is 0")
        if not self.least_width <= min(self.widths) <= max(self.widths) <= self.most_width:
            raise ValueError(f"widths must be from {self.least_width} to {self.most_width}, got {self.widths}")

    def sizes(self, final: bool) -> Sizes:
        """Returns the numbers that decide the shapes of a fit."""
        number, steps = (self.final_replicas, self.final_steps) if final else (self.replicas, self.steps)
        widths = (self.most_width,) * len(self.widths)
        return Sizes(number, steps, widths, self.train_fraction, self.own_splits, self.best)

    def first(self) -> Choices:
        """Returns the choices of the first trial."""
        return Choices(np.array(self.widths), max(1, round(0.2 * self.steps)), False, False, True)


def make_estimator(config: Config, inner: hg.AbstractInnerSolver) -> hg.AbstractEstimator:
    """Returns the estimator that the option names."""
    if config.estimator == "implicit":
        return hg.Implicit(inner, hg.CG(30, damping=0.1), curvature=hg.curvature.gauss_newton)
    if config.estimator == "drmad":
        return hg.DrMAD(inner, knots=max(1, config.steps // 10), max_growth=100.0, check=None)
    return hg.Reverse(inner, horizon=min(config.horizon, config.steps), check=None)


def make_fit(config: Config, measured: Measurements, seed: int) -> Fit:
    """Returns the ensemble that the trials of one seed train."""
    return Fit(measured, config.sizes(final=False), seed, cross=True)


def make_trainer(config: Config, fit: Fit) -> Trainer:
    """Returns what makes the trials of a fit, of as many steps as `config` says."""
    fit = fit.of_length(config.steps)
    ranges = Ranges(fit.box, config.least_width, fit.sizes.max_widths, config.steps)
    unseen = ("log_rate", "log_clip", "log_scale") if config.estimator == "implicit" else ()
    return Trainer(fit, Judge(fit.measured, fit.held_out), ranges, partial(make_estimator, config), unseen)


def losses(trials: list[Row]) -> np.ndarray:
    """Returns L1 of every trial, NaN of those that failed and of the control, which is not selected."""
    return np.array([np.nan if trial["method"] == "plain" else trial["L1"] for trial in trials], float)


def select(config: Config, trials: list[Row]) -> dict[str, ens.Selection]:
    """Returns the trials within one sigma of the lowest L1, by both readings of sigma; the most conservative first."""
    found, ranking = losses(trials), np.array([trial["L3"] for trial in trials], float)
    none = [np.nan] * config.replicas
    replicas = np.array([trial["replica_L1"] or none for trial in trials], float)
    threshold = max(config.threshold, float(np.nanmin(found)))
    readings: tuple[Literal["trials", "replicas"], ...] = ("trials", "replicas")
    rule = partial(ens.one_sigma, found, ranking, config.chosen)
    return {sigma: rule(sigma=sigma, replica_losses=replicas, threshold=threshold) for sigma in readings}


def final_fit(config: Config, measured: Measurements, chosen: list[Row], ranges: Ranges) -> Ensemble:
    """Fits the ensemble to all points, its replicas spread in turns over the sets chosen.

    Patience is the same share of the steps as in the search.
    """
    fit = Fit(measured, config.sizes(final=True), config.first_seed + 1000, cross=False)
    sets = np.asarray(ens.spread_replicas(config.final_replicas, len(chosen)))
    unit, choices = stacked(ranges, [chosen[index]["params"] for index in sets])
    patience = np.maximum(1, np.round(choices.patience * config.final_steps / config.steps))
    problem, inner = fit.prepare(choices._replace(patience=patience))
    estimate = hg.evaluate(inner, problem, fit.start, unit, jax.random.key(0))
    return Ensemble(fit, problem, estimate.params, unit)


def main(config: Config) -> dict[str, Any]:
    """Runs what is missing, writes everything and returns the summary."""
    measured = load(config.data, config.partition, config.first_seed)
    fit = lru_cache(maxsize=1)(partial(make_fit, config, measured))
    trainer = lru_cache(maxsize=1)(lambda seed: make_trainer(config, fit(seed)))
    journals = config.out / "trials"
    journals.mkdir(parents=True, exist_ok=True)

    def run(advance: Advance, method: Method, seed: int) -> dict[str, Any]:
        budget = config.trials * config.steps
        sized = replace(config, steps=budget) if method == "plain" else config
        made = trainer(seed) if sized is config else make_trainer(sized, fit(seed))
        made = replace(made, smoothing=config.smoothing if method == "population" else None)
        starts, rate = config.starts, config.hyper_rate
        searcher = searchers(made.ranges, sized.first(), starts=starts, rate=rate, seed=seed)[method]
        return {"runs": made.search(searcher, budget, journals / f"{method}-{seed}.jsonl", advance)}

    cells = [{"method": method, "seed": seed} for seed in config.seed_range() for method in config.methods]
    trials = rows(run_cells(config, cells, run, "searches"), "runs")
    selection = select(config, trials)
    chosen = [trials[i] for i in selection[config.sigma].chosen]
    best = trials[int(np.nanargmin(losses(trials)))]
    _, held_out = trainer(best["seed"]).estimate(best["params"], best["point"]["gradient"])
    ensemble = final_fit(config, measured, chosen, trainer(best["seed"]).ranges)
    return report(config, Outcome(measured, trials, selection, best, held_out, ensemble), trainer(best["seed"]).ranges)
