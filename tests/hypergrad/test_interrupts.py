"""An interrupted run gives back what it has, and goes on with the same bits."""

import os
import signal
import subprocess
import sys
import threading

import jax
import numpy as np
import optax
import pytest

import hypergrad as hg
from hypergrad.testing import laws
from hypergrad.testing.problems import ridge

from tests.helpers import ROOT

SEARCH = hg.GradientSearch(hg.Reverse(hg.OptaxSolver(optax.sgd(0.1), 3), warm_start=True), optax.adam(0.1))


def go(steps=8, state=None, **options):
    case = ridge()
    state = SEARCH.init(case.problem, case.params, case.hparams) if state is None else state
    return hg.run(SEARCH, case.problem, state, key=laws.KEY, budget=3 * steps, **options)


def same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def at_step(step, act):
    return lambda state, history: act() if state.num_steps == step else None


def interrupt():
    signal.raise_signal(signal.SIGINT)


def raise_interrupt():
    raise KeyboardInterrupt


@pytest.mark.variants(quick=["raise_interrupt"], slow=["interrupt"])
@pytest.mark.row(40)
@pytest.mark.parametrize("act", [interrupt, raise_interrupt])
def test_the_exception_holds_state_and_history(act, capsys):
    with pytest.raises(KeyboardInterrupt, match="after step 5") as caught:
        go(callback=at_step(5, act))
    stop = caught.value
    assert stop.state.num_steps == len(stop.history) == 5
    state, rest = go(state=stop.state)
    same((state, stop.history + rest), go())
    assert ("a second signal stops at once" in capsys.readouterr().err) == (act is interrupt)


def fail():
    raise LookupError("no such figure")


ERRORS = {"of the callback": (fail, LookupError), "truth of an array": (lambda: np.ones(2), ValueError)}


@pytest.mark.row(40)
@pytest.mark.parametrize("name", ERRORS)
def test_an_exception_holds_state_and_history(name):
    act, kind = ERRORS[name]
    with pytest.raises(kind) as caught:
        go(callback=at_step(5, act))
    error = caught.value
    assert error.state.num_steps == len(error.history) == 5 and "after step 5" in error.__notes__[0]
    state, rest = go(state=error.state)
    same((state, error.history + rest), go())


@pytest.mark.row(40)
def test_a_warning_that_is_an_error_holds_state_and_history():
    case = ridge()
    search = hg.GradientSearch(SEARCH.estimator, optax.sgd(1e200))
    state = search.init(case.problem, case.params, case.hparams)
    with pytest.raises(RuntimeWarning, match="has no finite result") as caught:
        hg.run(search, case.problem, state, key=laws.KEY, budget=30)
    assert caught.value.state.num_steps == len(caught.value.history) > 0


@pytest.mark.row(40)
def test_a_chunk_is_finished_first():
    def soon(state, history):
        threading.Timer(0, os.kill, (os.getpid(), signal.SIGINT)).start()

    with pytest.raises(KeyboardInterrupt) as caught:
        go(10**6, chunk=4, callback=soon)
    assert caught.value.state.num_steps == len(caught.value.history) > 0
    assert caught.value.state.num_steps % 4 == 0


def test_a_second_interrupt_acts_at_once():
    def twice():
        interrupt()
        interrupt()
        pytest.fail("went on")

    with pytest.raises(KeyboardInterrupt) as caught:
        go(callback=at_step(2, twice))
    assert caught.value.state.num_steps == 2


@pytest.mark.parametrize("act", [interrupt, raise_interrupt])
def test_an_interrupted_run_is_saved_and_goes_on(tmp_path, act):
    options = {"checkpoint": tmp_path / "run.ckpt", "chunk": 2}
    with pytest.raises(KeyboardInterrupt):
        go(callback=at_step(4, act), **options)
    state, history = go(**options)
    assert len(history) == 8
    same((state, history), go(chunk=2))


def test_a_run_inside_a_run_stops_both():
    with pytest.raises(KeyboardInterrupt) as outer:
        go(callback=at_step(3, lambda: go(callback=at_step(2, interrupt))))
    assert outer.value.state.num_steps == 3
    inner = outer.value.__cause__
    assert inner.state.num_steps == 2


SCRIPT = """
import os, signal, sys
sys.path.insert(0, {folder!r})
import tests.conftest
from tests.hypergrad.test_interrupts import at_step, go
go(checkpoint={file!r}, callback=at_step(5, lambda: os.kill(os.getpid(), {number})))
print("not reached")
"""


@pytest.mark.row(40)
@pytest.mark.variants(slow=["2", "15"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_exit_code_of_a_script_tells_the_signal(tmp_path, number):
    script = SCRIPT.format(folder=str(ROOT), file=str(tmp_path / "run.ckpt"), number=int(number))
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert found.returncode == -number and found.stdout == ""
    same(go(checkpoint=tmp_path / "run.ckpt"), go())


@pytest.mark.row(33)
def test_a_checkpoint_of_other_random_numbers_is_refused(tmp_path):
    """The option is in no program: the same keys would draw other numbers from there on."""
    go(2, checkpoint=tmp_path / "run")
    other = jax.threefry_partitionable(not jax.config.jax_threefry_partitionable)
    with other, pytest.raises(hg.CheckpointError, match="differs in random bits:"):
        go(4, checkpoint=tmp_path / "run")
    assert go(4, checkpoint=tmp_path / "run")[0].num_steps == 4
