"""Files that every experiment writes: tables, JSON, CSV, and a record of machine, versions and commit."""

import csv
import dataclasses
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hypergrad.ground.files import replacing

from .config import Common

Row = dict[str, Any]


EXPONENT = re.compile(r"-?\d(\.\d+)?e\+0[0-6]\b")


def environment() -> dict[str, Any]:
    """Returns device, versions and commit."""
    packages = ("jax", "jaxlib", "jaxopt", "optax", "equinox", "numpy")
    return {
        "device": jax.devices()[0].device_kind,
        "platform": jax.devices()[0].platform,
        "cpu_count": os.cpu_count(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "commit": _commit(),
    }


def made_by(command: str, where: Row) -> str:
    """Returns the line of a page that says by what command, at which commit and where its numbers were made."""
    cores = f"{where['cpu_count']} cores of an {platform.machine().replace('_', '-')} machine"
    device = cores if where["platform"] == "cpu" else f"one {where['device']}"
    commit = (where["commit"] or "unknown")[:7]
    return f"*Made by `{command}` at commit `{commit}` on {device}, Python {where['python']}, jax {where['jax']}.*"


def _commit() -> str | None:
    try:
        git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def as_json(value: Any) -> Any:
    """Returns dataclasses, paths and arrays as values that JSON knows; a number that is not finite becomes `None`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: as_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return as_json(np.asarray(value).tolist())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def write_json(path: Path, value: Any) -> None:
    """Writes a file in one step: complete or not at all."""
    content = json.dumps(as_json(value), indent=1, allow_nan=False) + "\n"
    with replacing(path, shared=True) as file:
        file.write(content.encode())


def write_csv(path: Path, rows: Iterable[Row]) -> None:
    """Writes one line per row, with the columns of the first."""
    rows = list(rows)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)


def plainly(text: str) -> str:
    """Returns a text in which numbers up to ten millions have no exponent."""
    return EXPONENT.sub(lambda number: f"{float(number[0]):.0f}", text)


def mean_and_spread(values: Iterable[float | None]) -> str:
    """Returns `mean ± standard deviation` of the values that are not `None`, and how many of all these are."""
    values = list(values)
    measured = np.array([value for value in values if value is not None], float)
    if measured.size == 0:
        return "-"
    part = "" if measured.size == len(values) else f" ({measured.size} of {len(values)})"
    if np.ptp(measured) == 0:
        return f"{measured[0]:.7g}{part}"
    return plainly(f"{measured.mean():.4g} ± {measured.std(ddof=1):.2g}{part}")


def text_table(rows: Sequence[Row]) -> str:
    """Returns aligned columns with a heading, as a Markdown table."""
    columns = list(rows[0])
    cells = [columns, *[[str(row[name]) for name in columns] for row in rows]]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def spread_table(runs: Sequence[Row], by: Sequence[str], columns: Sequence[str]) -> list[Row]:
    """Returns one line per group of runs that agree in `by`: mean ± standard deviation of each column."""
    return [
        {name: group[0][name] for name in by} | {name: mean_and_spread(run[name] for run in group) for name in columns}
        for group in grouped(runs, by)
    ]


def grouped(rows: Iterable[Row], by: Sequence[str]) -> list[list[Row]]:
    """Returns the rows that agree in `by` together, in order of appearance."""
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in by), []).append(row)
    return list(groups.values())


def save(
    config: Common, runs: Sequence[Row], table: Sequence[Row], history: Sequence[Row], title: str, **more: Any
) -> Any:
    """Writes summary.json, history.csv and table.md, prints the table, and returns the summary.

    `more` goes into the summary as well.
    """
    config.out.mkdir(parents=True, exist_ok=True)
    summary = as_json({"config": config, "environment": environment(), "runs": runs, "table": table, **more})
    write_json(config.out / "summary.json", summary)
    write_csv(config.out / "history.csv", history)
    (config.out / "table.md").write_text(f"{title}\n\n{text_table(table)}\n")
    print(f"\n{title}\n\n{text_table(table)}\n\nwritten to {config.out}")
    return summary
