"""Finished cells of an experiment: stored one by one, so that a run that was stopped goes on."""

import hashlib
import itertools
import json
import re
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from .config import Common, Options
from .report import as_json, write_json

Labels = dict[str, Any]
Advance = Callable[[float], None]  # takes the share of a cell that is done
WHERE = ("out", "cache", "quick", "jobs")  # options that do not change a result


def ignore(share: float) -> None:
    """Shows no progress."""


def grid(**axes: Iterable[Any]) -> list[Labels]:
    """Returns the labels of all combinations, the last axis fastest."""
    return [dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())]


class Cells:
    """Store of the finished cells of one run: a file with a checksum for each.

    The options of the run are written with its first cell: one that fails before leaves the folder to any other.

    **Raises** `SystemExit` where the folder holds a run with other options, naming what differs.
    """

    def __init__(self, config: Options):
        self.config, self.folder = config, config.out / "cells"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._claim, self._is_ours = threading.Lock(), False  # of the folder, whose options are then written
        self._refuse_other()

    def _refuse_other(self) -> None:
        """Raises `SystemExit` where the folder holds a run with other options."""
        path, wanted = self.config.out / "config.json", as_json(self.config)
        found = _options(path) if path.exists() else wanted
        names = sorted((set(found) | set(wanted)) - set(WHERE))
        differs = {name: (found.get(name), wanted.get(name)) for name in names if found.get(name) != wanted.get(name)}
        if differs:
            raise SystemExit(
                f"{self.config.out} holds another run; choose another --out or delete it. There and here: {differs}"
            )

    def path(self, labels: Labels) -> Path:
        """Returns the file of a cell."""
        return self.folder / ("-".join(re.sub(r"[^\w.+-]+", "_", str(part)) for part in labels.values()) + ".json")

    def __contains__(self, labels: Labels) -> bool:
        return self.path(labels).exists()

    def read(self, labels: Labels) -> Any:
        """Returns the result of a finished cell.

        **Raises** `SystemExit` naming the file where it is damaged.
        """
        path = self.path(labels)
        try:
            found = json.loads(path.read_text())
            sound = found["sha256"] == _checksum(found["labels"], found["result"])
        except (ValueError, KeyError, TypeError):
            sound = False
        if not sound or found["labels"] != as_json(labels):
            raise SystemExit(f"{path} is damaged; delete it, and the same command computes it again")
        return found["result"]

    def get(self, labels: Labels, make: Callable[[], Any]) -> Any:
        """Returns the result of a cell, made and stored if it is not finished."""
        if labels not in self:
            self.write(labels, make())
        return self.read(labels)

    def write(self, labels: Labels, result: Any) -> None:
        """Stores a finished cell in one step: complete or not at all."""
        with self._claim:
            if not self._is_ours:
                self._refuse_other()  # which began meanwhile
                write_json(self.config.out / "config.json", self.config)
                self._is_ours = True
        content = {"labels": as_json(labels), "result": as_json(result)}
        write_json(self.path(labels), {"sha256": _checksum(*content.values())} | content)


def _options(path: Path) -> dict[str, Any]:
    """Returns the options of the run that a folder holds. **Raises** `SystemExit` where their file is damaged."""
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise SystemExit(f"{path} is damaged ({error}); delete it if the cells are of this run") from None


def _checksum(labels: Any, result: Any) -> str:
    return hashlib.sha256(json.dumps([labels, result], sort_keys=True).encode()).hexdigest()


def run_cells(
    config: Common, cells: Sequence[Labels], run: Callable[..., dict[str, Any]], unit: str = "cells", *, jobs: int = 1
) -> list[dict[str, Any]]:
    """Runs the cells that are not stored yet, stores each as it is finished, and returns the results of all.

    **Arguments**

    - `cells`: labels of the cells, see `grid`.
    - `run`: a function `(advance, **labels) -> result`. It calls `advance` with the share of the cell that is done.
      The result is a dictionary that JSON can hold, arrays included; each row of a list of rows gets the labels.
    - `jobs`: threads that run cells. With several, `run` is called by several threads at a time, and cells with the
      same last label come one after another.
    """
    store = Cells(config)
    missing = [labels for labels in cells if labels not in store]
    finished = len(cells) - len(missing)
    if finished:
        print(f"{finished} of {len(cells)} {unit} are finished in {store.folder}", file=sys.stderr)
    form = "{l_bar}{bar}| {n:.1f}/{total} " + unit + " [{elapsed}<{remaining}{postfix}]"
    with tqdm(total=len(cells), initial=finished, bar_format=form) as bar:
        shares = [0.0] * len(missing)

        def advance(index: int, share: float) -> None:
            shares[index] = min(share, 1.0)
            bar.update(max(0.0, finished + sum(shares) - bar.n))

        def finish(index: int) -> None:
            labels = missing[index]
            bar.set_postfix_str(", ".join(f"{name} {value}" for name, value in labels.items()))
            store.write(labels, _labelled(labels, run(partial(advance, index), **labels)))
            advance(index, 1.0)

        order = range(len(missing))
        if jobs == 1:
            for index in order:
                finish(index)
        else:
            last = lambda index: repr(list(missing[index].values())[-1])
            _side_by_side(finish, sorted(order, key=last), jobs)
    return [store.read(labels) for labels in cells]


def _side_by_side(finish: Callable[[int], None], indices: Iterable[int], jobs: int) -> None:
    """Calls `finish` for every index in several threads. Raises the first error once the calls under way are over."""
    pool = ThreadPoolExecutor(jobs)
    try:
        for future in as_completed([pool.submit(finish, index) for index in indices]):
            future.result()
    except BaseException as error:
        pool.shutdown(wait=isinstance(error, Exception), cancel_futures=True)  # an interrupt does not wait
        raise


def _labelled(labels: Labels, result: dict[str, Any]) -> dict[str, Any]:
    is_rows = lambda value: isinstance(value, list) and all(isinstance(row, dict) for row in value)
    return {name: [labels | row for row in value] if is_rows(value) else value for name, value in result.items()}


def rows(cells: Iterable[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Returns the rows of this name of all cells, one after another."""
    return [row for cell in cells for row in cell[name]]
