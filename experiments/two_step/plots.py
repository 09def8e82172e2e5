"""Plots of the two-step search."""

from typing import Any

import numpy as np
from matplotlib.ticker import NullFormatter

import hypergrad as hg

from ..common.figures import COLOURS, band, figure

PUBLISHED = 135  # the largest speed-up of Yu et al. (2023)


def draw(config: Any, states: dict[float, Any], runs: list[dict[str, Any]], growth: list[dict[str, Any]]) -> None:
    """Draws ranks at small fractions against ranks with all data, for one seed; quality; size against loss; growth."""
    scatter(config, states)
    quality(config, runs)
    front(config, states)
    grown(config, growth)


def scatter(config: Any, states: dict[float, Any]) -> None:
    """Draws the loss of every architecture at each fraction against its loss with all data."""
    fractions = config.fractions[:-1]
    with figure(config.out / "ranks.png", 1, len(fractions), (3 * len(fractions) + 0.5, 3.4), squeeze=False) as axes:
        last = np.array([told.result.value for told in states[1.0].history])
        for axis, fraction in zip(axes[0], fractions, strict=True):
            first = np.array([told.result.value for told in states[fraction].history])
            chosen = np.argsort(first, kind="stable")[: config.top]
            axis.plot(first, last, ".", color=COLOURS[0])
            axis.plot(first[chosen], last[chosen], "o", mfc="none", color=COLOURS[1], label=f"best {config.top}")
            axis.set(xscale="log", yscale="log", title=f"{fraction:.4g} of the data", xlabel="validation loss there")
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.grid(alpha=0.3)
        axes[0, 0].set_ylabel("validation loss with all data")
        axes[0, 0].legend(fontsize=8)


def quality(config: Any, runs: list[dict[str, Any]]) -> None:
    """Draws rank correlation, excess loss and speed-up against the fraction."""
    fractions = config.fractions[:-1]
    per_seed = lambda name: [
        [run[name] for run in runs if run["seed"] == seed] for seed in sorted({run["seed"] for run in runs})
    ]
    with figure(config.out / "quality.png", 1, 3, (9.9, 3.4)) as axes:
        names = ("spearman", "excess", "speed_up")
        labels = ("rank correlation", "excess loss of the two steps", "speed-up")
        for axis, name, label in zip(axes, names, labels, strict=True):
            band(axis, fractions, per_seed(name), "without compilation" if name == "speed_up" else label, COLOURS[0])
            axis.set(xscale="log", xlabel="fraction of the data", ylabel=label)
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.grid(alpha=0.3)
        band(axes[2], fractions, per_seed("speed_up_compiled"), "with compilation", COLOURS[1], "--")
        axes[2].set_ylim(bottom=0)
        axes[2].legend(fontsize=8)


def grown(config: Any, growth: list[dict[str, Any]]) -> None:
    """Draws the speed-up against the rows of data for each number of trials, and its limit."""
    if not growth:
        return
    with figure(config.out / "growth.png", size=(6, 4)) as axis:
        for trials, colour in zip(config.growth_trials, COLOURS, strict=False):
            lines = [line for line in growth if line["trials"] == trials]
            rows = [line["rows"] for line in lines]
            axis.plot(rows, [line["speed_up"] for line in lines], "o-", color=colour, label=f"{trials} trials")
            axis.plot(rows, [line["speed_up_compiled"] for line in lines], "s--", mfc="none", color=colour)
            axis.axhline(trials / config.top, color=colour, lw=0.8, ls=":")
        axis.axhline(PUBLISHED, color="0.5", lw=0.8)
        axis.annotate("135", (growth[0]["rows"], PUBLISHED), va="bottom", fontsize=8)
        axis.set(xscale="log", yscale="log", xlabel="rows of data", ylabel="speed-up, first step the same")
        axis.legend(title="dashed: with compilation; dotted: limit", fontsize=8, title_fontsize=8)
        axis.grid(alpha=0.3)


def front(config: Any, states: dict[float, Any]) -> None:
    """Draws the number of parameters against the loss with all data, and what cannot be bettered in both."""
    every = states[1.0].ranked
    with figure(config.out / "front.png", size=(6, 4)) as axis:
        axis.plot([told.result.size for told in every], [told.result.value for told in every], ".", color="0.6")
        best = hg.trials.pareto_front(every)
        sizes, values = [told.result.size for told in best], [told.result.value for told in best]
        axis.plot(sizes, values, "o-", color=COLOURS[0], label="Pareto front")
        axis.set(xscale="log", yscale="log", xlabel="parameters", ylabel="validation loss with all data")
        axis.legend()
        axis.grid(alpha=0.3)
