"""Plots of the searches that know of subnetworks."""

from typing import Any

import numpy as np

from ..common.figures import COLOURS, figure, panel_figure

MEASURES = {"ridge": "ridge regression", "ped_anova": "PED-ANOVA"}
WORDS = {"base": "the searcher alone", "divide": "divide and conquer"}


def draw(config: Any, lines: list[dict[str, Any]]) -> None:
    """Draws the best value against trials, the importance of the branches, and penalties inside and outside."""
    panels = list(dict.fromkeys((line["task"], line["base"]) for line in lines if line["part"] != "inside"))
    if panels:
        courses(config, lines, panels)
    importances(config, [line for line in lines if line["part"] == "digits" and line["strategy"] == "base"])
    inside(config, [line for line in lines if line["part"] == "inside"])


def quartiles(axis: Any, x: Any, curves: Any, label: str, colour: str) -> None:
    """Draws the median of several curves and the middle half of them."""
    low, middle, high = np.quantile(curves, [0.25, 0.5, 0.75], axis=0)
    axis.plot(x, middle, color=colour, label=label, lw=1.6)
    axis.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)


def courses(config: Any, lines: list[dict[str, Any]], panels: list[tuple[Any, ...]]) -> None:
    """Draws one panel per task and base searcher."""
    with panel_figure(config.out / "courses.png", len(panels), (3.3, 3.2), (0.5, 0.2), across=3) as axes:
        for axis, (task, base) in zip(axes.flat, panels, strict=False):
            for strategy, colour in zip(config.strategies, COLOURS, strict=False):
                here = [
                    line for line in lines if (line["task"], line["base"], line["strategy"]) == (task, base, strategy)
                ]
                curves = [line["curve"] for line in here]
                quartiles(axis, np.arange(1, len(curves[0]) + 1), curves, WORDS.get(strategy, strategy), colour)
            axis.set(xlabel="trials", yscale="log", title=f"{task}, {base.replace('tpe', 'TPE')}")
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter("{x:g}")
            axis.grid(alpha=0.3)
        for axis in axes[:, 0]:
            axis.set_ylabel("lowest validation value")
        axes[0, 0].legend(fontsize=8)


def importances(config: Any, lines: list[dict[str, Any]]) -> None:
    """Draws the shares of the branches by two measures, for dense branches and for convolutions."""
    if not lines:
        return
    panels = [(task, measure) for task in dict.fromkeys(line["task"] for line in lines) for measure in MEASURES]
    with figure(config.out / "importance.png", 1, len(panels), (3 * len(panels) + 0.5, 3.2), sharey=True) as axes:
        for axis, (task, measure) in zip(axes, panels, strict=True):
            here = [line[measure] for line in lines if line["task"] == task]
            shares = np.array([list(weights.values()) for weights in here])
            shares = shares / np.maximum(shares.sum(1, keepdims=True), 1e-12)
            axis.boxplot(shares, tick_labels=list(here[0]))
            axis.set_title(f"{task}: {MEASURES[measure]}")
            axis.grid(alpha=0.3)
        axes[0].set_ylabel("share of the importance")


def inside(config: Any, lines: list[dict[str, Any]]) -> None:
    """Draws the best value against gradients spent."""
    if not lines:
        return
    with figure(config.out / "inside.png", size=(6, 4)) as axis:
        for strategy, colour in zip(("outside", "inside"), COLOURS, strict=False):
            here = [line for line in lines if line["strategy"] == strategy]
            quartiles(axis, here[0]["gradients"], [line["curve"] for line in here], f"penalties {strategy}", colour)
        axis.set(xlabel="gradients", ylabel="lowest validation loss", yscale="log")
        axis.legend()
        axis.grid(alpha=0.3)
