"""A study that several processes share: nothing is lost or doubled, whatever befalls one of them."""

import os
import sqlite3
import subprocess
import sys
import time
import types

import jax
import optuna
import pytest
import sqlalchemy

import hypergrad as hg
from hypergrad.trials.optuna import shared, storage, translation
from hypergrad.trials.optuna.searcher import shared_study

from tests.hypergrad.trials.examples import KEY, SPACE, loss, tpe


@pytest.mark.parametrize("failures", [1, 2])
def test_a_data_base_whose_tables_another_process_makes_is_opened(tmp_path, monkeypatch, failures):
    opened, errors = shared.storage_of, [sqlite3.IntegrityError("made at this moment")] * failures

    def contested(storage):
        if errors:
            raise sqlalchemy.exc.IntegrityError("INSERT", {}, errors.pop())
        return opened(storage)

    monkeypatch.setattr(shared, "storage_of", contested)
    monkeypatch.setattr(storage, "PAUSE", 0.01)
    study = shared.SharedStudy(f"sqlite:///{tmp_path}/study.db", "s", 60.0)
    assert study.study.trials == [] and not errors


def test_telling_twice_is_harmless(tmp_path):
    """A kill between the study and the journal: the trials are trained and told once more."""
    options = {"key": KEY, "num_trials": 6, "batch": 2, "journal": tmp_path / "search.jsonl"}
    known = [hg.trials.FinishedTrial(hg.trials.Trial(None, SPACE.decode([0.1] * 6)), hg.trials.Result(0.5))]
    train = lambda trial, key: hg.trials.Result(
        loss(trial.params), tuned={"lr": 0.05} if trial.number in (2, 3) else {}
    )

    def search():
        searcher = hg.trials.Optuna(tpe, storage=tmp_path / "study.log")
        return hg.trials.search_trials(searcher, SPACE, train, known=known, **options), searcher

    whole, _ = search()
    lines = (tmp_path / "search.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "search.jsonl").write_bytes(b"".join(lines[:-2]))  # the last two results are lost
    again, searcher = search()
    assert [one.result.value for one in again.history] == [one.result.value for one in whole.history]
    states = [trial.state.name for trial in searcher.kept.shared.study.trials]
    assert states.count("COMPLETE") == 1 + 6 and states.count("FAIL") == 2 and len(states) == 9


@pytest.mark.parametrize("moment", ["attributes", "tell"])
def test_a_trial_that_is_given_up_while_it_is_told_is_added(tmp_path, monkeypatch, moment):
    searcher, told, given_up = hg.trials.Optuna(tpe, storage=tmp_path / "study.log"), getattr(translation, moment), []

    def late(*arguments):
        """Tells, while another process gives the first trial up."""
        if not given_up:
            given_up.append(searcher.kept.shared._trial_id(0))
            searcher.kept.shared.storage.set_trial_state_values(given_up[0], optuna.trial.TrialState.FAIL)
        return told(*arguments)

    monkeypatch.setattr(translation, moment, late)
    train = lambda trial, key: hg.trials.Result(loss(trial.params), size=1)
    state = hg.trials.search_trials(searcher, SPACE, train, key=KEY, num_trials=2)
    trials = searcher.kept.shared.study.trials
    assert [trial.state.name for trial in trials] == ["FAIL", "COMPLETE", "COMPLETE"]
    assert [trials[1].value, trials[2].value] == [one.result.value for one in state.history]


def test_a_trial_that_is_told_while_it_is_given_up_is_kept(tmp_path, monkeypatch):
    """SQLite lets two processes change the state of one trial, of which each has seen that it runs."""
    address = f"sqlite:///{tmp_path}/study.db"
    slow, other = (hg.trials.Optuna(tpe, storage=address, heartbeat=30.0) for _ in range(2))
    state, trial = slow.ask(slow.init(SPACE, KEY))
    monkeypatch.setattr(shared_study(other), "_is_stale", lambda trial: True)

    def give_up(trial_id, state_wanted, values=None):
        slow.tell(state, trial, hg.trials.Result(0.5, size=3.0))
        with sqlite3.connect(tmp_path / "study.db") as base:
            base.execute("UPDATE trials SET state = 'FAIL' WHERE trial_id = ?", [trial_id])
        base.close()
        return True

    monkeypatch.setattr(other.kept.shared.storage, "set_trial_state_values", give_up)
    other.ask(other.init(SPACE, jax.random.key(7)))
    trials = other.kept.shared.study.trials
    assert [one.state.name for one in trials] == ["FAIL", "COMPLETE", "RUNNING"]
    assert trials[1].params == trial.params and trials[1].value == 0.5 and trials[1].user_attrs["size"] == 3.0


def test_a_clock_that_is_ahead_takes_no_trials_of_another_machine(tmp_path, monkeypatch):
    here, there = (hg.trials.Optuna(tpe, storage=tmp_path / "study.log", heartbeat=100.0) for _ in range(2))
    names = lambda: [one.state.name for one in here.kept.shared.study.trials]
    here.ask(here.init(SPACE, KEY))
    ahead = types.SimpleNamespace(time=lambda: time.time() + 600.0, monotonic=time.monotonic, sleep=time.sleep)
    monkeypatch.setattr(shared, "time", ahead)
    monkeypatch.setattr(shared, "HERE", "another machine, process ")
    state, _ = there.ask(there.init(SPACE, jax.random.key(7)))
    assert names() == ["RUNNING", "RUNNING"]
    ahead.monotonic = lambda: time.monotonic() + 301.0  # without a sign of life meanwhile
    there.ask(state)
    assert names() == ["FAIL", "RUNNING", "RUNNING"]


@pytest.mark.parametrize("content", ["a,b\n1,2\n", "notes", '{"ask": 1}\n'])
def test_a_file_of_something_else_stays_as_it_is(tmp_path, content):
    (tmp_path / "study.log").write_text(content)
    with pytest.raises(ValueError, match="no journal of Optuna"):
        hg.trials.Optuna(tpe, storage=tmp_path / "study.log").ask(hg.trials.Random().init(SPACE, KEY))
    assert (tmp_path / "study.log").read_text() == content


@pytest.mark.parametrize("directions", [["maximize"], ["minimize", "minimize"]])
def test_a_study_that_does_not_minimise_one_value_is_refused(directions):
    storage = optuna.storages.InMemoryStorage()
    optuna.create_study(study_name="hypergrad", storage=storage, directions=directions)
    with pytest.raises(ValueError, match="is there already, to"):
        hg.trials.Optuna(tpe, storage=storage).ask(hg.trials.Random().init(SPACE, KEY))


def test_a_process_with_the_key_of_another_that_lives_is_refused(tmp_path, monkeypatch):
    """Two searches with one key ask for the same trials, and each would give up what the other trains."""
    one, other = (hg.trials.Optuna(tpe, storage=tmp_path / "study.log") for _ in range(2))
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as child:
        with monkeypatch.context() as patched:
            patched.setattr(shared.os, "getpid", lambda: child.pid)
            one.ask(one.init(SPACE, KEY))
        with pytest.raises(ValueError, match=f"key is that of process {child.pid}"):
            other.ask(other.init(SPACE, KEY))
        other.ask(other.init(SPACE, jax.random.key(7)))
        child.kill()
    again = hg.trials.Optuna(tpe, storage=tmp_path / "study.log")
    again.ask(again.init(SPACE, KEY))
    names = [trial.state.name for trial in again.kept.shared.study.trials]
    assert names == ["FAIL", "RUNNING", "RUNNING"]


WORKER = """
import sys, time, jax, optuna
import hypergrad as hg
searcher = hg.trials.Optuna(lambda seed: optuna.samplers.RandomSampler(seed=seed), storage=sys.argv[1], heartbeat=0.2)
space = hg.trials.Space({"x": hg.trials.Float(0.0, 1.0)})
def train(trial, key):
    print(trial.params["x"], flush=True)
    time.sleep(float(sys.argv[2]))
    return trial.params["x"]
hg.trials.search_trials(searcher, space, train, key=jax.random.key(int(sys.argv[3])), num_trials=1)
"""


@pytest.mark.slow
def test_trials_of_a_dead_process_are_taken_up(tmp_path):
    start = lambda seconds, seed: subprocess.Popen(
        [sys.executable, "-c", WORKER, str(tmp_path / "study.log"), str(seconds), str(seed)],
        stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, text=True,
    )  # fmt: skip
    with start(3, 0) as slow, start(60, 1) as dead:
        values = [float(process.stdout.readline()) for process in (slow, dead)]
        dead.kill()
        time.sleep(1.0)  # more than three heartbeats: those of the slow one go on
        with start(0, 2) as heir:
            assert float(heir.stdout.readline()) == values[1]
    assert slow.returncode == heir.returncode == 0
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(tmp_path / "study.log")))
    trials = optuna.load_study(study_name="hypergrad", storage=storage).trials
    assert [trial.state.name for trial in trials].count("COMPLETE") == 2
    assert [trial.state.name for trial in trials].count("FAIL") == 1 and len(trials) == 3
