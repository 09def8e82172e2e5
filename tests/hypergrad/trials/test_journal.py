"""A journal keeps every finished trial, refuses what is damaged and lets one process in."""

import errno
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hypergrad as hg
from hypergrad.trials import journal

from tests.hypergrad.trials.examples import KEY

SPACE = hg.trials.Space({"a": hg.trials.Int(1, 8), "b": hg.trials.Float(0.0, 1.0)})
RANDOM = hg.trials.Random()


def value(trial, key):
    return hg.trials.Result(trial.params["a"] + trial.params["b"], metrics={"b": [trial.params["b"], np.inf]})


def search(path, number=2, function=value):
    return hg.trials.search_trials(RANDOM, SPACE, function, key=KEY, num_trials=number, journal=path)


def outcome(state):
    return [(one.trial, one.result.value, str(one.result.metrics)) for one in state.history]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("journal") / "search.jsonl"
    state = search(path)
    return outcome(state), path.read_bytes()


@pytest.mark.slow
def test_every_flipped_byte_is_refused_or_harmless(tmp_path, finished):
    whole, content = finished
    path = tmp_path / "search.jsonl"
    refused = 0
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << (place % 7)
        path.write_bytes(damaged)
        try:
            assert outcome(search(path)) == whole
        except hg.CheckpointError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 0.9 * len(content)


def test_every_length_goes_on_or_is_refused(tmp_path, finished):
    whole, content = finished
    path = tmp_path / "search.jsonl"
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        assert outcome(search(path)) == whole


def test_a_journal_of_other_random_numbers_is_refused(tmp_path):
    search(tmp_path / "search.jsonl")
    other = jax.threefry_partitionable(not jax.config.jax_threefry_partitionable)
    with other, pytest.raises(hg.CheckpointError, match="it differs in random bits:"):
        search(tmp_path / "search.jsonl", 3)


@pytest.mark.parametrize("change", ["double", "drop", "swap"])
def test_lines_that_are_not_in_order_are_refused(tmp_path, finished, change):
    lines = finished[1].splitlines(keepends=True)
    for index in range(1, len(lines) - 1):
        changed = {
            "double": [*lines[: index + 1], *lines[index:]],
            "drop": [*lines[:index], *lines[index + 1 :]],
            "swap": [*lines[:index], lines[index + 1], lines[index], *lines[index + 2 :]],
        }[change]
        path = tmp_path / "search.jsonl"
        path.write_bytes(b"".join(changed))
        with pytest.raises(hg.CheckpointError, match=r"search.jsonl is damaged: line \d+ is changed, or lines before"):
            search(path)


def test_numbers_are_told_once():
    trial = hg.trials.Trial(0, {"a": 1, "b": 0.5})
    ask, tell = journal.ask_event(trial), journal.tell_event(trial, hg.trials.Result(1.0))
    start = RANDOM.init(SPACE, KEY)
    assert len(journal.replay(start, [ask, tell], "a").history) == 1
    for events in ([ask, ask], [ask, tell, tell], [tell]):
        with pytest.raises(hg.CheckpointError, match="a has trial 0 doubled or out of order"):
            journal.replay(start, events, "a")


ASK = {"ask": {"number": 0, "params": {"a": 1, "b": 0.5}, "fidelity": 1.0, "meta": {}}}
CRAFTED = {
    "nothing": {},
    "a number": {"ask": 3},
    "no values": {"ask": {"number": 0, "params": {}}},
    "a value outside": {"ask": {"number": 0, "params": {"a": 9, "b": 0.5}}},
    "more": {"ask": ASK["ask"] | {"report": "now"}},
    "unknown": {"ask": ASK["ask"] | {"command": "rm"}},
    "no result": {"tell": ASK["ask"]},
    "another result": {"tell": ASK["ask"], "result": {"value": "low"}},
    "a result that is a list": {"tell": ASK["ask"], "result": [1.0]},
    "not finite": {"tell": ASK["ask"], "result": {"value": {"not finite": "much"}}},
}


@pytest.mark.row(35)
@pytest.mark.parametrize("event", CRAFTED.values(), ids=CRAFTED)
def test_crafted_lines_with_valid_checksums(tmp_path, finished, event):
    path = tmp_path / "search.jsonl"
    header = json.loads(finished[1].splitlines()[0])
    with journal.Journal(path, {name: part for name, part in header.items() if name != "checksum"}) as file:
        file.write(*([ASK] if "tell" in event else []), event)
    with pytest.raises(hg.CheckpointError, match="search.jsonl"):
        search(path)


@pytest.mark.row(35)
@pytest.mark.parametrize("line", [b"[1]", b"[" * 100_000, b"7", b"\xff"])
def test_lines_that_are_no_events(tmp_path, finished, line):
    path = tmp_path / "search.jsonl"
    path.write_bytes(finished[1] + line + b"\n")
    with pytest.raises(hg.CheckpointError, match=r"search.jsonl is damaged in line 6"):
        search(path)


@pytest.mark.row(34)
def test_a_disk_that_fills_up_is_named_and_the_state_is_kept(tmp_path, monkeypatch):
    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    def filling(trial, key):
        if trial.number == 2:
            monkeypatch.setattr(os, "fsync", full)
        return value(trial, key)

    path = tmp_path / "search.jsonl"
    with pytest.raises(OSError, match=r"journal='[^']*search.jsonl' cannot be used: No space left") as caught:
        search(path, 4, filling)
    assert len(caught.value.state.history) == 2
    monkeypatch.undo()
    assert outcome(search(path, 4)) == outcome(search(tmp_path / "other.jsonl", 4))


HOLDER = """
import sys, time
sys.path[:0] = sys.argv[2:]
from tests.hypergrad.trials.test_journal import search, value
def train(trial, key):
    print("training", flush=True)
    time.sleep(60)
search(sys.argv[1], 1, train)
"""


@pytest.mark.slow
def test_a_second_process_is_refused_by_name(tmp_path):
    path = tmp_path / "search.jsonl"
    command = [sys.executable, "-c", HOLDER, str(path), *sys.path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) as other:
        assert other.stdout.readline() == "training\n"
        with pytest.raises(hg.CheckpointError, match=rf"{path} is in use by process {other.pid} on "):
            search(path)
        other.kill()
    assert len(search(path).history) == 2  # no lock outlives its process
    assert sorted(file.name for file in tmp_path.iterdir()) == ["search.jsonl"]


FORMS = {
    "jax scalar": lambda x: jnp.asarray(x),
    "numpy scalar": np.float32,
    "one entry": lambda x: np.array([x]),
    "result": lambda x: hg.trials.Result(jnp.asarray(x), size=np.int64(5), gradients=jnp.int32(3)),
    "metrics": lambda x: hg.trials.Result(
        np.float64(x), metrics={"m": jnp.asarray(0.5), "curve": np.array([1, np.nan])}
    ),
    "tuned": lambda x: hg.trials.Result(x, tuned={"b": np.float32(0.25)}, hypergradient={"b": jnp.ones(1)}),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_results_are_kept_as_plain_numbers(tmp_path, form):
    trained = []

    def train(trial, key):
        trained.append(trial.number)
        return form(trial.params["b"])

    state = search(tmp_path / "search.jsonl", function=train)
    again = search(tmp_path / "search.jsonl", function=train)
    assert trained == [0, 1] and not state.failures
    assert json.dumps(again.to_json(), allow_nan=False) == json.dumps(state.to_json(), allow_nan=False)
    assert all(type(one.result.value) is float for one in state.history)


@pytest.mark.parametrize("wrong", ["0.5", None, {}, np.zeros(3), True])
def test_what_is_no_number_is_named(wrong):
    with pytest.raises(TypeError, match="value of a Result must be a number"):
        search(None, function=lambda trial, key: wrong)


@pytest.mark.parametrize("path", [True, np.int64(3), 0, ""])
def test_what_is_no_path_is_named(path):
    with pytest.raises((TypeError, ValueError), match="journal must be"):
        search(path)


def test_an_interrupted_search_leaves_its_state(tmp_path):
    def train(trial, key):
        if trial.number == 1:
            raise KeyboardInterrupt
        return value(trial, key)

    with pytest.raises(KeyboardInterrupt) as stop:
        search(None, function=train)
    assert len(stop.value.state.history) == 1
