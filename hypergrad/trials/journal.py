"""A journal of a search: JSON lines, each on disk before the search goes on."""

import json
import os
from dataclasses import asdict
from typing import Any

from ..ground.checkpoint import CheckpointError
from .trial import Result, SearcherState, Trial

VERSION = 1


class Journal:
    """An open journal; `events` holds what was in the file.

    A last line that a kill left unfinished is cut off.

    **Raises** `CheckpointError` for a file that is no journal or belongs to another search, naming what differs.
    """

    def __init__(self, path: str | os.PathLike, header: dict[str, Any]):
        header = json.loads(json.dumps({"hypergrad-jax journal": VERSION} | header))
        self.events: list[dict[str, Any]] = []
        self._file = open(path, "a+b")  # noqa: SIM115
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        try:
            lines = [json.loads(line) for line in whole.splitlines()]
            if lines:
                _compare(path, header, lines[0])
            elif content and not json.dumps(header).encode().startswith(content):
                raise CheckpointError(f"{path} is not a journal")
        except BaseException as error:
            self._file.close()
            if isinstance(error, json.JSONDecodeError):
                raise CheckpointError(f"{path} is damaged: {error}") from None
            raise
        self._file.truncate(len(whole))
        self.events = lines[1:]
        if not lines:
            self.write(header)

    def write(self, *events: dict[str, Any]) -> None:
        """Append events; they are on disk when this returns."""
        self._file.write("".join(json.dumps(event, allow_nan=False) + "\n" for event in events).encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()


def _compare(path: str | os.PathLike, here: dict[str, Any], there: Any) -> None:
    if not isinstance(there, dict) or there.get("hypergrad-jax journal") != VERSION:
        raise CheckpointError(f"{path} is not a journal of this version")
    if different := [name for name in here if here[name] != there.get(name)]:
        parts = "\n".join(f"  {name} there: {there.get(name)}\n  {name} here:  {here[name]}" for name in different)
        raise CheckpointError(f"{path} belongs to another search; it differs in {', '.join(different)}:\n{parts}")


def ask_event(trial: Trial) -> dict[str, Any]:
    """The line that says a trial was asked for."""
    return {"ask": asdict(trial)}


def tell_event(trial: Trial, result: Result) -> dict[str, Any]:
    """The line that says what became of it."""
    return {"tell": asdict(trial), "result": result.to_json()}


def replay(state: SearcherState, events: list[dict[str, Any]]) -> SearcherState:
    """The state after the events of a journal: no searcher is asked again."""
    for event in events:
        if "ask" in event:
            state = state.after_ask(Trial(**event["ask"]))
        else:
            state = state.after_tell(Trial(**event["tell"]), Result.from_json(event["result"]))
    return state
