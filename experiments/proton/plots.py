"""Plots that physicists ask for first."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from matplotlib.ticker import NullFormatter

import hypergrad as hg

from ..common.figures import COLOURS, figure
from .data import Measurements, ProtonTables

LABELS = {"S": r"\Sigma", "g": "g", "V": "V", "V3": "V_3", "V8": "V_8", "T3": "T_3", "T8": "T_8", "T15": "T_{15}"}
WORDS = {
    "gradient": "along hypergradients",
    "population": "the ensemble",
    "random": "random search",
    "tpe": "TPE",
    "plain": "plain training",
}


def draw_all(
    folder: Path,
    measured: Measurements,
    trials: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
    predictions: np.ndarray,
    keep: np.ndarray,
) -> None:
    """Draws all plots that need no network."""
    search_curves(folder / "search.png", trials, summary)
    trial_statistics(folder / "trials.png", trials, summary)
    sets = summary["final"]["sets"]
    if len(sets) > 1:
        set_chi2(folder / "chi2_per_set.png", sets)
    data_theory = data_over_theory if isinstance(measured.tables, ProtonTables) else observed_predicted
    data_theory(folder / "data_theory.png", measured, predictions[keep])


def distributions(
    problem: hg.BilevelProblem, members: PyTree, unit: PyTree, keep: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns x and x f of shape (R, x, 8) at Q0, on 120 points."""
    x = np.concatenate([np.geomspace(1e-5, 0.1, 70), np.linspace(0.11, 0.95, 50)])
    given = problem.train

    @eqx.filter_jit
    def values(members, given, x):
        one = lambda *args: given.theory.distributions(*args, x)[: len(x)]
        return eqx.filter_vmap(one)(members, given.own, given.hparams(unit), given.choices)

    found = np.asarray(values(members, given, jnp.asarray(x, jnp.result_type(float))))
    return x, found[keep]


def draw_distributions(path: Path, x: np.ndarray, f: np.ndarray, basis: Sequence[str], Q0: float = 1.65) -> None:
    """Draws mean and one standard deviation over the replicas."""
    with figure(path, 2, 4, (13, 6)) as axes:
        for b, (ax, name) in enumerate(zip(axes.ravel(), basis, strict=True)):
            middle, spread = f[:, :, b].mean(0), f[:, :, b].std(0)
            ax.fill_between(x, middle - spread, middle + spread, color=COLOURS[0], alpha=0.35, lw=0, label="one σ")
            ax.plot(x, middle, color=COLOURS[0], label=f"mean of {len(f)}")
            ax.set(xscale="log", title=f"$x{LABELS[name]}$", xlabel="x")
            ax.axhline(0, color="black", lw=0.5)
            ax.grid(alpha=0.3)
        axes[0, 0].set_ylabel(f"at {Q0} GeV")
        axes[0, 0].legend(fontsize=8)


def data_over_theory(path: Path, measured: Measurements, predictions: np.ndarray) -> None:
    """Draws data over the mean prediction, and residuals in units of the total error, for six sets against x."""
    mean, spread = predictions.mean(0), predictions.std(0)
    errors = np.sqrt(np.diag(measured.covariance))
    order = np.argsort(-np.bincount(measured.set_of_point, minlength=len(measured.sets)))[:6]
    x = measured.tables.x  # type: ignore[union-attr]
    with figure(path, 4, 3, (13, 10), height_ratios=(2, 1, 2, 1)) as axes:
        for at, index in enumerate(sorted(order)):
            top, bottom = axes[at // 3 * 2, at % 3], axes[at // 3 * 2 + 1, at % 3]
            points = np.flatnonzero(measured.set_of_point == index)
            points = points[np.argsort(x[points])]
            ratio, bar = measured.values[points] / mean[points], errors[points] / np.abs(mean[points])
            top.errorbar(
                x[points], ratio, bar, fmt=".", ms=3, lw=0.6, color="black", alpha=0.5, label="data ± total error"
            )
            band = spread[points] / np.abs(mean[points])
            top.scatter(x[points], 1 + band, s=2, color=COLOURS[0])
            top.scatter(x[points], 1 - band, s=2, color=COLOURS[0], label="theory, one σ")
            top.axhline(1, color=COLOURS[0], lw=0.8)
            low, high = np.quantile(ratio, [0.01, 0.99])
            top.set(xscale="log", title=measured.sets[index], ylim=(min(low, 0.85) - 0.1, max(high, 1.15) + 0.1))
            bottom.scatter(x[points], (measured.values[points] - mean[points]) / errors[points], s=3, color="black")
            bottom.axhline(0, color=COLOURS[0], lw=0.8)
            bottom.set(xscale="log", ylim=(-4, 4), xlabel="x")
            for ax in (top, bottom):
                ax.xaxis.set_minor_formatter(NullFormatter())
            if at % 3 == 0:
                top.set_ylabel("data / theory")
                bottom.set_ylabel("residual, σ")
        axes[0, 0].legend(fontsize=7)


def observed_predicted(path: Path, measured: Measurements, predictions: np.ndarray) -> None:
    """Draws observation against prediction, with residuals, for data without x."""
    mean, spread = predictions.mean(0), predictions.std(0)
    errors = np.sqrt(np.diag(measured.covariance))
    with figure(path, 2, 1, (6, 7), height_ratios=(2, 1), sharex=True) as (top, bottom):
        top.errorbar(mean, measured.values, xerr=spread, fmt=".", ms=4, lw=0.6, color="black", alpha=0.5)
        top.axline((0, 0), slope=1, color=COLOURS[0])
        top.set(ylabel="observed", title=f"{measured.name}: mean ± one σ of the replicas")
        bottom.scatter(mean, (measured.values - mean) / errors, s=5, color="black")
        bottom.axhline(0, color=COLOURS[0])
        bottom.set(xlabel="predicted", ylabel="residual, σ")


def set_chi2(path: Path, sets: Mapping[str, Mapping[str, float]]) -> None:
    """Draws chi2 per point of every set."""
    with figure(path, size=(9, 4.5)) as ax:
        at = np.arange(len(sets))
        of_mean = [row["chi2_of_mean"] for row in sets.values()]
        ax.bar(at - 0.2, of_mean, 0.4, color=COLOURS[0], label="of the mean")
        replicas = [row["chi2_mean_replica"] for row in sets.values()]
        bars = [row["chi2_spread"] for row in sets.values()]
        ax.bar(at + 0.2, replicas, 0.4, yerr=bars, color=COLOURS[6], label="of a replica, mean ± standard deviation")
        ax.axhline(1, color="black", lw=0.8)
        ax.set_xticks(at, [f"{name}\n{row['points']}" for name, row in sets.items()], rotation=45, ha="right")
        ax.set(ylabel=r"$\chi^2/n$")
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)


def trial_statistics(path: Path, trials: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> None:
    """Draws φ² against chi2 on held-out folds, the band of one σ, and the trials chosen from it."""
    done = [trial for trial in trials if trial["L1"] is not None]
    with figure(path) as ax:
        for colour, method in zip(COLOURS, dict.fromkeys(trial["method"] for trial in trials), strict=False):
            mine = [trial for trial in done if trial["method"] == method]
            ax.scatter([t["L1"] for t in mine], [t["phi2"] for t in mine], s=14, color=colour, label=WORDS[method])
        for line, (name, found) in zip(("-", "--"), summary["selection"].items(), strict=True):
            ax.axvspan(found["lowest"], found["lowest"] + found["sigma"], color="black", alpha=0.08, lw=1, ls=line)
            ax.axvline(found["lowest"] + found["sigma"], color="black", ls=line, lw=1, label=f"one σ over {name}")
        chosen = [trials[i] for i in summary["selection"][summary["sigma"]]["chosen"]]
        ax.scatter([t["L1"] for t in chosen], [t["phi2"] for t in chosen], s=60, fc="none", ec="black", label="chosen")
        lowest = min(t["L1"] for t in done)
        ax.set(xlim=(0.98 * lowest, 2.2 * lowest), xlabel=r"$L_1$: $\chi^2/n$ on held-out folds", ylabel=r"$\varphi^2$")
        ax.set_yscale("log")
        ax.legend(fontsize=8)
        ax.grid(alpha=0.3)


def search_curves(path: Path, trials: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> None:
    """Draws the lowest L1 so far against gradients, median and range over seeds."""
    with figure(path) as ax:
        end = max(trial["gradients_so_far"] for trial in trials)
        grid = np.linspace(0, end, 200)
        for colour, method in zip(COLOURS, dict.fromkeys(trial["method"] for trial in trials), strict=False):
            done = [trial for trial in trials if trial["method"] == method and trial["L1"] is not None]
            if method == "plain":  # one trial, which ends with the budget
                once = ([trial[name] for trial in done] for name in ("gradients_so_far", "L1"))
                ax.plot(*once, "x", color=colour, label=WORDS[method])
                continue
            lines = []
            for seed in sorted({trial["seed"] for trial in trials}):
                mine = [trial for trial in done if trial["seed"] == seed]
                spent = np.array([t["gradients_so_far"] for t in mine])
                lowest = np.minimum.accumulate([t["L1"] for t in mine])
                at = np.searchsorted(spent, grid, side="right") - 1
                lines.append(np.where(at >= 0, lowest[np.maximum(at, 0)], np.nan))
            with np.errstate(invalid="ignore"):
                ax.plot(grid, np.median(lines, 0), color=colour, label=WORDS[method])
                ax.fill_between(grid, np.min(lines, 0), np.max(lines, 0), color=colour, alpha=0.15, lw=0)
        best = min(t["L1"] for t in trials if t["L1"] is not None)
        ax.set(xlabel="gradients of every replica", ylabel="lowest $L_1$ so far", ylim=(0.98 * best, 1.25 * best))
        ax.legend()
        ax.grid(alpha=0.3)
