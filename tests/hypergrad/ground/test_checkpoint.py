"""Checkpoints: a damaged one, or one of another run, is refused; one of the same run is taken."""

import itertools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypergrad as hg
from hypergrad.ground.checkpoint import load_checkpoint, save_checkpoint
from hypergrad.testing import laws
from hypergrad.testing.problems import net, ridge

from tests.helpers import ROOT

INNER = hg.OptaxSolver(optax.sgd(0.1), 3)
OUTER = optax.sgd(0.1)
SEARCH = hg.GradientSearch(hg.Reverse(INNER), OUTER)


def go(file, budget=6, search=SEARCH, case=None, key=laws.KEY, **options):
    case = ridge() if case is None else case
    state = search.init(case.problem, case.params, case.hparams)
    return hg.run(search, case.problem, state, key=key, budget=budget, checkpoint=file, **options)


@pytest.fixture
def saved(tmp_path):
    go(tmp_path / "run.ckpt")
    return tmp_path / "run.ckpt"


IDENTITY = {"run": "this one"}
ARRAYS = {"a": np.arange(6.0).reshape(2, 3), "b": np.int32(4)}


@pytest.fixture
def small(tmp_path):
    save_checkpoint(tmp_path / "small.ckpt", ARRAYS, IDENTITY)
    return tmp_path / "small.ckpt"


def not_refused(file, contents):
    """The places of damage that raise no CheckpointError, and what happened instead."""
    found = {}
    for place, content in contents:
        file.write_bytes(content)
        try:
            load_checkpoint(file, ARRAYS, IDENTITY)
            found[place] = "accepted"
        except hg.CheckpointError as error:
            assert str(file) in str(error)
        except Exception as error:
            found[place] = repr(error)
    return found


def flipped(content, place, bit):
    damaged = bytearray(content)
    damaged[place] ^= bit
    return bytes(damaged)


def test_what_is_saved_is_loaded(small):
    found, identity = load_checkpoint(small, ARRAYS, IDENTITY)
    assert identity == IDENTITY
    assert all(np.array_equal(found[name], ARRAYS[name]) for name in ARRAYS)


@pytest.mark.row(32)
def test_any_flipped_bit_is_refused(small):
    good = small.read_bytes()
    places = itertools.product(range(len(good)), (1, 32, 128))
    assert not not_refused(small, ((place, flipped(good, *place)) for place in places))


@pytest.mark.row(31)
def test_a_file_truncated_anywhere_is_refused(small):
    good = small.read_bytes()
    assert not not_refused(small, ((n, good[:n]) for n in range(len(good))))


@pytest.mark.row(33)
def test_a_checkpoint_of_another_version_is_refused(saved):
    good = saved.read_bytes()
    saved.write_bytes(good.replace(b"checkpoint 1", b"checkpoint 2", 1))
    with pytest.raises(hg.CheckpointError, match="version"):
        go(saved)


@pytest.mark.row(33)
def test_what_is_kept_belongs_to_the_configuration(saved):
    with pytest.raises(hg.CheckpointError):
        go(saved, keep=lambda record: record.value)


def moved(case):
    return case.replace(hparams=jax.tree.map(lambda h: h + 1, case.hparams))


OTHERS = {
    "outer optimiser": {"search": hg.GradientSearch(hg.Reverse(INNER), optax.sgd(0.5))},
    "inner optimiser": {"search": hg.GradientSearch(hg.Reverse(hg.OptaxSolver(optax.sgd(0.3), 3)), OUTER)},
    "data": {"case": ridge(5)},
    "key": {"key": jax.random.key(1)},
    "hyperparameters at the start": {"case": moved(ridge())},
}


@pytest.mark.row(33)
@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_a_checkpoint_of_another_run_is_refused(saved, other):
    """A run that goes on under other settings is not the run that the result would name."""
    with pytest.raises(hg.CheckpointError, match="another run; it differs in"):
        go(saved, budget=12, **other)


class Positive:
    """A projection as a callable object: its default name holds its address."""

    def __call__(self, hparams):
        return jax.tree.map(lambda h: jnp.maximum(h, -5.0), hparams)


@pytest.mark.parametrize("make", [Positive, lambda: jax.jit(lambda hparams: hparams)])
def test_the_same_configuration_is_taken_wherever_it_lies_in_memory(tmp_path, make):
    first, second = (hg.GradientSearch(hg.Reverse(INNER), OUTER, make()) for _ in range(2))
    go(tmp_path / "run.ckpt", search=first)
    state, history = go(tmp_path / "run.ckpt", budget=12, search=second)
    assert state.num_steps == 4 and len(history.value) == 4


RESUME = """
import sys
sys.path.insert(0, {folder!r})
import tests.conftest
from tests.hypergrad.ground import test_checkpoint
print(test_checkpoint.go_net({file!r}, 4).num_steps)
"""


def go_net(file, steps):
    search = hg.GradientSearch(hg.DrMAD(hg.OptaxSolver(optax.adam(0.05), 5), warm_start=True), optax.adam(0.1))
    return go(file, 5 * steps, search, net())[0]


@pytest.mark.row(29)
def test_another_process_goes_on_with_the_same_bits(tmp_path):
    go_net(tmp_path / "run.ckpt", 2)
    script = RESUME.format(folder=str(ROOT), file=str(tmp_path / "run.ckpt"))
    environment = os.environ | {"PYTHONHASHSEED": "1"}
    found = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["4"]
    assert go_net(tmp_path / "run.ckpt", 2).num_steps == 4


def test_a_run_goes_on_from_the_state_it_returned(tmp_path):
    file, case = tmp_path / "run.ckpt", ridge()
    options = {"key": laws.KEY, "checkpoint": file}
    state, _ = go(file)
    state, history = hg.run(SEARCH, case.problem, state, budget=9, **options)
    assert len(history.value) == 3
    again, history = go(file, budget=12)
    assert len(history.value) == again.num_steps == 4
    with pytest.raises(hg.CheckpointError, match="differs in start"):
        hg.run(SEARCH, case.problem, state, budget=12, **options)


def test_a_finished_run_is_not_changed(saved):
    state, history = go(saved)
    again, same = go(saved)
    assert state.num_steps == again.num_steps == len(history.value) == len(same.value) == 2
    np.testing.assert_array_equal(history.value, same.value)
