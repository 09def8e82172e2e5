"""Everything that the fit writes: summary, tables, arrays, plots."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import PyTree

import ensembles as ens
import hypergrad as hg

from ..common.report import as_json, environment, grouped, mean_and_spread, text_table, write_csv, write_json
from . import plots
from .data import Measurements, ProtonTables
from .hyperparameters import Ranges
from .statistics import Judge, final_statistics, fold_statistics
from .training import Fit
from .trials import Row, as_rows

SHARES = {"fifth": 0.2, "half": 0.5, "all": 1.0}  # of the budget


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
    runs = by_run(config, trials)
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
            "runs": runs,
            "table": compare(runs),
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


def by_run(config: Any, trials: list[Row]) -> list[Row]:
    """Returns one line per search and seed: its lowest L1 with a fifth, half and all of the budget of gradients.

    `share` is the part of the budget until the lowest L1 of TPE with all of it, `None` where that is never reached.
    """
    budget, runs = config.trials * config.steps, []
    searches = grouped([trial for trial in trials if trial["L1"] is not None], ("method", "seed"))
    lowest = {(done[0]["method"], done[0]["seed"]): min(trial["L1"] for trial in done) for done in searches}
    for done in searches:
        method, seed = done[0]["method"], done[0]["seed"]
        spent = np.array([trial["gradients_so_far"] for trial in done]) / budget
        so_far = np.minimum.accumulate([trial["L1"] for trial in done])
        best = {name: so_far[spent <= share].min(initial=np.inf) for name, share in SHARES.items()}
        reached = spent[so_far <= lowest.get(("tpe", seed), -np.inf)]
        rest = {"share": reached.min(initial=np.inf), "trials": len(done), "seconds": sum(t["seconds"] for t in done)}
        runs.append({"method": method, "seed": seed, **best, **rest})
    found: list[Row] = as_json(runs)  # what is infinite has not happened
    return found


def compare(runs: list[Row]) -> list[Row]:
    """Returns one line per search, over its seeds."""
    columns = {"lowest L1": "all", "trials": "trials", "share of the budget to TPE's lowest L1": "share"}
    table = []
    for mine in grouped(runs, ("method",)):
        line = {head: mean_and_spread(run[name] for run in mine) for head, name in columns.items()}
        reached = sum(run["share"] is not None for run in mine)
        rest = {"reached": f"{reached} of {len(mine)}", "seconds": mean_and_spread(run["seconds"] for run in mine)}
        table.append({"search": mine[0]["method"], **line, **rest})
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
