"""Everything that the fit writes: summary, tables, arrays, plots."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import PyTree

import ensembles as ens
import hypergrad as hg

from ..common.report import as_json, environment, mean_and_spread, text_table, write_csv, write_json
from . import plots
from .data import Measurements, ProtonTables
from .hyperparameters import Ranges
from .statistics import Judge, final_statistics, fold_statistics
from .training import Fit
from .trials import Row, as_rows


class Ensemble(NamedTuple):
    """The final fit, its problem, its members and their hyperparameters."""

    fit: Fit
    problem: hg.BilevelProblem
    members: PyTree
    unit: PyTree


class Outcome(NamedTuple):
    """Everything that was found."""

    measured: Measurements
    trials: list[Row]
    selection: dict[str, ens.Selection]
    best: Row  # the trial of lowest L1
    held_out: np.ndarray  # its predictions, of shape (K, R, N)
    ensemble: Ensemble


def report(config: Any, found: Outcome, ranges: Ranges) -> dict[str, Any]:
    """Writes summary, tables, arrays and plots, prints the essence and returns the summary."""
    measured, trials, ensemble = found.measured, found.trials, found.ensemble
    predictions = ensemble.fit.predictions(ensemble.members, ensemble.unit, ensemble.problem)[0]
    statistics = final_statistics(measured, predictions)
    write_arrays(config.out / "replicas.npz", measured, predictions, statistics["kept"], found.held_out)
    best = {key: found.best[key] for key in ("method", "seed", "number", "point")}
    summary = as_json(
        {
            "config": config,
            "environment": environment(),
            "sigma": config.sigma,
            "points": len(measured.values),
            "hyperparameters": len(ranges.box),
            "final": statistics,
            "best_trial": best | fold_statistics(Judge(measured, measured.folds), found.held_out, config.best),
            "selection": {name: one._asdict() for name, one in found.selection.items()},
            "table": compare(config, trials),
        }
    )
    write_json(config.out / "summary.json", summary)
    write_csv(config.out / "trials.csv", as_rows(trials, ranges))
    (config.out / "table.md").write_text(text_table(summary["table"]) + "\n")
    say(config, summary)
    keep = np.array(statistics["kept"])
    plots.draw_all(config.out, measured, trials, summary, predictions, keep)
    if isinstance(measured.tables, ProtonTables):
        x, f = plots.distributions(*ensemble[1:], keep)
        plots.draw_distributions(config.out / "pdfs.png", x, f, measured.tables.basis)
    return summary


def say(config: Any, summary: dict[str, Any]) -> None:
    """Prints the table of the searches and the chi2 of the final ensemble."""
    final, sizes = summary["final"], f"{config.trials} trials of {config.steps} steps a search, {config.seeds} seeds"
    print(f"\n{config.data}: {sizes}\n\n{text_table(summary['table'])}")
    print(
        f"\nfinal ensemble: {final['num_kept']} replicas, chi2/N of the mean {final['chi2_of_mean']:.3f}, "
        f"of a replica {final['chi2_mean_replica']:.3f}, phi {final['phi']:.3f}, written to {config.out}"
    )


def compare(config: Any, trials: list[Row]) -> list[dict[str, Any]]:
    """Returns one line per search: the lowest L1, and the share of the budget until the lowest L1 of TPE is reached."""
    runs: dict[tuple[str, int], list[dict[str, Any]]] = {}
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


def write_arrays(path: Path, measured: Measurements, predictions: np.ndarray, kept: Any, held_out: np.ndarray) -> None:
    """Writes everything that every statistic can be computed from."""
    np.savez_compressed(
        path,
        predictions=predictions.astype(np.float32),
        kept=np.array(kept),
        fold_predictions=held_out.astype(np.float32),
        data=measured.values,
        covariance=measured.covariance,
        folds=measured.folds,
        set_of_point=measured.set_of_point,
        sets=np.array(measured.sets),
    )
