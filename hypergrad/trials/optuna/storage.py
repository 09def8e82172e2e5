"""Storages of Optuna, opened although other processes open them too."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from ...ground.checks import shown
from ...ground.files import check_path
from . import translation

ATTEMPTS = 5  # to open a data base
PAUSE = 0.1  # seconds before the second attempt, twice as many before the third, and so on

Opened = TypeVar("Opened")


@contextlib.contextmanager
def opening() -> Iterator[None]:
    """Names the argument in errors of a file, a data base, its driver or its server; not the address, which may hold
    a password.
    """
    try:
        yield
    except OSError as error:
        raise type(error)(f"storage cannot be opened: {error}") from error
    except Exception as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"storage cannot be opened: {error}") from error


def patiently(make: Callable[[], Opened]) -> Opened:
    """Returns what `make` returns, after several attempts where the data base refuses one: of two processes that make
    the tables of a new data base at once, one fails.
    """
    for attempt in range(1, ATTEMPTS):
        try:
            return make()
        except Exception as error:
            refusals = (getattr(one, "orig", None) for one in (error, error.__cause__))  # as SQLAlchemy wraps them
            if not any(isinstance(one, Exception) for one in refusals):
                raise
        time.sleep(attempt * PAUSE)
    return make()


def storage_of(storage: Any) -> Any:
    """Returns a storage object."""
    storages = translation.package().storages
    if isinstance(storage, str) and "://" in storage:
        return storages.RDBStorage(storage)
    if isinstance(storage, str | os.PathLike):
        path = check_path(storage, "storage")
        _refuse_other_file(path)
        return storages.JournalStorage(storages.journal.JournalFileBackend(path))
    if not isinstance(storage, storages.BaseStorage):
        raise TypeError(f"storage must be a file, a URL or an Optuna storage, got {shown(storage)}")
    return storage


def _refuse_other_file(path: str) -> None:
    """Raises `ValueError` for a file of something else: Optuna appends to any file before it reads it."""
    if not os.path.exists(path):
        return
    with open(path, "rb") as file:
        line = file.readline(10**6)
    try:
        is_journal = "op_code" in json.loads(line) if line.endswith(b"\n") else line[:1] in (b"", b"{")
    except (ValueError, TypeError):
        is_journal = False
    if not is_journal:
        raise ValueError(f"{path} is there already and is no journal of Optuna")
