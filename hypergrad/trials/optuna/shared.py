"""A study on disk or in a data base that several processes share."""

import hashlib
import json
import os
import socket
import threading
import time
import weakref
from collections.abc import Mapping
from typing import Any

from ..space import Params
from ..state import SearcherState
from ..trial import FinishedTrial, Result, Trial
from . import translation
from .storage import opening, patiently, storage_of

SOURCE, WORKER, RETRY = (f"hypergrad:{name}" for name in ("source", "worker", "retry of"))
PATIENCE = 3  # heartbeats that a process may miss
ATTEMPTS = 5  # to ask for a trial that others do not give up meanwhile
NAMELESS = 10  # heartbeats after which a trial without values and attributes is nobody's
SKEW = 3600.0  # seconds by which the clocks of two machines may differ
HERE = f"{socket.gethostname()}, process "  # how names of processes on this machine begin


class SharedStudy:
    """An Optuna study in a storage, with signs of life of the processes that train its trials."""

    def __init__(self, storage: Any, name: str, heartbeat: float):
        self.heartbeat, create = heartbeat, translation.package().create_study
        with opening():
            self.storage = patiently(lambda: storage_of(storage))
            self.study = patiently(lambda: create(storage=self.storage, study_name=name, load_if_exists=True))
        if self.study.directions != [translation.package().study.StudyDirection.MINIMIZE]:
            directions = ", ".join(direction.name.lower() for direction in self.study.directions)
            raise ValueError(f"study {name!r} is there already, to {directions}: a search minimises one value")
        self.id = self.storage.get_study_id_from_name(name)
        self.training: dict[int, tuple[int, list[int]]] = {}  # by number, the id and search of what this process trains
        self.checked: float | None = None  # for stale trials, the last time
        self.seen: dict[int, tuple[float, float]] = {}  # the last sign of trials of other machines, and when it changed
        threading.Thread(target=_beat, args=(weakref.ref(self), heartbeat), daemon=True).start()

    def ask(self, state: SearcherState, sampler: Any, fixed: Mapping[str, Any]) -> tuple[Params, dict[str, Any]]:
        """Proposes values, with the notes needed to tell their result."""
        self._take_up_stale(state)
        attributes = {WORKER: _sign_of_life(list(state.seed), self.heartbeat)}
        late = translation.package().exceptions.UpdateFinishedTrialError  # another process gave it up meanwhile
        for attempt in range(ATTEMPTS):
            try:
                trial, params = translation.suggested(self.study, sampler, state.space, fixed, **attributes)
                break
            except late:
                if attempt == ATTEMPTS - 1:
                    raise
        self.training[trial.number] = self._trial_id(trial.number), list(state.seed)
        return params, {"study_trial": trial.number}

    def tell(self, state: SearcherState, trial: Trial, result: Result) -> None:
        """Tells a result once: the value, and all the rest as user attributes.

        Optuna cannot change the values of its own trials: one that moved, or was given up as stale, is told as failed
        and added with the values it came to.
        """
        one, number = FinishedTrial(trial, result), trial.meta.get("study_trial")
        if number is None:
            return self._add(state, one)
        self.training.pop(number, None)
        stored = self.storage.get_trial(self._trial_id(number))
        is_done = stored.state.is_finished()
        if not result.failed and (stored.params != trial.params or (is_done and stored.value is None)):
            self._add(state, one)
            result = Result.failure("added with other values")
        if not is_done:
            try:
                is_told = self._finish(number, result)
            except translation.package().exceptions.UpdateFinishedTrialError:
                is_told = False
            if not (is_told or result.failed):  # given up at this moment
                self._add(state, one)
        return None

    def _finish(self, number: int, result: Result) -> bool:
        for name, value in translation.attributes(result).items():
            self.storage.set_trial_user_attr(self._trial_id(number), name, value)
        trials = translation.package().trial
        return translation.tell(self.study, trials.Trial(self.study, self._trial_id(number)), result)

    def best(self) -> FinishedTrial | None:
        """Returns the best trial of all processes; its result holds the value and the user attributes as metrics."""
        finished = [one for one in self.study.get_trials(deepcopy=False) if one.value is not None]
        best = min(finished, key=lambda one: one.value, default=None)
        if best is None:
            return None
        return FinishedTrial(Trial(None, dict(best.params)), Result(best.value, metrics=dict(best.user_attrs)))

    def _add(self, state: SearcherState, one: FinishedTrial) -> None:
        """Adds a trial that the study did not propose, unless it was added before."""
        source = _source(state, one)
        if all(other.user_attrs.get(SOURCE) != source for other in self.study.get_trials(deepcopy=False)):
            user_attrs = translation.attributes(one.result) | {SOURCE: source}
            self.study.add_trial(translation.frozen(state.space, one.trial.params, one.result, user_attrs=user_attrs))

    def _take_up_stale(self, state: SearcherState) -> None:
        """Gives up trials whose process gave no sign of life, and queues their values to be asked for next.

        At the first ask also those that this search asked for before it was killed: its journal does not know them.

        **Raises** `ValueError` where another process of this machine has the key of this search.
        """
        first, optuna = self.checked is None, translation.package()
        if self.checked is not None and time.monotonic() - self.checked < self.heartbeat:
            return
        states = optuna.trial.TrialState
        mine = {*self.training, *(trial.meta.get("study_trial") for trial in state.pending)}
        for trial in self.study.get_trials(deepcopy=False, states=(states.RUNNING,)):
            same = trial.user_attrs.get(WORKER, {}).get("search") == list(state.seed)
            if trial.number in mine:
                continue
            is_stale = self._is_stale(trial)
            if same and not is_stale:
                _refuse_twin(trial)
            if not (is_stale or (first and same)):
                continue
            try:
                given_up = self.storage.set_trial_state_values(self._trial_id(trial.number), states.FAIL)
            except optuna.exceptions.UpdateFinishedTrialError:  # another process was first
                continue
            told = self.storage.get_trial(self._trial_id(trial.number))
            if told.value is not None:  # it was told at this very moment, which SQLite does not prevent
                self.study.add_trial(translation.completed(told))
            elif given_up:
                self.study.enqueue_trial(trial.params, user_attrs={RETRY: trial.number})
        self.checked = time.monotonic()

    def _is_stale(self, trial: Any) -> bool:
        """Returns whether nobody trains a trial any more. Trials of other programs that say nothing are theirs."""
        worker = trial.user_attrs.get(WORKER, {})
        last, interval = worker.get("beat", (float("inf"), self.heartbeat))
        if not (trial.params or trial.user_attrs or trial.system_attrs):  # killed before it could set an attribute
            last = trial.datetime_start.timestamp() + (NAMELESS - PATIENCE) * interval
        silence = time.time() - last
        if not worker.get("process", HERE).startswith(HERE):
            if self.seen.get(trial.number, (None,))[0] != last:
                self.seen[trial.number] = last, time.monotonic()
            silence = max(time.monotonic() - self.seen[trial.number][1], silence - SKEW)
        return bool(silence > PATIENCE * interval)

    def _trial_id(self, number: int) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self.id, number)


def _source(state: SearcherState, one: FinishedTrial) -> str:
    """Names a trial by its search and number, a foreign one by its values."""
    if one.trial.number is not None:
        return f"{list(state.seed)}, trial {one.trial.number}"
    content = json.dumps([one.trial.params, one.result.to_json()], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _refuse_twin(trial: Any) -> None:
    """Raises `ValueError` where another process of this machine trains a trial of the same search."""
    process = trial.user_attrs[WORKER].get("process", "")
    number = process.removeprefix(HERE)
    if process.startswith(HERE) and number != str(os.getpid()) and _runs(number):
        raise ValueError(
            f"key is that of process {number}, which trains trial {trial.number} of the study: give each its own key"
        )


def _runs(process: str) -> bool:
    """Returns whether a process of this machine runs, where /proc says so; a killed one may be there as a zombie."""
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


def _sign_of_life(search: list[int], interval: float) -> dict[str, Any]:
    """Returns what a study holds of the process that trains a trial: one attribute, because each costs a write."""
    return {"process": f"{HERE}{os.getpid()}", "search": search, "beat": [time.time(), interval]}


def _beat(study: "weakref.ref[SharedStudy]", interval: float) -> None:
    """Gives signs of life for what a study trains, until the study is gone."""
    while True:
        time.sleep(interval)
        alive = study()
        if alive is None:
            return
        for number, (trial_id, search) in list(alive.training.items()):
            try:
                alive.storage.set_trial_user_attr(trial_id, WORKER, _sign_of_life(search, interval))
            except translation.package().exceptions.UpdateFinishedTrialError:  # given up, or told at this moment
                alive.training.pop(number, None)
            except Exception:  # of a server that is away or a data base that is busy: the next sign may get through
                break
        del alive
