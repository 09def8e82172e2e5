"""The history of a run: index, slices, joins, columns, plot."""

import csv
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hypergrad as hg
from hypergrad.testing import laws
from hypergrad.testing.problems import ridge

INNER = hg.OptaxSolver(optax.sgd(0.1, 0.9), 4)
SEARCH = hg.GradientSearch(hg.Reverse(INNER), optax.adam(0.1))


def go(steps=6, **options):
    case = ridge()
    state = SEARCH.init(case.problem, case.params, case.hparams)
    return hg.run(SEARCH, case.problem, state, key=laws.KEY, budget=4 * steps, chunk=4, **options)


def same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_index_and_iteration_give_records():
    _, history = go()
    assert len(history) == 6 == len(list(history))
    assert isinstance(history[2], hg.Record) and history[-1].value == history.value[5]
    for record, value, log_l2 in zip(history, history.value, history.hparams["log_l2"], strict=True):
        assert record.value == value and np.array_equal(record.hparams["log_l2"], log_l2)
    with pytest.raises(IndexError):
        history[6]


def test_spending_is_cumulative():
    state, history = go()
    np.testing.assert_array_equal(history.iterations, np.cumsum(history.stats.counts.iterations))
    np.testing.assert_array_equal(history.gradients, np.cumsum(history.stats.counts.gradients))
    assert history.iterations[-1] == state.spent.iterations and history.gradients[-1] == state.spent.gradients
    assert np.all(np.diff(history.seconds) > 0)


@pytest.mark.parametrize("index", [slice(1, 4), slice(None, None, 2), np.array([True, False] * 3), np.array([4, 1])])
def test_slices_masks_and_indices_give_histories(index):
    _, history = go()
    part = history[index]
    assert isinstance(part, hg.History)
    np.testing.assert_array_equal(part.value, history.value[index])
    np.testing.assert_array_equal(part.gradients, history.gradients[index])
    np.testing.assert_array_equal(part.durations, history.durations[index])


def test_what_never_moves_is_named():
    _, history = go()
    assert history.unmoved == ("hparams['unused']",) and history[:1].unmoved == ()
    assert str(history).endswith("unmoved: hparams['unused']")
    history.hparams["log_l2"][:, 1] = 0
    assert history.unmoved == ("hparams['log_l2'][1]", "hparams['unused']")


def test_parts_join_to_the_whole():
    _, history = go()
    same(history, history[:2] + history[2:])
    np.testing.assert_array_equal((history[:2] + history[2:]).seconds, history.seconds)
    with pytest.raises(ValueError, match="different records"):
        history + go(keep=lambda record: record.value)[1]
    with pytest.raises(TypeError):
        history + 1


def test_columns_are_the_entries_of_all_records(tmp_path):
    _, history = go()
    columns = history.to_dict()
    assert {len(column) for column in columns.values()} == {6} and all(c.ndim == 1 for c in columns.values())
    assert {"iterations", "gradients", "epochs", "seconds", "value", "stats.status", "stats.counts.rows"} <= set(
        columns
    )
    np.testing.assert_array_equal(columns["hparams.log_l2.1"], history.hparams["log_l2"][:, 1])
    np.testing.assert_array_equal(columns["stats.diagnostics.growth"], history.stats.diagnostics["growth"])
    assert not any(name.startswith("hparams.log_l2") for name in history.to_dict(max_entries=2))
    with open(tmp_path / "history.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    with open(tmp_path / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["value"]) for row in rows] == history.value.tolist()


def test_names_with_dots_do_not_collide():
    history = hg.History({"a.b": np.arange(2.0), "a": {"b": np.ones(2)}}, np.arange(2), np.arange(2), np.ones(2))
    columns = history.to_dict()
    assert len(columns) == 5
    np.testing.assert_array_equal(columns["['a.b']"], np.arange(2.0))


@pytest.mark.slow
def test_what_is_kept_has_a_history_too():
    _, history = go(keep=lambda record: (record.value, record.hparams["log_l2"]))
    value, log_l2 = history.records
    assert value.shape == (6,) and log_l2.shape == (6, 3)
    assert set(history.to_dict()) == {"iterations", "gradients", "epochs", "seconds", "0", "1.0", "1.1", "1.2"}
    assert "records" in str(history)
    assert len(go(keep=lambda record: ())[1]) == 6
    assert "kept" in go(keep=lambda record: record.value)[1].to_dict()


def test_a_run_of_no_steps_has_an_empty_history():
    state, _ = go()
    case = ridge()
    _, history = hg.run(SEARCH, case.problem, state, key=laws.KEY, budget=1)
    assert len(history) == 0 and len(list(history)) == 0 and len(history.to_dict()["value"]) == 0
    assert "0 steps" in str(history)


def test_a_resumed_history_has_all_durations(tmp_path):
    file = tmp_path / "run.ckpt"
    _, first = go(2, checkpoint=file)
    _, whole = go(6, checkpoint=file)
    np.testing.assert_array_equal(whole.durations[:2], first.durations)
    assert len(whole.durations) == len(whole) == 6


@pytest.mark.parametrize("unit", ["iterations", "gradients", "epochs", "seconds"])
def test_plot(unit, tmp_path):
    pytest.importorskip("matplotlib")
    _, history = go()
    axes = history.plot(tmp_path / "criterion.png", unit).axes[0]
    assert (tmp_path / "criterion.png").stat().st_size > 0 and axes.get_xlabel() == unit
    each, best = axes.get_lines()
    np.testing.assert_array_equal(each.get_xdata(), getattr(history, unit))
    np.testing.assert_array_equal(best.get_ydata(), np.minimum.accumulate(history.value))


def test_plot_leaves_out_what_is_not_finite_and_refuses_other_units():
    pytest.importorskip("matplotlib")
    value, two = np.array([2.0, np.nan, np.inf, 1.0]), np.arange(4)
    stats = hg.Stats(hg.Counts(iterations=two), two)
    history = hg.History(hg.Record(two, value, stats), two, two, np.ones(4))
    each, best = history.plot().axes[0].get_lines()
    assert each.get_xdata().tolist() == [0, 3] and best.get_ydata().tolist() == [2, 1]
    with pytest.raises(ValueError, match='unit must be "iterations" or "gradients" or .* got \'steps\''):
        history.plot(unit="steps")
    with pytest.raises(ValueError, match="no durations"):
        print(jax.tree.map(jnp.asarray, history).seconds)


def test_it_prints_numbers():
    _, history = go()
    text = str(history)
    assert text.splitlines()[0].startswith("History: 6 steps, iterations 24, gradients ")
    assert f"best {min(history.value):.6g}" in text and "OK (6)" in text
    assert not math.isnan(float(text.split("best ")[1].split()[0]))
