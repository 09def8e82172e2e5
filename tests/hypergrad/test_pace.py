"""The pace of a run: steps between two looks follow the time they take, and records fit on the device."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypergrad as hg
from hypergrad.pace import BYTES, QUICK, ROOM, SLOW, Pace
from hypergrad.testing import laws
from hypergrad.testing.problems import ridge


def test_quick_steps_are_looked_at_less_often_and_slow_ones_more():
    pace, taken = Pace(None, False, 8), []
    for seconds in [QUICK / 2] * 10 + [SLOW * 2] * 3:
        taken.append(sum(pace.takes(10**9)))
        pace.adapt(taken[-1], seconds)
    assert taken == [1, 2, 4, 8, 16, 32, 64, 128, 256, 256, 256, 128, 64] and pace.room == ROOM
    assert list(pace.takes(5)) == [5]


def test_a_given_chunk_is_kept_and_sent_several_times():
    pace = Pace(3, False, 8)
    for _ in range(4):
        found = list(pace.takes(10**9))
        pace.adapt(sum(found), QUICK / 2)
    assert pace.room == 3 and found == [3] * 8
    assert list(pace.takes(4)) == [3]


def test_large_records_are_taken_one_by_one():
    assert Pace(None, False, BYTES).room == 1 and Pace(None, False, BYTES // 3).room == 3
    pace = Pace(None, False, 2 * BYTES)
    pace.adapt(1, 0.0)
    assert list(pace.takes(10**9)) == [1]


def test_who_watches_sees_every_call():
    pace = Pace(None, True, 8)
    pace.adapt(1, 0.0)
    assert list(pace.takes(10**9)) == [1] and list(Pace(4, True, 8).takes(1)) == [4]


@pytest.mark.parametrize("large", [False, True])
def test_a_call_that_raises_leaves_what_came_before(tmp_path, monkeypatch, large):
    """A large state is lost, which is written over; the file still has an earlier one, and the same run goes on."""
    case, failing = ridge(), {"at": 6}
    if large:
        monkeypatch.setattr("hypergrad.ground.program.LARGE", 1)

    def count(value):
        failing["at"] -= 1
        if failing["at"] == 0:
            raise ValueError("the data are gone")
        return np.asarray(value)

    def outer(w, h, data, key):
        value = case.problem.outer_loss(w, h, data, key)
        same = jax.pure_callback(count, jax.ShapeDtypeStruct((), value.dtype), jax.lax.stop_gradient(value))
        return value + 0 * same

    problem = hg.BilevelProblem(case.problem.inner_loss, outer, case.problem.train, case.problem.valid)
    search = hg.GradientSearch(hg.Greedy(hg.OptaxSolver(optax.sgd(0.1), 2), check=None), optax.sgd(0.1))
    state = search.init(problem, case.params, case.hparams)
    options = {"key": laws.KEY, "budget": 20, "chunk": 1, "checkpoint": tmp_path / "run.ckpt", "every_steps": 2}
    with pytest.raises(Exception, match="the data are gone"):
        hg.run(search, problem, state, **options)
    jax.block_until_ready(jnp.zeros(1))
    failing["at"] = 10**9
    end, history = hg.run(search, problem, state, **options)
    whole, _ = hg.run(search, problem, state, key=laws.KEY, budget=20)
    assert len(history) == end.num_steps == 10
    jax.tree.map(np.testing.assert_array_equal, end, whole)
