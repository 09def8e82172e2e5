"""Data that are no plain arrays: refused by name before anything is read from them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hypergrad as hg
from hypergrad.data.source import Source
from hypergrad.ground.hparams import as_hparams
from hypergrad.problem import check_model

LOSS = lambda w, h, data, key: jnp.sum(w**2) * h
ROWS = np.ones((4, 2))


class Frame:
    """A table of some library."""

    def to_numpy(self):
        return ROWS


class Loader:
    """Batches, again and again."""

    def __iter__(self):
        return iter([(ROWS, ROWS)])


def batches():
    yield ROWS


WRONG = {
    "generator": (batches, r"train is an iterator \(builtins.generator\)"),
    "iterator": (lambda: iter([ROWS]), r"train is an iterator"),
    "zip": (lambda: zip([ROWS], [ROWS], strict=True), r"train is an iterator \(builtins.zip\)"),
    "loader": (Loader, r"train is a .*Loader; data must be arrays"),
    "table": (lambda: {"x": Frame()}, r"train\['x'\] is a .*Frame.*to_numpy"),
    "masked": (lambda: (ROWS, np.ma.masked_array(ROWS, mask=ROWS == 0)), r"train\[1\] is a masked array"),
    "big-endian": (lambda: [ROWS.astype(">f8")], r"train\[0\] is of the byte order >f8"),
    "objects": (lambda: ROWS.astype(object), "train has dtype object"),
    "text": (lambda: {"y": "cat"}, r"train\['y'\] is text"),
    "set": (lambda: {"x": {1.0, 2.0}}, r"train\['x'\] is a builtins.set"),
}


@pytest.mark.row(23)
@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_array_is_named(name):
    make, message = WRONG[name]
    with pytest.raises(TypeError, match=message):
        hg.BilevelProblem(LOSS, LOSS, make(), ROWS)
    with pytest.raises(TypeError, match=message.replace("train", "valid")):
        hg.BilevelProblem(LOSS, LOSS, ROWS, make())


def test_a_generator_is_not_read():
    taken = []

    def reading():
        taken.append(1)
        yield ROWS

    with pytest.raises(TypeError):
        hg.BilevelProblem(LOSS, LOSS, reading(), ROWS)
    assert not taken


def test_functions_and_plain_numbers_pass():
    data = {"x": ROWS, "scale": 2.0, "flag": True, "act": jnp.tanh, "int8": np.int8([1, 2]), "view": ROWS[::2].T}
    problem = hg.BilevelProblem(LOSS, LOSS, data, ROWS)
    assert problem.train["act"] is jnp.tanh and problem.train["int8"].dtype == jnp.int8


TAKE = {
    "data": lambda rows: hg.BilevelProblem(LOSS, LOSS, rows, ROWS).train,
    "batches": lambda rows: hg.Batches(rows, 2).data,
    "hparams": lambda rows: as_hparams(rows),
    "params": lambda rows: check_model(hg.BilevelProblem(LOSS, LOSS, ROWS, ROWS), rows, jnp.ones(())).arrays,
}


@pytest.mark.parametrize("name", TAKE)
def test_what_the_caller_writes_later_is_not_read(name):
    """JAX copies a large array in the background: it could be torn."""
    for _ in range(5):
        rows = np.ones(2_000_000)
        taken = TAKE[name](rows)
        rows[:] = 0
        assert jnp.min(taken) == 1


BEYOND = {"int64": np.array([1, 2**40]), "uint64": np.array([2**33], np.uint64), "infinite": np.array([1.0, 1e300])}
BEYOND |= {"zero": np.array([0.0, 1e-300, 1e-200]), "complex": np.array([1e300j])}


@pytest.mark.parametrize("name", BEYOND)
def test_numbers_that_become_others_in_single_precision_are_refused(name):
    wrong, message = BEYOND[name], r"\d numbers out of the range of .*jax_enable_x64"
    assert np.array_equal(hg.BilevelProblem(LOSS, LOSS, wrong, ROWS).train, wrong)
    with jax.enable_x64(False):
        with pytest.raises(ValueError, match=f"train holds {message}"):
            hg.BilevelProblem(LOSS, LOSS, wrong, ROWS)
        with pytest.raises(ValueError, match=rf"data\['x'\] holds {message}"):
            hg.Batches({"x": wrong}, 1)
        with pytest.raises(ValueError, match=rf"stream: batch 0 train\['x'\] holds {message}"):
            Source([{"x": wrong}], {"x": jnp.asarray(np.zeros_like(wrong))}).pull()
        if wrong.dtype == np.float64:
            with pytest.raises(ValueError, match=f"hparams holds {message}"):
                as_hparams(wrong)
            with pytest.raises(ValueError, match=f"params holds {message}"):
                check_model(hg.BilevelProblem(LOSS, LOSS, ROWS, ROWS), wrong, jnp.ones(()))
        hg.BilevelProblem(LOSS, LOSS, {"wide": np.array([-1, 2**31 - 1]), "tiny": np.array([1.0, 1e-300])}, ROWS)
