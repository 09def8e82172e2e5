"""The identity of a program, functions of Python in it included."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad.ground.outside import program_digest

SHAPE = jax.ShapeDtypeStruct((), jnp.float32)


def dot(weights, v):
    return np.float32(weights @ v)


def bound(weights):
    return lambda v: jax.pure_callback(functools.partial(dot, weights), SHAPE, v)


def around(weights):
    return lambda v: jax.pure_callback(lambda v: dot(weights, v), SHAPE, v)


def default(weights):
    def host(v, weights=weights):
        return dot(weights, v)

    return lambda v: jax.pure_callback(host, SHAPE, v)


def filtered(weights):
    return lambda v: eqx.filter_pure_callback(lambda v: dot(weights, v), v, result_shape_dtypes=SHAPE)


def inside(weights):
    settings = {"scale": 2.0, "weights": (weights,)}
    return lambda v: jax.pure_callback(lambda v: dot(settings["weights"][0], v) * settings["scale"], SHAPE, v)


@pytest.mark.parametrize("make", [bound, around, default, filtered, inside])
def test_arrays_that_callbacks_hold_are_part_of_a_program(make):
    """More of them than a text shows."""
    weights, v = np.arange(5000.0), jnp.ones(5000)
    digest = program_digest(make(weights), v)
    assert program_digest(make(weights.copy()), v) == digest
    assert program_digest(make(np.where(weights == 2500, 0, weights)), v) != digest


def test_a_number_that_a_callback_reads_is_part_of_a_program_and_a_clock_that_prints_is_not():
    def scaled(scale, since):
        def loss(v):
            jax.debug.callback(lambda v: print(v, since), v)
            return jax.pure_callback(lambda v: np.float32(scale * v), SHAPE, v)

        return program_digest(loss, jnp.ones(()))

    assert scaled(1.0, 0.0) == scaled(1.0, 5.0) != scaled(2.0, 0.0)
