"""Plots of the study."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..common.figures import figure

COLOURS = {
    "greedy": "#0072B2",
    "drmad": "#D55E00",
    "hoag": "#009E73",
    "reverse": "#000000",
    "random": "#999999",
    "drmad_knots": "#E69F00",
    "tpe": "#CC79A7",
    "em": "#56B4E9",
    "random_greedy": "#8C564B",
}
Lines = Sequence[dict[str, Any]]


def draw(out: Path, history: Lines, runs: Lines, noise: Lines) -> list[str]:
    """All plots into the folder; their names."""
    names = []
    for key in dict.fromkeys(_key(line) for line in runs):
        mine = lambda lines, key=key: [
            line for line in lines if (line["data"], line["criterion"], line["budget"]) == key
        ]
        names.append("convergence-" + "-".join(key) + ".png")
        convergence(out / names[-1], mine(history), key)
        names.append("errors-" + "-".join(key) + ".png")
        errors(out / names[-1], mine(runs), key)
        if mine(noise):
            names.append("image-noise-" + "-".join(key) + ".png")
            image_noise(out / names[-1], mine(noise), key)
    return names


def _key(line: dict[str, Any]) -> tuple[str, str, str]:
    return line["data"], line["criterion"], line["budget"]


def convergence(path: Path, history: Lines, key: tuple[str, str, str]) -> None:
    """Best Q so far against cost: the median over seeds with the range."""
    unit = key[2]
    with figure(path) as axes:
        for name in dict.fromkeys(line["method"] for line in history):
            lines = [line for line in history if line["method"] == name and line["Q"] is not None]
            curves = [[line for line in lines if line["seed"] == seed] for seed in {line["seed"] for line in lines}]
            if not curves:
                continue
            grid = np.linspace(0, max(line[unit] for line in lines), 300)
            values = np.array([steps(curve, unit, grid) for curve in curves])
            axes.plot(grid, np.median(values, 0), color=COLOURS[name], label=name, lw=1.8)
            axes.fill_between(grid, values.min(0), values.max(0), color=COLOURS[name], alpha=0.12, lw=0)
        axes.set(xlabel=f"{unit} (weights)", ylabel="best Q so far, nats", title=" · ".join(key[:2]))
        axes.set_yscale("symlog", subs=(2, 5))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=8, ncols=2)


def steps(curve: Lines, unit: str, grid: np.ndarray) -> np.ndarray:
    """A run's best value as a step function; before its first measurement, that one."""
    place = np.searchsorted([line[unit] for line in curve], grid, side="right") - 1
    return np.array([line["Q"] for line in curve], float)[np.maximum(place, 0)]


def errors(path: Path, runs: Lines, key: tuple[str, str, str]) -> None:
    """Test error against noise on the weights: the mean over seeds with the standard deviation."""
    noises = (0.0, 0.25, 0.5)
    with figure(path, size=(6, 4)) as axes:
        for name in dict.fromkeys(run["method"] for run in runs):
            values = np.array([[run["E"], run["E_0.25"], run["E_0.5"]] for run in runs if run["method"] == name], float)
            spread = values.std(0, ddof=1) if len(values) > 1 else np.zeros(3)
            axes.errorbar(noises, values.mean(0), spread, color=COLOURS[name], label=name, capsize=2)
        axes.set(xlabel="noise on the weights, standard deviation", ylabel=measure(key[0]), title=" · ".join(key))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, ncols=2)


def measure(data: str) -> str:
    """What the error of a data set is."""
    return "test RMSE" if data in ("synthetic", "wisdm-raw") else "test accuracy"


def image_noise(path: Path, noise: Lines, key: tuple[str, str, str]) -> None:
    """Test error after training with noise on the inputs."""
    with figure(path, size=(6, 4)) as axes:
        for name in dict.fromkeys(line["method"] for line in noise):
            lines = [line for line in noise if line["method"] == name]
            levels = sorted({line["image_noise"] for line in lines})
            values = [np.mean([line["E"] for line in lines if line["image_noise"] == level]) for level in levels]
            axes.plot(levels, values, color=COLOURS[name], label=name)
        axes.set(xlabel="noise on the training inputs", ylabel=measure(key[0]), title=" · ".join(key))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, ncols=2)
