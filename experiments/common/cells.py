"""Finished cells of an experiment: stored one by one, so that a run that was stopped goes on."""

import hashlib
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from .config import Common, Options
from .report import as_json, write_json

Labels = dict[str, Any]
Advance = Callable[[float], None]  # takes the share of a cell that is done
WHERE = ("out", "cache", "quick")  # options that do not change a result


def ignore(share: float) -> None:
    """Shows no progress."""


def grid(**axes: Iterable[Any]) -> list[Labels]:
    """Returns the labels of all combinations, the last axis fastest."""
    return [dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())]


class Cells:
    """Store of the finished cells of one run: a file with a checksum for each.

    **Raises** `SystemExit` where the folder holds a run with other options, naming what differs.
    """

    def __init__(self, config: Options):
        self.folder = config.out / "cells"
        self.folder.mkdir(parents=True, exist_ok=True)
        path, wanted = config.out / "config.json", as_json(config)
        found = json.loads(path.read_text()) if path.exists() else wanted
        names = sorted((set(found) | set(wanted)) - set(WHERE))
        differs = {name: (found.get(name), wanted.get(name)) for name in names if found.get(name) != wanted.get(name)}
        if differs:
            raise SystemExit(
                f"{config.out} holds another run; choose another --out or delete it. There and here: {differs}"
            )
        write_json(path, wanted)

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
        content = {"labels": as_json(labels), "result": as_json(result)}
        write_json(self.path(labels), {"sha256": _checksum(*content.values())} | content)


def _checksum(labels: Any, result: Any) -> str:
    return hashlib.sha256(json.dumps([labels, result], sort_keys=True).encode()).hexdigest()


def run_cells(
    config: Common, cells: Sequence[Labels], run: Callable[..., dict[str, Any]], unit: str = "cells"
) -> list[dict[str, Any]]:
    """Runs the cells that are not stored yet, stores each as it is finished, and returns the results of all.

    **Arguments**

    - `cells`: labels of the cells, see `grid`.
    - `run`: a function `(advance, **labels) -> result`. It calls `advance` with the share of the cell that is done.
      The result is a dictionary that JSON can hold, arrays included; each row of a list of rows gets the labels.
    """
    store = Cells(config)
    finished = sum(labels in store for labels in cells)
    if finished:
        print(f"{finished} of {len(cells)} {unit} are finished in {store.folder}", file=sys.stderr)
    form = "{l_bar}{bar}| {n:.1f}/{total} " + unit + " [{elapsed}<{remaining}{postfix}]"
    with tqdm(total=len(cells), initial=finished, bar_format=form) as bar:
        for labels in cells:
            if labels in store:
                continue
            bar.set_postfix_str(", ".join(f"{name} {value}" for name, value in labels.items()))
            advance = partial(_advance, bar, round(bar.n))
            store.write(labels, _labelled(labels, run(advance, **labels)))
            advance(1.0)
    return [store.read(labels) for labels in cells]


def _advance(bar: tqdm, begin: int, share: float) -> None:
    """Moves the bar on to a share of the cell that began at a number of finished ones."""
    bar.update(max(0.0, begin + min(share, 1.0) - bar.n))


def _labelled(labels: Labels, result: dict[str, Any]) -> dict[str, Any]:
    is_rows = lambda value: isinstance(value, list) and all(isinstance(row, dict) for row in value)
    return {name: [labels | row for row in value] if is_rows(value) else value for name, value in result.items()}


def rows(cells: Iterable[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Returns the rows of this name of all cells, one after another."""
    return [row for cell in cells for row in cell[name]]
