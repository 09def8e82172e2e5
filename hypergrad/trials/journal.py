"""A journal of a search: JSON lines with checksums, each on disk before the search goes on."""

import hashlib
import json
import os
from contextlib import ExitStack
from typing import Any

from ..ground.checkpoint import CheckpointError, refusing
from ..ground.files import check_path, naming, sync_folder
from ..ground.lock import locked
from .state import SearcherState
from .trial import Result, Trial

VERSION = 2
NAME = "hypergrad-jax journal"


class Journal:
    """An open journal; `events` holds what was in the file.

    The checksum of a line covers all lines before it, so that lines that are changed, doubled, missing or moved are
    found. A last line that a kill left unfinished is cut off. The file is locked as long as the journal is open.

    **Raises** `TypeError`, `ValueError` or `OSError` for a path that cannot be used, and `CheckpointError` for a file
    that another process has open, that is no journal, is damaged or belongs to another search, naming what differs.
    """

    def __init__(self, path: str | os.PathLike[str], header: dict[str, Any]):
        self.path = path = check_path(path, "journal")
        self._stack, self._checksum = ExitStack(), ""
        header = json.loads(json.dumps({NAME: VERSION} | header))
        with naming(path, "journal"), self._stack:
            self._file = self._stack.enter_context(open(path, "a+b", buffering=0))  # noqa: SIM115
            self._stack.enter_context(locked(self._file, path))
            self._file.seek(0)
            content = self._file.read()
            whole = content[: content.rfind(b"\n") + 1]
            if not whole and content and not self._line(header).startswith(content):
                raise CheckpointError(f"{path} is not a journal")
            self._checksum = ""
            lines = [self._read(path, number, line) for number, line in enumerate(whole.splitlines(), 1)]
            if lines:
                _compare(path, header, lines[0])
            self.events = lines[1:]
            self._file.truncate(len(whole))
            if not lines:
                self.write(header)
                sync_folder(path)
            self._stack = self._stack.pop_all()  # all went well: stay open

    def write(self, *events: dict[str, Any]) -> None:
        """Appends events; they are on disk when this returns. **Raises** `OSError` naming the file."""
        left = b"".join(self._line(event) for event in events)
        with naming(self.path, "journal"):
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: Any) -> None:
        self._stack.close()

    def _line(self, event: dict[str, Any]) -> bytes:
        content = json.dumps(event, allow_nan=False)
        self._checksum = hashlib.sha256((self._checksum + content).encode()).hexdigest()[:16]
        return f'{content[:-1]}, "checksum": "{self._checksum}"}}\n'.encode()

    def _read(self, path: str, number: int, line: bytes) -> dict[str, Any]:
        try:
            event = json.loads(line)
            found = event.pop("checksum", None)
            if number == 1 and event.get(NAME) != VERSION:
                raise CheckpointError(f"{path} is not a journal of this version")
            self._line(event)
        except CheckpointError:
            raise
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{path} is damaged in line {number}: {error}") from None
        if found != self._checksum:
            raise CheckpointError(f"{path} is damaged: line {number} is changed, or lines before it are missing")
        return event


def _compare(path: str, here: dict[str, Any], there: dict[str, Any]) -> None:
    if different := [name for name in here if here[name] != there.get(name)]:
        parts = "\n".join(f"  {name} there: {there.get(name)}\n  {name} here:  {here[name]}" for name in different)
        raise CheckpointError(f"{path} belongs to another search; it differs in {', '.join(different)}:\n{parts}")


def ask_event(trial: Trial) -> dict[str, Any]:
    """Returns the line that says a trial was asked for."""
    return {"ask": trial.to_json()}


def tell_event(trial: Trial, result: Result) -> dict[str, Any]:
    """Returns the line that says what became of a trial."""
    return {"tell": trial.to_json(), "result": result.to_json()}


def replay(state: SearcherState, events: list[dict[str, Any]], path: str) -> SearcherState:
    """Returns the state after the events of the journal `path`: no searcher is asked again.

    **Raises** `CheckpointError` for a number that is missing or doubled, and for what no search writes.
    """
    with refusing(path):
        for event in events:
            state = _after(state, event, path)
    return state


def _after(state: SearcherState, event: dict[str, Any], path: str) -> SearcherState:
    is_ask = "ask" in event
    trial = Trial(**event["ask" if is_ask else "tell"])
    expected = [state.asked] if is_ask else [other.number for other in state.pending]
    if trial.number not in expected:
        raise CheckpointError(f"{path} has trial {trial.number} doubled or out of order")
    state.space.checked(trial.params)
    return state.after_ask(trial) if is_ask else state.after_tell(trial, Result.from_json(event["result"]))
