"""Table, plot and words of the experiment on images and text."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..common.cells import rows
from ..common.config import Common
from ..common.figures import COLOURS, panel_figure
from ..common.report import Row, grouped, save, spread_table, text_table

COLUMNS = ("test_error", "test_loss", "valid_loss", "epochs", "updates", "seconds")
LEARNED = ("decay", "rate", "momentum", "smoothing", "shift", "zoom", "threshold", "slope")


def report(config: Common, cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Writes summary.json, history.csv, tables, words and the plot, and returns the summary."""
    runs, history = rows(cells, "runs"), rows(cells, "history")
    known = [name for name in ("auc", *LEARNED) if any(name in run for run in runs)]
    padded = [dict.fromkeys(known) | run for run in runs]
    table = spread_table(padded, ("method",), COLUMNS + tuple(name for name in known if name == "auc"))
    hparams = spread_table(padded, ("method",), [name for name in known if name != "auc"])
    sentences = in_words(runs)
    draw(config.out / "vision.png", runs, history, cells)
    title = f"Errors in percent, losses in nats; mean ± standard deviation over {config.seeds} seeds"
    empty = {name: None for line in history for name in line}
    summary = save(config, runs, table, [empty | line for line in history], title, hparams=hparams, words=sentences)
    (config.out / "hyperparameters.md").write_text(text_table(hparams) + "\n")
    (config.out / "words.md").write_text("\n".join(f"- {sentence}" for sentence in sentences) + "\n")
    print("\n".join(sentences))
    return summary


def in_words(runs: Sequence[Row]) -> list[str]:
    """Returns sentences on how far each method is from the oracle, or from the source of the text."""
    oracle = {run["seed"]: run["test_error"] for run in runs if run["method"] == "oracle"}
    sentences = []
    for group in grouped([run for run in runs if run["method"] != "oracle"], ("method",)):
        method = group[0]["method"]
        if gaps := [run["test_error"] - oracle[run["seed"]] for run in group if run["seed"] in oracle]:
            listed = ", ".join(f"{gap:.2f}" for gap in gaps)
            sentences.append(f"{method}: test error above the oracle by {listed} points, seed by seed.")
        if "source" in group[0]:
            excess = np.mean([run["test_loss"] - run["source"] for run in group])
            least = np.mean([run["counts"] - run["source"] for run in group])
            sentences.append(
                f"{method}: test loss above that of the source by {excess:.4f} nats, counts by {least:.4f}."
            )
    return sentences


def draw(path: Path, runs: Sequence[Row], history: Sequence[Row], cells: Sequence[dict[str, Any]]) -> None:
    """Draws the test measure of every run, the course of thresholds and rates, and weights of examples of each kind."""
    panels: list[Callable[[Any], None]] = [partial(_points, runs=runs)]
    for name in ("threshold", "rate"):
        courses = grouped([line for line in history if name in line], ("method", "seed"))
        if moved := [course for course in courses if len({line[name] for line in course}) > 1]:
            panels.append(partial(_courses, courses=moved, name=name))
    weighted = [cell for cell in cells if "weights" in cell]
    kinds = {"threshold" in cell["runs"][0]: cell for cell in reversed(weighted)}  # the first of each kind
    panels += [partial(_weights, cell=kinds[kind]) for kind in sorted(kinds)]
    with panel_figure(path, len(panels), (4.0, 3.6), (1.0, 0.0), across=3) as axes:
        for axis, panel in zip(axes.flat, panels, strict=False):
            panel(axis)


def _weights(axis: Any, cell: dict[str, Any]) -> None:
    """Draws the weights of right and wrong labels."""
    weights, wrong, row = np.array(cell["weights"]), np.array(cell["wrong"]), cell["runs"][0]
    parts, label = (weights[~wrong], weights[wrong]), ("right label", "wrong label")
    axis.hist(parts, np.linspace(0, 1, 31), histtype="step", lw=1.6, color=COLOURS[:2], label=label)
    words = f"weight of an example, {row['method']}, seed {row['seed']}"
    axis.set(xlabel=words, ylabel="training images", yscale="log")
    axis.legend(fontsize=8)


def _courses(axis: Any, courses: Sequence[Sequence[Row]], name: str) -> None:
    """Draws how a hyperparameter moved, in one colour per method."""
    for group, colour in zip(grouped([line for one in courses for line in one], ("method",)), COLOURS, strict=False):
        for n, run in enumerate(grouped(group, ("seed",))):
            label = run[0]["method"] if n == 0 else None
            epochs, values = [line["epochs"] for line in run], [line[name] for line in run]
            axis.plot(epochs, values, color=colour, lw=1.2, label=label)
    words = {"threshold": "learned threshold of the loss", "rate": "learned rate, before the cosine"}
    axis.set(xlabel="epochs read", ylabel=words[name], yscale="log")
    axis.legend(fontsize=7)


def _points(axis: Any, runs: Sequence[Row]) -> None:
    """Draws one point per run: the test error, or the test loss above that of the source of the text."""
    groups = grouped(runs, ("method",))
    for place, group in enumerate(groups):
        text = "source" in group[0]
        measured = np.array([run["test_loss" if text else "test_error"] for run in group], float)  # NaN: diverged
        found = measured - np.array([run["source"] for run in group]) if text else measured
        axis.plot(found, np.full(len(found), place), "o", color="#0072B2", alpha=0.7)
    axis.set_yticks(range(len(groups)), [group[0]["method"] for group in groups], fontsize=8)
    axis.set_xlabel("test loss above the source's, nats" if "source" in runs[0] else "test error, %")
    axis.invert_yaxis()
    axis.grid(alpha=0.3)
