"""One figure, one file."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from .report import Row, grouped

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#000000", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
ACROSS = 4  # panels in a row


class Styles(NamedTuple):
    """The looks of methods by name: colours, words for the legend, and lines that are dashed, to hide none below."""

    colours: Mapping[str, str]
    words: Mapping[str, str] = MappingProxyType({})
    dashed: Sequence[str] = ()

    def of(self, name: str) -> tuple[str, str]:
        """Returns the label and the colour of a method."""
        return self.words.get(name, name), self.colours[name]


@contextmanager
def figure(
    path: Path, rows: int = 1, columns: int = 1, size: tuple[float, float] = (7, 4.5), **options: Any
) -> Iterator[Any]:
    """Yields the axes of a new figure, an array of them if there are several, and saves the figure at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", **options)
    yield axes
    drawn.savefig(path, dpi=150)
    plt.close(drawn)


@contextmanager
def panel_figure(
    path: Path,
    number: int,
    size: tuple[float, float],
    margin: tuple[float, float] = (0.0, 0.0),
    across: int = ACROSS,
    **options: Any,
) -> Iterator[Any]:
    """Yields the axes of a figure of so many panels of this size, `across` of them in a row; the rest is empty."""
    columns = min(number, across)
    rows = -(-number // columns)
    whole = (columns * size[0] + margin[0], rows * size[1] + margin[1])
    with figure(path, rows, columns, whole, squeeze=False, **options) as axes:
        for ax in axes.flat[number:]:
            ax.set_axis_off()
        yield axes


def band(ax: Any, x: Any, lines: Any, label: str, colour: str, style: str = "-") -> None:
    """Draws the median of several curves of shape (runs, points) and their range; `None` leaves a gap."""
    lines = np.asarray(lines, float)
    ax.plot(x, np.median(lines, 0), color=colour, label=label, lw=1.8, ls=style)
    ax.fill_between(x, lines.min(0), lines.max(0), color=colour, alpha=0.15, lw=0)


def curves(ax: Any, history: Sequence[Row], x: str, y: str, by: str) -> None:
    """Draws a `band` of y against x over the runs for every value of `by`; all runs have the same x."""
    for name, colour in zip(dict.fromkeys(line[by] for line in history), COLOURS, strict=False):
        lines = [line for line in history if line[by] == name]
        grid = sorted({line[x] for line in lines})
        values = [[line[y] for line in lines if line[x] == point] for point in grid]
        band(ax, grid, np.transpose(values), name, colour)
    ax.grid(alpha=0.3)


def suboptimality_panels(
    path: Path, panels: Sequence[Sequence[Row]], by: str, cost: str, label: str, colours: Mapping[str, str]
) -> None:
    """Draws the value `above` the minimum against a cost, one panel for each group of runs, named by `by`."""
    with panel_figure(path, len(panels), (4.4, 4.2), (1.5, 0.0)) as axes:
        for ax, lines in zip(axes.flat, panels, strict=False):
            step_curves(ax, lines, cost, "above", Styles(colours))
            ax.set(yscale="log", title=lines[0][by], xlabel=label)
            ax.locator_params(axis="x", nbins=4)
        for ax in axes[:, 0]:
            ax.set(ylabel="validation loss above its minimum")
        drawn = [pair for ax in axes.flat for pair in zip(*ax.get_legend_handles_labels(), strict=True)]
        labels = {label: handle for handle, label in drawn}
        axes[0, -1].legend(labels.values(), labels.keys(), fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))


def step_curves(ax: Any, history: Sequence[Row], x: str, y: str, styles: Styles) -> None:
    """Draws a `band` of y against x over the seeds for every method, each run a step function.

    Measurements without a value are left out. A band begins where all runs have been measured. A method that was
    measured once in every run is drawn as crosses.
    """
    known = [line for line in history if line[x] is not None and line[y] is not None]
    for name in dict.fromkeys(line["method"] for line in known):
        runs = grouped([line for line in known if line["method"] == name], ("seed",))
        if all(len(run) == 1 for run in runs):
            once = [[run[0][axis] for run in runs] for axis in (x, y)]
            label, colour = styles.of(name)
            ax.plot(*once, "x", color=colour, label=label)
            continue
        grid = np.linspace(max(run[0][x] for run in runs), max(run[-1][x] for run in runs), 400)
        indices = [np.searchsorted([line[x] for line in run], grid, side="right") - 1 for run in runs]
        values = [np.array([line[y] for line in run])[index] for run, index in zip(runs, indices, strict=True)]
        band(ax, grid, values, *styles.of(name), "--" if name in styles.dashed else "-")
    ax.grid(alpha=0.3, which="both")
