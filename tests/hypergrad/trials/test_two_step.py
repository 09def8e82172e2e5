"""The two-step search and the Pareto front."""

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import hypergrad as hg

from tests.hypergrad.trials.examples import KEY, SPACE, TPE, loss

ROWS = np.arange(200.0)


def test_two_step_trains_the_best_again_on_more_of_the_same_rows(tmp_path):
    seen = []

    def objective(trial, key):
        rows = hg.trials.nested_subset(ROWS, trial.fidelity, jax.random.key(7))
        seen.append((trial.fidelity, set(np.asarray(rows).tolist())))
        scale = 100.0 if trial.fidelity == 1 else 1.0  # not comparable
        return hg.trials.Result(loss(trial.params) * scale + 1e-3 * len(rows), size=trial.params["layers"])

    options = {
        "key": KEY,
        "num_trials": 12,
        "fractions": (0.05, 0.3, 1.0),
        "keep": (6, 3),
        "journal": tmp_path / "steps",
    }
    steps = hg.trials.n_step(TPE, SPACE, hg.trials.PerTrial(objective), **options)
    first, second, third = steps.states
    assert [len(state.history) for state in steps.states] == [12, 6, 3]
    by_fraction = {fraction: rows for fraction, rows in seen}
    assert [len(by_fraction[f]) for f in (0.05, 0.3, 1.0)] == [10, 60, 200]
    assert by_fraction[0.05] < by_fraction[0.3] < by_fraction[1.0]
    for fraction, rows in seen:
        assert rows == by_fraction[fraction]
    assert [one.trial.params for one in second.history] == [one.trial.params for one in first.ranked[:6]]
    origins = {one.trial.number: one.trial.params for one in first.history}
    assert all(one.trial.params == origins[one.trial.meta["origin"]] for one in third.history)
    alone = hg.trials.search_trials(TPE, SPACE, hg.trials.PerTrial(objective), key=KEY, num_trials=12, fidelity=0.05)
    assert [one.trial for one in alone.history] == [one.trial for one in first.history]
    assert steps.best.result.value == min(one.result.value for one in third.history)
    trained = len(seen)
    again = hg.trials.n_step(TPE, SPACE, hg.trials.PerTrial(objective), **options)
    assert len(seen) == trained and again == steps and steps.seconds > 0


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
@settings(max_examples=50)
def test_the_pareto_front_is_what_nothing_dominates(points):
    every = [
        hg.trials.FinishedTrial(hg.trials.Trial(None, {}), hg.trials.Result(float(value), size=float(size)))
        for value, size in points
    ]
    failed = hg.trials.FinishedTrial(hg.trials.Trial(None, {}), hg.trials.Result(float("nan"), size=0.0))
    pruned = hg.trials.FinishedTrial(hg.trials.Trial(None, {}), hg.trials.Result(-1.0, size=0.0, pruned=True))
    front = {(one.result.value, one.result.size) for one in hg.trials.pareto_front([*every, failed, pruned])}
    beaten = lambda p: any(q[0] <= p[0] and q[1] <= p[1] and q != p for q in points)
    assert front == {p for p in points if not beaten(p)}
    choice = hg.trials.smallest_within_tolerance([pruned, *every], 0.5)
    assert (choice is None) == (not points)
    if choice is not None:
        best = min(value for value, _ in points)
        assert choice.result.size == min(size for value, size in points if value <= 1.5 * best)


def test_equal_configurations_are_trained_again_once():
    space = hg.trials.Space({"a": hg.trials.Categorical(("x", "y", "z", "u")), "n": hg.trials.Int(1, 3)})
    steps = hg.trials.two_step(
        hg.trials.Random(), space, lambda trial, key: float(ord(trial.params["a"])), key=KEY, num_trials=60, top=5
    )
    again = [tuple(one.trial.params.values()) for one in steps.states[1].history]
    assert len(set(again)) == len(again) == 5
    assert all(
        one.trial.params == steps.states[0].history[one.trial.origin].trial.params for one in steps.states[1].history
    )
