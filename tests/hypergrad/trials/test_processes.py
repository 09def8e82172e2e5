"""Trials in several processes: the same results, and what befalls one is its own."""

import copy
import os
import threading
import time
from multiprocessing.reduction import ForkingPickler

import jax
import numpy as np
import pytest

import hypergrad as hg

from tests.hypergrad.trials.examples import KEY

SPACE = hg.trials.Space({"n": hg.trials.Int(0, 9), "x": hg.trials.Float(0.0, 1.0)})


def train(trial, key):
    drawn = jax.random.uniform(key, (3,))[2]  # several, which options of JAX change
    return hg.trials.Result(float(drawn) + trial.params["x"], metrics={"process": os.getpid()})


def befallen(trial, key):
    """Dies, hangs or raises as the trial's number says."""
    if trial.params["n"] == 1:
        os.kill(os.getpid(), 9)
    if trial.params["n"] == 2:
        time.sleep(60)
    if trial.params["n"] == 3:
        raise RuntimeError("diverged")
    return train(trial, key)


@pytest.mark.slow
def test_processes_give_what_one_gives():
    options = {"key": KEY, "num_trials": 6, "batch": 3}
    with jax.enable_x64(True), jax.threefry_partitionable(not jax.config.jax_threefry_partitionable):
        alone = hg.trials.search_trials(hg.trials.Random(), SPACE, train, **options)
        state = hg.trials.search_trials(hg.trials.Random(), SPACE, hg.trials.Processes(train, workers=2), **options)
    assert [one.trial for one in state.history] == [one.trial for one in alone.history]
    assert [one.result.value for one in state.history] == [one.result.value for one in alone.history]
    assert len({one.result.metrics["process"] for one in state.history} - {os.getpid()}) == 2


def kill_the_first(objective):
    """Ends a process that waits for its next trial."""
    objective.kept[0].process.kill()
    objective.kept[0].process.join()


@pytest.mark.slow
def test_a_process_that_ends_between_trials_costs_none():
    objective = hg.trials.Processes(train, workers=1)
    options = {"key": KEY, "num_trials": 2, "callback": lambda state: kill_the_first(objective)}
    state = hg.trials.search_trials(hg.trials.Random(), SPACE, objective, **options)
    assert len(state.history) == 2 and not state.failures


@pytest.mark.slow
def test_what_befalls_a_process_is_its_trial_s():
    listed = hg.trials.FixedList([{"n": n, "x": 0.5} for n in (0, 1, 2, 3, 4, 0)])
    objective = hg.trials.Processes(befallen, workers=2, time_limit=3.0)
    state = hg.trials.search_trials(listed, SPACE, objective, key=KEY, num_trials=6, batch=6)
    errors = [one.result.error for one in state.history]
    assert [error is None for error in errors] == [True, False, False, False, True, True]
    assert "exit code -9" in errors[1] and "longer than 3 s" in errors[2] and "diverged" in errors[3]
    assert not np.isnan(state.best.result.value)
    with pytest.raises(RuntimeError, match="diverged") as caught:
        hg.trials.search_trials(hg.trials.FixedList([{"n": 3, "x": 0.5}]), SPACE, objective, key=KEY, num_trials=1)
    assert "in befallen" in str(caught.value)


nameless = lambda trial, key: 0.0


@pytest.mark.parametrize("function", [nameless, lambda trial, key: 0.0])
def test_functions_that_no_process_can_import_are_named(function):
    with pytest.raises(TypeError, match="define it at the top level of a module"):
        hg.trials.Processes(function)([hg.trials.Trial(0, {})], [KEY])


def test_copies_of_an_objective_in_use_start_their_own_processes():
    objective = hg.trials.Processes(train, workers=1)
    objective.kept.append(threading.Lock())  # as a process, it can be neither copied nor pickled
    for copied in (copy.deepcopy(objective), ForkingPickler.loads(ForkingPickler.dumps(objective))):
        assert copied.kept == [] and copied.workers == 1
