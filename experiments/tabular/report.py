"""Table, plot and sentences of the tabular experiment."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..common.cells import rows
from ..common.config import Common
from ..common.figures import COLOURS, figure, panel_figure
from ..common.report import Row, grouped, save, spread_table, text_table

SHOWN = {"plain": "plain training", "tpe, 10 % trials": "TPE", "tune": "hypergrad.tune"}
BY = ("set", "start", "method")
FIXED = "best fixed"  # setting of a grid, in hindsight


def report(config: Common, cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Writes summary.json, history.csv, table.md, report.md and the plot, and returns the summary."""
    runs, history = [run | ends(cell) for cell in cells for run in cell["runs"]], rows(cells, "history")
    yardstick = in_hindsight(rows(cells, "fixed"), list(dict.fromkeys(run["start"] for run in runs)))
    ours = judged(list(dict.fromkeys(run["method"] for run in runs)))
    table, counts = wide(runs + yardstick), verdicts(runs + yardstick, ours)
    sentences = [*in_words(counts, ours), seconds_in_words(runs)]
    known = [line for line in history if line["test_error"] is not None]
    draw(config.out / "test_error_against_cost.png", known)
    overview(config.out / "bad_starts.png", known, yardstick)
    title = f"Test error, mean ± standard deviation over {config.seeds} splits: RMSE, or the share of wrong classes"
    full = spread_table(runs, BY, ("test_error", "test_nll", "calibration_error", "valid_loss", "gradients", "seconds"))
    more = {"by_method": full, "words": sentences, "fixed": yardstick, "counts": counts}
    summary = save(config, runs, table, history, title, **more)
    text = [title + ".", "", text_table(table), "", *(f"- {sentence}" for sentence in sentences)]
    (config.out / "report.md").write_text("\n".join(text) + "\n")
    print("\n".join(sentences))
    return summary


def ends(cell: dict[str, Any]) -> Row:
    """Returns rate and b1 of the best model of a run."""
    return {name: cell["hparams"][name] for name in ("rate", "b1")}


def in_hindsight(fixed: Sequence[Row], starts: Sequence[str]) -> list[Row]:
    """Returns, as runs from every start, those of the fixed setting whose mean test error on the set is the lowest."""
    best = []
    for of_set in grouped(fixed, ("set",)):
        settings = grouped(of_set, ("decay", "rate", "b1"))
        best += min(settings, key=lambda runs: np.mean([error_of(run) for run in runs]))
    return [run | {"start": start} for run in best for start in starts]


def wide(runs: Sequence[Row]) -> list[Row]:
    """Returns one line per set and start, one column of test errors per method."""
    methods = list(dict.fromkeys(run["method"] for run in runs))
    lines = []
    for group in grouped(runs, ("set", "start")):
        head = {"set": group[0]["set"], "start": group[0]["start"]}
        cells = spread_table(group, ("method",), ("test_error",))
        found = {line["method"]: line["test_error"] for line in cells}
        lines.append(head | {method: found.get(method, "-") for method in methods})
    return lines


def judged(methods: Sequence[str]) -> str:
    """Returns the method that is compared with all others: `tune` where it runs, else the last one."""
    return "tune" if "tune" in methods else methods[-1]


def verdicts(runs: Sequence[Row], ours_is: str = "tune") -> list[Row]:
    """Returns one line for each rival of a method: on how many sets and starts that is ahead, level, behind, and where.

    Two methods differ where the mean difference over the splits is more than its standard error; with a run that
    diverged among these, the mean of the signs.
    """
    ours = {_place(run): error_of(run) for run in runs if run["method"] == ours_is}
    lines: list[Row] = []
    for method in dict.fromkeys(run["method"] for run in runs):
        if method == ours_is or not ours:
            continue
        found: dict[str, list[str]] = {"ahead": [], "level": [], "behind": []}
        rivals = [run for run in runs if run["method"] == method and _place(run) in ours]
        for group in grouped(rivals, ("set", "start")):
            theirs = np.array([error_of(run) for run in group])
            mine = np.array([ours[_place(run)] for run in group])
            finite = np.all(np.isfinite([theirs, mine]))
            gains = theirs - mine if finite else 1.0 * (theirs > mine) - 1.0 * (theirs < mine)
            error = gains.std(ddof=1) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
            verdict = "level" if abs(gains.mean()) <= error else "ahead" if gains.mean() > 0 else "behind"
            found[verdict].append(f"{group[0]['set']} ({group[0]['start']})")
        lines.append(
            {"rival": method} | {word: len(places) for word, places in found.items()} | {"lost": found["behind"]}
        )
    return lines


def in_words(counts: Sequence[Row], ours_is: str = "tune") -> list[str]:
    """Returns a sentence for each line of `verdicts`."""
    sentences = []
    for line in counts:
        rival, total = line["rival"], sum(line[word] for word in ("ahead", "level", "behind"))
        lost = f" Behind on: {'; '.join(line['lost'])}." if line["lost"] else ""
        sentences.append(
            f"{ours_is} is ahead of {rival} in {line['ahead']}, level with {rival} in {line['level']}, behind "
            f"{rival} in {line['behind']} of {total} cases.{lost}"
        )
    return sentences


def seconds_in_words(runs: Sequence[Row]) -> str:
    """Returns a sentence on the seconds of a run: the median of each method."""
    medians = {
        group[0]["method"]: float(np.median([run["seconds"] for run in group])) for group in grouped(runs, ("method",))
    }
    return "Median seconds of a run: " + ", ".join(f"{method} {value:.2g}" for method, value in medians.items()) + "."


def error_of(run: Row, name: str = "test_error") -> float:
    """Returns the test error, or another measure of that name, infinite for a run that diverged."""
    return np.inf if run[name] is None else float(run[name])


def _place(run: Row) -> tuple[str, str, int]:
    return run["set"], run["start"], run["seed"]


def draw(path: Path, history: Sequence[Row]) -> None:
    """Draws the test error of the best model so far against cost, relative to the best of the same set and split.

    Each panel is a start; a line is the median over sets and splits, a band their quartiles.
    """
    lines = [line for line in history if line["method"] in SHOWN]
    panels = grouped(lines, ("start",))
    if not panels:
        return
    least = {key: min(line["test_error"] for line in history if _run(line) == key) for key in map(_run, history)}
    with panel_figure(path, len(panels), (3.0, 2.6), (1.0, 0.6), across=3, sharey=True) as axes:
        for axis, panel in zip(axes.flat, panels, strict=False):
            for (method, label), colour in zip(SHOWN.items(), COLOURS, strict=False):
                runs = grouped([line for line in panel if line["method"] == method], ("set", "seed"))
                if runs:
                    _band(axis, runs, least, label, colour)
            axis.set(title=panel[0]["start"], xlabel="gradient equivalents", yscale="log")
            axis.grid(alpha=0.3, which="both")
        for axis in axes[:, 0]:
            axis.set_ylabel("test error / lowest of all")
        axes[0, 0].legend(fontsize=8)


def overview(path: Path, history: Sequence[Row], yardstick: Sequence[Row]) -> None:
    """Draws the test error from bad starts against cost, over that of the best fixed setting on the same set.

    A line is the median over sets, splits and bad starts, a band their quartiles. Nothing is drawn without a yardstick.
    """
    means = {of_set[0]["set"]: float(np.mean([*map(error_of, of_set)])) for of_set in grouped(yardstick, ("set",))}
    level = {name: value for name, value in means.items() if np.isfinite(value)}
    bad = [line for line in history if line["method"] in SHOWN and line["start"] != "good" and line["set"] in level]
    if not bad:
        return
    with figure(path, 1, 1, (6.5, 3.6)) as axis:
        for (method, label), colour in zip(SHOWN.items(), COLOURS, strict=False):
            runs = grouped([line for line in bad if line["method"] == method], ("set", "start", "seed"))
            if runs:
                _band(axis, runs, {_run(run[0]): level[run[0]["set"]] for run in runs}, label, colour)
        axis.axhline(1.0, color="0.4", lw=0.8, ls="--", label="best fixed setting, in hindsight")
        axis.set(xlabel="gradients in all", ylabel="test error over that of the best fixed setting", yscale="log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:g}"[0] in "25" else "")
        axis.set_title("From bad hyperparameters: median and quartiles", fontsize=10)
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize=8)


def _run(line: Row) -> tuple[str, int]:
    return line["set"], line["seed"]


def _band(axis: Any, runs: list[list[Row]], least: dict[Any, float], label: str, colour: str) -> None:
    """Draws the median and the quartiles of step functions that begin where all of them have been measured."""
    ends = [run[-1]["gradients"] for run in runs]
    costs = np.linspace(max(run[0]["gradients"] for run in runs), max(ends), 200)
    curves = []
    for run in runs:
        at = np.searchsorted([line["gradients"] for line in run], costs, side="right") - 1
        floor = max(least[_run(run[0])], 1e-9)
        curves.append(np.array([line["test_error"] for line in run])[at] / floor)
    low, middle, high = np.quantile(curves, (0.25, 0.5, 0.75), axis=0)
    axis.plot(costs, middle, color=colour, label=label, lw=1.8)
    axis.fill_between(costs, low, high, color=colour, alpha=0.15, lw=0)
