"""Tables of the page on images and text, from finished runs."""

from collections.abc import Callable, Sequence

import numpy as np

from ..common.report import Row, grouped, mean_and_spread, text_table
from .report import LEARNED

Runs = Sequence[Row]  # of one method


def images(result: Row) -> str:
    """Returns the test errors of every seed, and the hyperparameters of the best models."""
    weighted = any("auc" in run for run in result["runs"])

    def line(runs: Runs) -> Row:
        found = {
            "test error, %": _listed(runs, lambda run: run["test_error"], 2),
            "test loss": _mean(runs, "test_loss"),
        }
        return found | (
            {"auc": _listed(runs, lambda run: run["auc"], 3) if "auc" in runs[0] else "-"} if weighted else {}
        )

    return _tables(result, line, lambda run: run["test_error"])


def text(result: Row) -> str:
    """Returns the test losses of every seed above that of the source, and the hyperparameters of the best models."""
    above = lambda run: run["test_loss"] - run["source"]
    line = lambda runs: {"test loss above the source's, nats": _listed(runs, above, 4)}
    counts = _listed(grouped(result["runs"], ("method",))[0], lambda run: run["counts"] - run["source"], 4)
    return f"{_tables(result, line, above)}\n\nThe prediction from counts is {counts} nats above the source."


def _tables(result: Row, line: Callable[[Runs], Row], measure: Callable[[Row], float]) -> str:
    """Returns the table of test measures, the best method first, and that of what was learned."""
    mean = lambda runs: float(np.mean([measure(run) for run in runs]))
    groups = sorted(grouped(result["runs"], ("method",)), key=mean)
    names = [name for name in LEARNED if any(name in run for run in result["runs"])]
    start = next(run for run in result["runs"] if run["method"] in ("plain", "oracle"))  # both at the defaults
    stays = lambda run: all(run.get(name) == start.get(name) for name in names) and run["method"] != "plain"
    tables = (
        [
            _row(runs, line(runs) | {"epochs": _mean(runs, "epochs"), "updates": _mean(runs, "updates")})
            for runs in groups
        ],
        [_row(runs, {name: _mean(runs, name) for name in names}) for runs in groups if not all(map(stays, runs))],
    )
    return "\n\n".join(text_table(table) for table in tables)


def _row(runs: Runs, cells: Row) -> Row:
    return {"method": runs[0]["method"]} | cells


def _mean(runs: Runs, name: str) -> str:
    return mean_and_spread(run.get(name) for run in runs)


def _listed(runs: Runs, value: Callable[[Row], float], digits: int) -> str:
    """Returns one number for each seed."""
    return ", ".join(f"{value(run):.{digits}f}" for run in sorted(runs, key=lambda run: run["seed"]))
