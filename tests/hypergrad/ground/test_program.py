"""Chunks of steps called with flat lists: records come back as they were, and equal plans share one program."""

import jax
import jax.numpy as jnp
import numpy as np

from hypergrad.ground.program import SMALL, Layout, Program


def record(k):
    """Arrays of several types and sizes, one of them too large to be packed."""
    return {"flag": k > 1, "many": jnp.full(SMALL + 1, k), "none": jnp.zeros((0, 2)), "pair": (k, 0.5 * k)}


def advance(plan, state, limit, until):
    """Takes steps of size `plan[0]` until the state is at `until`, with room for four."""

    def body(carry):
        state, rooms, index = carry
        return (
            state + plan[0],
            jax.tree.map(lambda room, leaf: room.at[index].set(leaf), rooms, record(state)),
            index + 1,
        )

    rooms = jax.tree.map(lambda leaf: jnp.zeros((4, *jnp.shape(leaf)), jnp.result_type(leaf)), record(state))
    return jax.lax.while_loop(lambda carry: carry[0] < jnp.minimum(limit, until), body, (state, rooms, jnp.int32(0)))


def test_records_survive_their_packing():
    records = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(record, jnp.arange(4.0)))
    layout = Layout.of(records)
    tables = [np.asarray(table) for table in layout.pack(records)]
    assert sorted(table.shape[1] for table in tables) == [1, 2, SMALL + 1]  # truth values, small numbers, the large one
    jax.tree.map(np.testing.assert_array_equal, layout.unpack(tables), records)
    np.testing.assert_array_equal(layout.last(tables, 1)[0], records["pair"][1])


def test_a_program_returns_the_steps_done_and_pins_no_room():
    program = Program(advance, (jnp.float64(1.0), "static"), jnp.float64(0.0))
    (state,), tables = program([jnp.float64(0.0)], jnp.float64(3.0), 100)
    assert state == 3 and all(len(table) == 3 and table.base is None for table in tables)
    np.testing.assert_array_equal(program.layout.unpack(tables)["pair"][0], np.arange(3.0))


def test_equal_plans_share_their_program_and_others_do_not():
    make = lambda number, name: Program(advance, (jnp.float64(number), name), jnp.float64(0.0))
    assert make(1.0, 1)._call is make(2.0, 1)._call
    assert make(1.0, 1)._call is not make(1.0, True)._call
