"""Plots of the study."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..common.figures import Styles, figure, step_curves
from ..common.report import Row, grouped

COLOURS = {
    "greedy": "#0072B2",
    "drmad": "#D55E00",
    "hoag": "#009E73",
    "reverse": "#000000",
    "random": "#999999",
    "random_scalar": "#E69F00",
    "drmad_knots": "#E69F00",
    "tpe": "#CC79A7",
    "em": "#56B4E9",
    "best_scalar": "#56B4E9",
    "random_greedy": "#8C564B",
    "plain": "#882255",
}
WORDS = {
    "drmad": "DrMAD",
    "hoag": "HOAG",
    "random": "random search",
    "random_scalar": "random, one variance",
    "drmad_knots": "DrMAD, 5 knots",
    "tpe": "TPE, one per layer",
    "em": "closed-form step",
    "best_scalar": "best single variance",
    "random_greedy": "random, then greedy",
    "plain": "plain training",
}
STYLES = Styles(COLOURS, WORDS, dashed=("reverse", "drmad_knots"))
DATA = {"wisdm": "WISDM", "wisdm-raw": "WISDM, raw series", "mnist": "MNIST", "mnist-small": "small MNIST"}
CRITERIA = {"elbo": "evidence bound", "evidence": "Laplace evidence", "cv": "cross-validation"}
BUDGETS = {"iterations": "equal updates of the weights", "gradients": "equal gradients"}
APART = 0.005  # between the marks of two methods at the same noise
Lines = Sequence[Row]
KEY = ("data", "criterion", "budget")


def draw(out: Path, history: Lines, runs: Lines, noise: Lines) -> list[str]:
    """Draws all plots into the folder and returns their names."""
    names = []
    for kind, lines, one in (
        ("convergence", history, convergence),
        ("errors", runs, errors),
        ("image-noise", noise, image_noise),
    ):
        for mine in grouped(lines, KEY):
            names.append("-".join([kind, *(mine[0][key] for key in KEY)]) + ".png")
            one(out / names[-1], mine, heading(mine[0]))
    return names


def heading(line: Row) -> str:
    """Returns data set, criterion and budget in words."""
    named = lambda key, words: words.get(line[key], str(line[key]))
    return f"{named('data', DATA)}, {named('criterion', CRITERIA)}, {named('budget', BUDGETS)}"


def convergence(path: Path, history: Lines, title: str) -> None:
    """Draws the best Q so far against cost."""
    unit = history[0]["budget"]
    with figure(path) as axes:
        step_curves(axes, history, unit, "Q", STYLES)
        axes.set(
            xlabel={"iterations": "updates of the weights"}.get(unit, unit),
            ylabel="best criterion Q so far, nats",
            title=title,
        )
        least, most = sorted(map(abs, axes.get_ylim()))
        if most > 10 * least:  # over less a logarithmic axis has a tick or two
            axes.set_yscale("symlog", subs=(2, 5))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.legend(fontsize=8, ncols=2)


def errors(path: Path, runs: Lines, title: str) -> None:
    """Draws the test error against noise on the weights: the mean over seeds with the standard deviation."""
    noises = (0.0, 0.25, 0.5)
    methods = grouped(runs, ("method",))
    with figure(path, size=(6, 4)) as axes:
        for place, mine in enumerate(methods):
            values, name = np.array([[run["E"], run["E_0.25"], run["E_0.5"]] for run in mine], float), mine[0]["method"]
            spread = values.std(0, ddof=1) if len(values) > 1 else np.zeros(3)
            at = np.array(noises) + APART * (place - (len(methods) - 1) / 2)  # none lies behind another
            label, colour = STYLES.of(name)
            axes.errorbar(at, values.mean(0), spread, color=colour, label=label, capsize=2)
        finish(axes, "noise on the weights, standard deviation", runs[0]["data"], title)


def image_noise(path: Path, noise: Lines, title: str) -> None:
    """Draws the test error after training with noise on the inputs."""
    with figure(path, size=(6, 4)) as axes:
        for mine in grouped(noise, ("method",)):
            levels = grouped(sorted(mine, key=lambda line: line["image_noise"]), ("image_noise",))
            values = [np.mean([line["E"] for line in level]) for level in levels]
            label, colour = STYLES.of(mine[0]["method"])
            at = [level[0]["image_noise"] for level in levels]
            axes.plot(at, values, color=colour, label=label)
        finish(axes, "noise on the training inputs", noise[0]["data"], title)


def finish(axes: Any, label: str, data: str, title: str) -> None:
    """Names the axes of a plot of test errors."""
    measure = "test RMSE" if data in ("synthetic", "wisdm-raw") else "test accuracy"
    axes.set(xlabel=label, ylabel=measure, title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower left")  # at little noise all curves are high
