"""Benchmarks that measure one problem after another, on one core."""

import dataclasses
import os
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from ..common.cells import Cells, Labels

ONE_THREAD = {
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


def by_problem(config: Any, every: Iterable[str], measured: Callable[[Any, Labels], Any]) -> dict[str, Any]:
    """Returns what `measured(config, labels)` finds of each problem that `config` names, stored or new.

    The store is that of a run of `every` problem, so that others can be added to it later.
    """
    os.environ.update(ONE_THREAD)  # read when JAX first meets its device
    store = Cells(dataclasses.replace(config, problems=tuple(every)))
    found = {}
    for name in config.problems:
        labels = {"problem": name, "quick": config.quick}
        found[name] = store.get(labels, partial(measured, config, labels))
        print(f"{name} done", flush=True)
    return found
