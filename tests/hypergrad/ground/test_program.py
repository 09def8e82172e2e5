"""Chunks of steps called with few arrays: all come back as they were, and equal plans share one program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad.ground.program import LARGE, SMALL, Layout, Program, Records


def record(k):
    """Arrays of several types and sizes, one of them too large to be packed."""
    return {"flag": k > 1, "many": jnp.full(SMALL + 1, k), "none": jnp.zeros((0, 2)), "pair": (k, 0.5 * k)}


def advance(plan, state, limit, take):
    """Takes at most `take` steps of size `plan[0]` until the state is at `limit`, with room for four."""

    def body(carry):
        state, tables, index = carry
        written = records._replace(tables=tables).written(index, record(state["a"]))
        return state | {"a": state["a"] + plan[0]}, written, index + 1

    records = Records.of(jax.eval_shape(record, state["a"]), 4)
    state, tables, index = jax.lax.while_loop(
        lambda carry: (carry[0]["a"] < limit) & (carry[2] < take), body, (state, records.tables, jnp.int32(0))
    )
    return state, records._replace(tables=tables), index


def test_records_survive_their_packing():
    records = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(record, jnp.arange(4.0)))
    layout = Layout.of(records)
    tables = [np.asarray(table) for table in layout.pack(records)]
    assert sorted(table.shape[1] for table in tables) == [1, 2, SMALL + 1]  # truth values, small numbers, the large one
    jax.tree.map(np.testing.assert_array_equal, layout.unpack(tables), records)
    np.testing.assert_array_equal(layout.last(tables, 1)[0], records["pair"][1])


def test_types_of_one_width_travel_together_bit_for_bit():
    leaves = [
        jnp.array([jnp.nan, -0.0], jnp.float32),
        jnp.int32(-1),
        jnp.uint32(2**32 - 1),
        jnp.float64(0.1),
        jnp.int64(-(2**40)),
    ]
    layout = Layout.of(leaves, axes=0)
    for tables in (layout.pack(leaves, np), jax.jit(layout.pack)(leaves)):
        assert sorted((table.dtype.name, table.size) for table in tables) == [("uint32", 4), ("uint64", 2)]
        for back in (layout.unpack([np.asarray(table) for table in tables]), jax.jit(layout.unpack)(tables)):
            assert [leaf.dtype for leaf in back] == [leaf.dtype for leaf in leaves]
            assert [np.asarray(leaf).tobytes() for leaf in back] == [np.asarray(leaf).tobytes() for leaf in leaves]


def test_types_that_xla_cannot_bring_together_stay_apart():
    """XLA ends the process on a CPU at two arrays of two bits an entry."""
    leaves = [jnp.array([1, 0, 1], jnp.int2), jnp.array([1], jnp.int2), jnp.ones(2, jnp.int8), jnp.ones(3, jnp.int8)]
    layout = Layout.of(leaves, axes=0)
    tables = [np.asarray(table) for table in jax.jit(layout.pack)(leaves)]
    assert len(tables) == 3
    jax.tree.map(np.testing.assert_array_equal, layout.unpack(tables), leaves)


def start():
    """A state with arrays of several types and sizes."""
    many = jnp.arange(LARGE // 8 + 1.0)
    return {"a": jnp.float64(0.0), "b": jnp.arange(6).reshape(2, 3), "key": jax.random.key(3), "many": many}


@pytest.mark.parametrize("packed", [False, True])
def test_a_program_returns_state_records_and_the_steps_done(packed):
    """A state that was lent is not written over; one that was not is, if it is large."""
    state = start()
    program, sent = Program(advance, (jnp.float64(1.0), "static"), state, packed), []
    assert program.donates is packed
    tables = program.own(program.pack(state)) if packed else program.pack(state)
    program(tables, jnp.float64(3.0), 2, sent)
    program(sent[0][0], jnp.float64(3.0), 100, sent)
    assert [int(number) for _, _, number in sent] == [2, 1]
    assert packed == any(table.is_deleted() for table in sent[0][0])
    assert program.entry(sent[1][0], lambda state: state["a"]) == 3
    after = program.unpack(sent[1][0])
    assert after["a"] == 3 and jax.random.key_data(after["key"]).tolist() == [0, 3]
    jax.tree.map(np.testing.assert_array_equal, (after["b"], after["many"]), (start()["b"], state["many"]))
    np.testing.assert_array_equal(program.layout.unpack(sent[0][1])["pair"][0][:2], np.arange(2.0))


def test_equal_plans_share_their_program_and_others_do_not():
    make = lambda number, name: Program(advance, (jnp.float64(number), name), start())
    assert make(1.0, 1)._call is make(2.0, 1)._call
    assert make(1.0, 1)._call is not make(1.0, True)._call
