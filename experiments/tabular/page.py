"""Tables of the page on tabular data, written from published results."""

from collections.abc import Sequence

import numpy as np

from ..common.report import Row, grouped, text_table
from .report import error_of, judged, verdicts

NAMES = {
    "plain": "plain training",
    "plain, averaged": "plain, averaged weights",
    "tpe, 2 % trials": "TPE, trials of 2 %",
    "tpe, 10 % trials": "TPE, trials of 10 %",
    "tune": "tune",
    "online, pes": "online, PES",
    "best fixed": "best of 50 fixed settings",
}
VERDICTS = ("ahead", "level", "behind")
ONE_PER_LAYER = "online"


def heading(method: str) -> str:
    """Returns the name of a method in tables."""
    return NAMES.get(method, method)


def errors_and_counts(result: Row) -> str:
    """Returns the test errors, then for each rival on how many sets and starts one method is ahead, level, behind."""
    ours = judged(result["config"]["methods"])
    errors = [{heading(name): value for name, value in line.items()} for line in result["table"]]
    counts = [
        {f"`{ours}` against": heading(line["rival"])} | {word: line[word] for word in VERDICTS}
        for line in result["counts"]
    ]
    return f"{text_table(errors)}\n\n{text_table(counts)}"


def full(result: Row) -> str:
    """Returns the test errors and the counts, then NLL and calibration of every method on every set."""
    return f"{errors_and_counts(result)}\n\n{text_table(probabilities(result['runs']))}"


def probabilities(runs: Sequence[Row]) -> list[Row]:
    """Returns medians over starts and splits of NLL and calibration error, one line per set and measure."""
    lines: list[Row] = []
    for name, words in (("test_nll", "NLL"), ("calibration_error", "calibration error")):
        for of_set in grouped(runs, ("set",)):
            line: Row = {"median over starts and splits": words, "set": of_set[0]["set"]}
            for group in grouped(of_set, ("method",)):
                line[heading(group[0]["method"])] = f"{np.median([error_of(run, name) for run in group]):.3g}"
            lines.append(line)
    return lines


def over_one_per_layer(result: Row) -> str:
    """Returns the test errors of all methods over those of one decay per layer, then the counts against it."""
    ratios, counts = against_one_per_layer(result["runs"])
    return f"{text_table(ratios)}\n\n{text_table(counts)}"


def against_one_per_layer(runs: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Returns ratios to one decay per layer, geometric means by start and by set, and ahead, level, behind by method.

    A case is a set and a start. Its ratio is that of the mean errors over the splits, infinite with a run that
    diverged, and 1 where both methods have one.
    """
    mean = {
        (group[0]["set"], group[0]["start"], group[0]["method"]): np.mean([error_of(run) for run in group])
        for group in grouped(runs, ("set", "start", "method"))
    }
    methods = [name for name in dict.fromkeys(run["method"] for run in runs) if name != ONE_PER_LAYER]

    def gain(case: tuple[str, str], method: str) -> float:
        ours, theirs = mean[*case, method], mean[*case, ONE_PER_LAYER]
        return 0.0 if ours == theirs else float(np.log(ours) - np.log(theirs))

    def line(words: str, cases: Sequence[tuple[str, str]]) -> Row:
        ratio = lambda method: np.exp(np.mean([gain(case, method) for case in cases]))
        return {"error over that of `online`": words} | {heading(method): f"{ratio(method):.2f}" for method in methods}

    cases = list(dict.fromkeys((run["set"], run["start"]) for run in runs))
    sets, starts = (list(dict.fromkeys(names)) for names in zip(*cases, strict=True))
    lines = [line(f"start {start}", [case for case in cases if case[1] == start]) for start in starts]
    lines += [line(name, [case for case in cases if case[0] == name]) for name in sets]
    counts = []
    for method in methods:
        found = next(one for one in verdicts(runs, method) if one["rival"] == ONE_PER_LAYER)
        counts.append({"against `online`": heading(method)} | {word: found[word] for word in VERDICTS})
    return [*lines, line("all", cases)], counts
