"""The study on MNIST at the published size: evidence bound, equal updates of the weights, cell by cell."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from ...common.cells import Cells
from ...common.contest import compile_method
from ...study.cell import run_cell
from ...study.methods import contestants
from ...study.run import Config as StudyConfig
from ...study.run import Table, ignore
from ...study.settings import setting
from .config import Config

CRITERION, UNIT = "elbo", "iterations"
TRIAL = 5.0  # published iterations that a trial of random search and TPE trains for
SETTINGS = {
    "greedy": 0.03,
    "drmad": 0.1,
    "hoag": 0.1,
    "random": TRIAL,
    "tpe": TRIAL,
}  # near those tuned for 4,000 images


class OutOfTimeError(Exception):
    """The share of the time is used up."""


def tasks(config: Config, until: float, variant: str) -> dict[str, Callable[[], dict[str, Any]]]:
    """All methods on the first seed, then on the next."""
    sizes = config.sizes
    study = StudyConfig(data=(sizes.images,), criteria=(CRITERION,), data_dir=config.data_dir, out=config.out / "study")
    chosen = setting(sizes.images, config.data_dir, sizes.scale)
    table = Table(study, sizes.images, CRITERION, chosen, Cells(study), {}, ignore)
    known = contestants(chosen, table.problem(0, UNIT).task.start)
    methods = {name: known[name].make(SETTINGS[name]) for name in sizes.methods}
    compiled: dict[str, float] = {}
    found: dict[str, Callable[[], dict[str, Any]]] = {}
    for seed in range(sizes.seeds):
        for name, method in methods.items():
            found[f"{name}, seed {seed}"] = partial(cell, table, name, method, seed, compiled, until)
    return found


def cell(table: Table, name: str, method: Callable, seed: int, compiled: dict, until: float) -> dict[str, Any]:
    """One cell, timed without compilation; one that the time does not suffice for says how far it came."""
    problem, share = table.problem(seed, UNIT), 0.0
    if name not in compiled:
        compiled[name] = compile_method(method, problem.task)

    def advance(more: float) -> None:
        nonlocal share
        share += more
        if time.time() > until and share < 1:
            raise OutOfTimeError(f"stopped at {share:.0%} of its updates")

    row, history, _ = run_cell(table.setting, problem, method, advance)
    labels = {"data": table.data, "criterion": CRITERION, "budget": UNIT, "method": name, "seed": seed}
    course = [
        {key: line[key] for key in ("Q", "iterations", "seconds")} for line in history[:: len(history) // 10 or 1]
    ]
    return labels | {"setting": SETTINGS[name], "compile_s": compiled[name]} | row | {"course": course}
