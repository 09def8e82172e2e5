"""Plots of the comparison."""

from pathlib import Path

import numpy as np

from ..common.figures import figure

COLOURS = {
    "greedy": "#0072B2",
    "drmad": "#D55E00",
    "hoag": "#009E73",
    "reverse": "#000000",
    "random": "#999999",
    "random_scalar": "#E69F00",
    "tpe": "#CC79A7",
    "best_scalar": "#56B4E9",
}
GRADIENT = ("greedy", "drmad", "hoag", "reverse")


def draw(config, cells: list[dict]) -> None:
    """All plots into the output folder."""
    label = "negative ELBO per example" if config.criterion == "elbo" else "validation loss"
    for unit, heading in (("iterations", "updates of the weights"), ("seconds", "seconds, without compilation")):
        curves(config.out / f"criterion_{unit}.png", cells, config.methods, unit, heading, label)
    learned = [cell for cell in cells if cell["run"]["method"] in GRADIENT and cell["run"]["seed"] == 0]
    if learned:
        histograms(config.out / "log_variances.png", learned)
        maps(config.out / "first_layer.png", learned, config.hidden)


def curves(path: Path, cells: list[dict], methods, unit: str, heading: str, label: str) -> None:
    """Best criterion so far against cost: the median over seeds with the range."""
    with figure(path) as axes:
        for name in methods:
            runs = [cell["history"] for cell in cells if cell["run"]["method"] == name]
            if name == "best_scalar":
                values = [run[-1]["best"] for run in runs if run[-1]["best"] is not None]
                if values:
                    axes.axhline(np.median(values), color=COLOURS[name], ls=":", label=f"{name} (larger budget)")
                continue
            grid = np.linspace(min(run[0][unit] for run in runs), max(run[-1][unit] for run in runs), 400)
            lines = np.array([_steps(run, unit, grid) for run in runs])
            axes.plot(grid, np.nanmedian(lines, 0), color=COLOURS[name], label=name, lw=1.8)
            axes.fill_between(grid, np.nanmin(lines, 0), np.nanmax(lines, 0), color=COLOURS[name], alpha=0.15, lw=0)
        axes.set(xlabel=heading, ylabel=f"best {label}", yscale="log")
        if unit == "seconds":
            axes.set_xscale("log")
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=8, ncols=2)


def _steps(run: list[dict], unit: str, grid: np.ndarray) -> np.ndarray:
    """A run's best value as a step function; before its first measurement, that one."""
    place = np.searchsorted([line[unit] for line in run], grid, side="right") - 1
    best = np.array([np.nan if line["best"] is None else line["best"] for line in run], float)
    return best[np.maximum(place, 0)]


def histograms(path: Path, cells: list[dict]) -> None:
    """The learned prior log-variances, all weights."""
    with figure(path, size=(7, 4)) as axes:
        for cell in cells:
            name = cell["run"]["method"]
            axes.hist(cell["log_variances"], bins=80, histtype="step", lw=1.6, color=COLOURS[name], label=name)
        axes.set(xlabel="prior log-variance", ylabel="weights", yscale="log")
        axes.legend()


def maps(path: Path, cells: list[dict], hidden: int) -> None:
    """Mean log-variance of the weights leaving each pixel: which pixels the prior lets matter."""
    with figure(path, 1, len(cells), (3 * len(cells), 3.2), squeeze=False) as axes:
        images = []
        for cell in cells:
            flat = np.array(cell["log_variances"], float)
            inputs = (len(flat) - hidden - 10 * hidden - 10) // hidden
            side = int(np.sqrt(inputs))
            images.append(flat[: hidden * inputs].reshape(hidden, side, side).mean(0))
        low, high = np.nanmin(images), np.nanmax(images)
        for ax, cell, image in zip(axes[0], cells, images, strict=True):
            drawn = ax.imshow(image, vmin=low, vmax=high, cmap="viridis")
            ax.set(title=cell["run"]["method"], xticks=[], yticks=[])
        axes[0, 0].figure.colorbar(drawn, ax=axes[0], label="mean prior log-variance", shrink=0.8)
