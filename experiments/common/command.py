"""The command line that experiments share, and the folder they write."""

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol, TypeVar

import tyro

from .report import as_json, environment, text_table, write_csv, write_json

Row = Mapping[str, Any]
Positive = Annotated[int, tyro.conf.arg(metavar="N")]


class Config(Protocol):
    """A dataclass with an output folder."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def out(self) -> Path:
        """Output folder."""


C = TypeVar("C", bound=Config)


def command(main: Callable[[C], Any], config: type[C], quick: dict[str, Any], name: str, **usual: Any) -> None:
    """Run `main` with what the command line says; `usual` replaces defaults, and with `--quick` so does `quick`."""
    changes: dict[str, Any] = {"quick": True} | quick if "--quick" in sys.argv[1:] else {}
    default = dataclasses.replace(config(), **(usual | changes))
    try:
        main(tyro.cli(config, default=default, prog=f"python -m experiments.{name}"))
    except KeyboardInterrupt:
        raise SystemExit("stopped") from None
    except FileNotFoundError as error:
        raise SystemExit(str(error)) from None


def require_positive(config: Any, *names: str) -> None:
    """**Raises** `ValueError` naming the first option that is not positive."""
    for name in names:
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} must be positive, got {getattr(config, name)}")


def require_some(config: Any, *names: str) -> None:
    """**Raises** `ValueError` naming the first option that is an empty list."""
    for name in names:
        if not getattr(config, name):
            raise ValueError(f"{name} is empty")


def save(config: Config, runs: Sequence[Row], table: Sequence[Row], history: Sequence[Row], title: str, **more: Any):
    """Write summary.json, history.csv and table.md, print the table, return the summary."""
    config.out.mkdir(parents=True, exist_ok=True)
    summary = as_json({"config": config, "environment": environment(), "runs": runs, "table": table, **more})
    write_json(config.out / "summary.json", summary)
    write_csv(config.out / "history.csv", history)
    (config.out / "table.md").write_text(text_table(table) + "\n")
    print(f"\n{title}\n\n{text_table(table)}\n\nwritten to {config.out}")
    return summary


def cells_folder(config: Config) -> Path:
    """The folder of finished cells; refuses a folder that holds another configuration."""
    cells = config.out / "cells"
    cells.mkdir(parents=True, exist_ok=True)
    path, wanted = config.out / "config.json", as_json(config)
    if path.exists() and (found := json.loads(path.read_text())) != wanted:
        differs = {key: (found.get(key), wanted[key]) for key in wanted if found.get(key) != wanted[key]}
        raise SystemExit(
            f"{config.out} holds another run; choose another --out or delete it. There and here: {differs}"
        )
    write_json(path, wanted)
    return cells
