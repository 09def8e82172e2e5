"""Shapes of results, traced once for arguments of one form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad.ground.shapes import remembered, shapes_of


def counted():
    """A function that notes the shapes it is traced with."""
    calls = []

    def function(tree, factor):
        calls.append(jnp.shape(tree["x"]))
        return {"y": tree["x"] * factor, "key": jax.random.split(tree["key"])}

    return function, calls


def tree(size, dtype=jnp.float32):
    return {"x": jnp.ones(size, dtype), "key": jax.random.key(size)}


def test_arguments_of_one_form_are_traced_once():
    function, calls = counted()
    found = [shapes_of(function, tree(3), 2) for _ in range(3)]
    assert calls == [(3,)] and found[0]["y"].shape == (3,) and found[0]["key"].shape == (2,)
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    "other",
    [(tree(4), 2), (tree(3, jnp.float16), 2), (tree(3), 2.0), (tree(3) | {"more": None}, 2), (tree(3), jnp.asarray(2))],
)
def test_another_form_is_traced_anew(other):
    function, calls = counted()
    shapes_of(function, tree(3), 2)
    found = shapes_of(function, *other)
    assert len(calls) == 2
    expected = jax.eval_shape(lambda: function(*other))
    assert (found["y"].shape, found["y"].dtype) == (expected["y"].shape, expected["y"].dtype)


def test_what_cannot_be_hashed_is_traced_every_time():
    function, calls = counted()
    for _ in range(2):
        assert shapes_of(function, tree(3), np.ones(3))["y"].shape == (3,)
    assert len(calls) == 2


def test_types_are_those_of_the_options_in_force():
    function = lambda x: jnp.zeros(3)
    with jax.enable_x64(False):
        assert shapes_of(function, jnp.float32(1)).dtype == jnp.float32
        with jax.enable_x64(True):
            assert shapes_of(function, jnp.float32(1)).dtype == jnp.float64


def test_a_check_runs_once_for_arguments_of_one_form():
    runs = []

    def is_vector(array, name):
        runs.append(name)
        return array.ndim == 1

    assert [remembered(is_vector, jnp.ones(size), "x") for size in (2, 2, 3)] == [True, True, True]
    assert remembered(is_vector, jnp.ones((2, 2)), "x") is False
    assert len(runs) == 3


def test_a_check_that_raises_says_it_of_the_arguments_every_time():
    def refuse(array):
        raise ValueError("traced" if isinstance(array, jax.core.Tracer) else "an array")

    for _ in range(2):
        with pytest.raises(ValueError, match="an array"):
            remembered(refuse, jnp.ones(2))


def test_a_check_inside_a_transformation_is_remembered_nowhere():
    runs = []
    check = lambda array: runs.append(array)
    for _ in range(2):
        jax.eval_shape(lambda array: remembered(check, array), jnp.ones(2))
    assert len(runs) == 2
