"""Data that are no plain arrays: refused by name before anything is read from them."""

import jax.numpy as jnp
import numpy as np
import pytest

import hypergrad as hg

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
