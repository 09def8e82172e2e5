"""The study on MNIST at the published size: evidence bound, equal updates of the weights, cell by cell."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from ...study.cell import run_cell
from ...study.contest import Method, compile_method
from ...study.criteria import CriterionName
from ...study.run import Table, Unit
from ...study.settings import setting
from .config import Config

CRITERION: CriterionName = "elbo"
UNIT: Unit = "iterations"
SETTINGS = {"greedy": 0.3, "drmad": 0.3, "hoag": 0.1, "random": 1.0, "tpe": 0.02}  # tuned on one seed at this size


class OutOfTimeError(Exception):
    """The share of the time is used up."""


def tasks(config: Config, until: float, variant: str) -> dict[str, Callable[[], dict[str, Any]]]:
    """Returns all methods on the first seed, then on the next."""
    sizes = config.sizes
    table = Table(setting(sizes.images, config.data_dir, sizes.scale), CRITERION)
    methods = {name: table.contestants[name].make(SETTINGS[name]) for name in sizes.methods}
    compiled: dict[str, float] = {}
    found: dict[str, Callable[[], dict[str, Any]]] = {}
    for seed in range(sizes.seeds):
        for name, method in methods.items():
            labels = {"data": sizes.images, "criterion": CRITERION, "budget": UNIT, "method": name, "seed": seed}
            found[f"{name}, seed {seed}"] = partial(cell, table, labels, method, compiled, until)
    return found


def cell(table: Table, labels: dict[str, Any], method: Method, compiled: dict, until: float) -> dict[str, Any]:
    """Returns one cell, timed without compilation; one that the time does not suffice for says how far it came."""
    name = labels["method"]
    task, share = table.task(labels["seed"], UNIT), 0.0
    if name not in compiled:
        compiled[name] = compile_method(method, task)

    def advance(more: float) -> None:
        nonlocal share
        share += more
        if time.time() > until and share < 1:
            raise OutOfTimeError(f"stopped at {share:.0%} of its updates")

    row, history, _ = run_cell(table.setting, task, method, advance)
    course = [
        {key: line[key] for key in ("Q", "iterations", "seconds")} for line in history[:: len(history) // 10 or 1]
    ]
    return labels | {"setting": SETTINGS[name], "compile_s": compiled[name]} | row | {"course": course}
