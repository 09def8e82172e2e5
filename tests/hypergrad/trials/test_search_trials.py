"""The loop of a black-box search with its journal and its workers, the two-step search, bad input."""

import jax
import numpy as np
import optax
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hypergrad as hg

from tests.hypergrad.trials.examples import KEY, NESTED, SPACE, TPE, loss, tpe


def noisy(trial, key):
    if trial.number % 5 == 3:
        raise RuntimeError("diverged")
    return loss(trial.params) + float(jax.random.uniform(key)) if trial.number % 5 else float("nan")


@pytest.mark.row(29)
@pytest.mark.parametrize("searcher", [NESTED, hg.trials.Sobol()], ids=["nested", "sobol"])
@pytest.mark.parametrize("batch", [1, 4])
def test_a_killed_search_goes_on_as_if_it_had_not_been(tmp_path, searcher, batch):
    path, options = tmp_path / "search.jsonl", {"key": KEY, "num_trials": 14, "batch": batch}
    whole = hg.trials.search_trials(searcher, SPACE, hg.trials.PerTrial(noisy), **options)
    assert [one.trial.number for one in whole.failures] == [0, 3, 5, 8, 10, 13]
    assert "diverged" in whole.failures[1].result.error

    def killed(trial, key):
        if trial.number == 6:
            raise KeyboardInterrupt
        return noisy(trial, key)

    with pytest.raises(KeyboardInterrupt):
        hg.trials.search_trials(searcher, SPACE, hg.trials.PerTrial(killed), journal=path, **options)
    with open(path, "ab") as file:
        file.write(b'{"tell": {"num')  # a line that was being written
    resumed = hg.trials.search_trials(searcher, SPACE, hg.trials.PerTrial(noisy), journal=path, **options)
    without_time = lambda state: [(one.trial, one.result.value, one.result.error) for one in state.history]
    assert str(without_time(resumed)) == str(without_time(whole))
    size = path.stat().st_size
    again = hg.trials.search_trials(searcher, SPACE, hg.trials.PerTrial(noisy), journal=path, **options)
    assert str(without_time(again)) == str(without_time(whole)) and path.stat().st_size == size
    for other in ({"key": jax.random.key(4)}, {"batch": 2}, {"fidelity": 0.5}):
        with pytest.raises(hg.CheckpointError, match=f"differs in.*{next(iter(other))}"):
            hg.trials.search_trials(searcher, SPACE, hg.trials.PerTrial(noisy), journal=path, **options | other)
    path.write_text(path.read_text().replace("ask", "as", 1)[:-1] + "x\n")
    with pytest.raises(hg.CheckpointError, match="damaged"):
        hg.trials.search_trials(searcher, SPACE, hg.trials.PerTrial(noisy), journal=path, **options)


def test_workers_share_one_study(tmp_path):
    seeds = []

    def sampler(seed):
        seeds.append(seed)
        return tpe(seed)

    shared = hg.trials.SubnetworkAdaptive(
        hg.trials.Optuna(sampler, storage=tmp_path / "study.log"), hg.trials.PedAnova(), warmup=3
    )
    for worker in range(2):
        key = jax.random.fold_in(KEY, worker)
        hg.trials.search_trials(
            shared, SPACE, hg.trials.PerTrial(noisy), key=key, num_trials=6, batch=2, journal=tmp_path / f"{worker}"
        )
    state = shared.init(SPACE, KEY)
    state = shared.tell(state, hg.trials.Trial(None, SPACE.decode([0.1] * 6)), hg.trials.Result(0.5))
    state, trial = shared.ask(state)
    shared.tell(state, trial, hg.trials.Result(1.0, tuned={"lr": 0.01}))
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(tmp_path / "study.log")))
    trials = optuna.load_study(study_name="hypergrad", storage=storage).trials
    states = [one.state.name for one in trials]
    # of each worker's six trials three fail; then one foreign, and one that was tuned: given up and added anew
    assert states.count("COMPLETE") == 2 * 3 + 2 and states.count("FAIL") == 2 * 3 + 1 and len(set(seeds)) == 13
    assert trials[-1].params["lr"] == 0.01


def test_results_from_elsewhere_count_and_a_callback_stops():
    known = [hg.trials.FinishedTrial(hg.trials.Trial(None, SPACE.decode([0.1] * 6)), hg.trials.Result(-1.0))]
    state = hg.trials.search_trials(
        hg.trials.Random(),
        SPACE,
        hg.trials.PerTrial(lambda trial, key: hg.trials.Result(1.0, tuned={"lr": 5.0 if trial.number else 0.05})),
        key=KEY,
        num_trials=9,
        known=known,
        callback=lambda state: state.asked == 2,
    )
    assert state.best == known[0] and len(state.history) == 3
    assert state.history[1].trial.params["lr"] == 0.05
    assert state.failures == [state.history[2]] and "tuned: lr must lie in" in state.failures[0].result.error


def costly(trial, key):
    return hg.trials.Result(trial.params["lr"], iterations=7, gradients=10)


@pytest.mark.parametrize(
    ("budget", "trials"), [(hg.Budget(gradients=95), 10), (hg.Budget(gradients=100), 10), (hg.Budget(iterations=15), 3)]
)
def test_a_search_stops_when_its_budget_is_spent(tmp_path, budget, trials):
    options = {"key": KEY, "budget": budget, "journal": tmp_path / "search.jsonl"}
    known = [
        hg.trials.FinishedTrial(
            hg.trials.Trial(None, SPACE.decode([0.1] * 6)), costly(hg.trials.Trial(None, {"lr": 1.0}), KEY)
        )
    ]
    part = hg.trials.search_trials(hg.trials.Random(), SPACE, costly, num_trials=2, known=known, **options)
    state = hg.trials.search_trials(hg.trials.Random(), SPACE, costly, known=known, **options)
    assert (part.asked, state.asked) == (2, trials)
    assert state.spent[:2] == (7 * trials, 10 * trials) and state.spent.seconds > 0
    again = hg.trials.SearcherState.from_json(state.to_json())
    assert again == state and again.spent == state.spent and again.best == state.best


def test_a_budget_of_seconds():
    state = hg.trials.search_trials(hg.trials.Random(), SPACE, costly, key=KEY, budget=hg.Budget(seconds=1e-9))
    assert state.asked == 1


def broken(trial, key):
    raise ZeroDivisionError("all the time")


def test_a_broken_objective_is_raised_as_it_is(tmp_path):
    path = tmp_path / "search.jsonl"
    with pytest.raises(ZeroDivisionError, match="all the time") as caught:
        hg.trials.search_trials(hg.trials.Random(), SPACE, broken, key=KEY, num_trials=3, journal=path)
    assert caught.traceback[-1].name == "broken"
    state = hg.trials.search_trials(hg.trials.Random(), SPACE, costly, key=KEY, num_trials=3, journal=path)
    assert len(state.history) == 3 and not state.failures  # the first trial was kept pending

    def later(trial, key):
        return broken(trial, key) if trial.number == 2 else costly(trial, key)

    options = {"key": KEY, "num_trials": 4}
    assert hg.trials.search_trials(hg.trials.Random(), SPACE, later, **options).num_failed == 1
    with pytest.raises(ZeroDivisionError):
        hg.trials.search_trials(hg.trials.Random(), SPACE, later, on_failure="raise", **options)
    with pytest.raises(FloatingPointError, match="all 4 trials failed, the first with: value nan"):
        hg.trials.search_trials(hg.trials.Random(), SPACE, lambda trial, key: np.nan, **options)


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
    front = {(one.result.value, one.result.size) for one in hg.trials.pareto_front([*every, failed])}
    beaten = lambda p: any(q[0] <= p[0] and q[1] <= p[1] and q != p for q in points)
    assert front == {p for p in points if not beaten(p)}
    choice = hg.trials.smallest_within_tolerance(every, 0.5)
    assert (choice is None) == (not points)
    if choice is not None:
        best = min(value for value, _ in points)
        assert choice.result.size == min(size for value, size in points if value <= 1.5 * best)


GOOD = {"layers": 1, "act": None, "l2": 0.1, "lr": 0.01}
BAD_PARAMS = [
    ({"layers": 4}, "layers must lie in"),
    ({"layers": 1.5}, "layers must be a whole number"),
    ({"layers": True}, "layers must be a whole number"),
    ({"act": "gelu"}, "act must be one of"),
    ({"l2": "big"}, "l2 must be a number"),
    ({"l2": float("nan")}, "l2 must lie in"),
    ({"layers": 3}, "lacks 'units_3'"),
    ({"units_3": 9}, "'units_3', which is not active"),
    ({"depth": 3}, "'depth' is not in the space"),
]


@pytest.mark.parametrize(("change", "message"), BAD_PARAMS)
def test_wrong_values_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        SPACE.checked(GOOD | change)


class TwoResults(hg.trials.AbstractObjective):
    """An objective that does not keep to its contract."""

    def __call__(self, trials, keys):
        return [1.0, 2.0]


BAD = [
    (ValueError, "finite bounds", lambda: hg.trials.Float(0.0, np.inf)),
    (ValueError, "low 2 above high 1", lambda: hg.trials.Int(2, 1)),
    (ValueError, "whole bounds", lambda: hg.trials.Int(0.5, 2)),
    (ValueError, "positive low", lambda: hg.trials.Float(0.0, 1.0, log=True)),
    (ValueError, "choices that differ", lambda: hg.trials.Categorical(("a", "a"))),
    (ValueError, "one of at_least and one_of", lambda: hg.trials.When("a")),
    (ValueError, "no leaves", lambda: hg.trials.Space({})),
    (TypeError, "leaf 'a' must be", lambda: hg.trials.Space({"a": 3})),
    (
        ValueError,
        "'a' depends on 'b'",
        lambda: hg.trials.Space({"a": hg.trials.Int(1, 2, when=hg.trials.When("b", at_least=1))}),
    ),
    (
        ValueError,
        "it ends at 3",
        lambda: hg.trials.Space(
            {"a": hg.trials.Int(1, 3), "b": hg.trials.Int(1, 2, when=hg.trials.When("a", at_least=4))}
        ),
    ),
    (ValueError, "block 'z' is not", lambda: SPACE.restrict("z", at=GOOD)),
    (TypeError, "base must be a searcher", lambda: hg.trials.DivideAndConquer(tpe)),
    (ValueError, "top must be", lambda: hg.trials.DivideAndConquer(TPE, top=1)),
    (ValueError, "probability", lambda: hg.trials.SubnetworkAdaptive(TPE, hg.trials.PedAnova(), probability=2)),
    (ValueError, "warmup", lambda: hg.trials.SubnetworkAdaptive(TPE, hg.trials.PedAnova(), warmup=0)),
    (ValueError, "start must be", lambda: hg.trials.DivideAndConquer(TPE, start="warm")),
    (
        ValueError,
        "at least two",
        lambda: hg.trials.DivideAndConquer(TPE).ask(TPE.init(hg.trials.Space({"a": hg.trials.Int(1, 2)}), KEY)),
    ),
    (ValueError, "points must be", lambda: hg.trials.Grid(0)),
    (ValueError, "quantile", lambda: hg.trials.PedAnova(1.0)),
    (TypeError, "key must be", lambda: TPE.init(SPACE, 3)),
    (TypeError, "space must be", lambda: TPE.init({"a": hg.trials.Int(1, 2)}, KEY)),
    (ValueError, "'x' is not in the space", lambda: TPE.ask(TPE.init(SPACE, KEY), fixed={"x": 1})),
    (
        ValueError,
        "not pending",
        lambda: TPE.tell(TPE.init(SPACE, KEY), hg.trials.Trial(0, GOOD), hg.trials.Result(1.0)),
    ),
    (ValueError, "num_trials", lambda: hg.trials.search_trials(TPE, SPACE, print, key=KEY, num_trials=0)),
    (ValueError, "give at least one", lambda: hg.trials.search_trials(TPE, SPACE, print, key=KEY)),
    (TypeError, "budget must be", lambda: hg.trials.search_trials(TPE, SPACE, print, key=KEY, budget=3)),
    (ValueError, "on_failure", lambda: hg.trials.search_trials(TPE, SPACE, print, key=KEY, num_trials=1, on_failure=1)),
    (ValueError, "origins must have", lambda: hg.trials.FixedList([GOOD], origins=[])),
    (ValueError, "starts must be", lambda: hg.trials.Descent(TPE, optax.adam(0.1), starts=0)),
    (TypeError, "base must be a searcher", lambda: hg.trials.Descent(tpe, optax.adam(0.1))),
    (ValueError, "fidelity", lambda: hg.trials.search_trials(TPE, SPACE, print, key=KEY, num_trials=1, fidelity=0)),
    (TypeError, "searcher must be", lambda: hg.trials.search_trials(tpe, SPACE, print, key=KEY, num_trials=1)),
    (TypeError, "objective must be callable", lambda: hg.trials.search_trials(TPE, SPACE, 1, key=KEY, num_trials=1)),
    (
        TypeError,
        "one Result for each",
        lambda: hg.trials.search_trials(TPE, SPACE, TwoResults(), key=KEY, num_trials=1),
    ),
    (ValueError, "size must be", lambda: hg.trials.Vmapped(print, print, size=0)),
    (ValueError, "fraction must lie", lambda: hg.trials.nested_subset(ROWS, 0.0, KEY)),
    (ValueError, "keep must be", lambda: hg.trials.two_step(TPE, SPACE, print, key=KEY, num_trials=3, top=4)),
    (
        ValueError,
        "fractions must rise",
        lambda: hg.trials.two_step(TPE, SPACE, print, key=KEY, num_trials=9, fraction=1.0),
    ),
]


@pytest.mark.parametrize(("error", "message", "call"), BAD, ids=[message for _, message, _ in BAD])
def test_bad_input_is_named(error, message, call):
    with pytest.raises(error, match=message):
        call()


def test_optuna_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(ImportError, match=r"hypergrad-jax\[optuna\]"):
        TPE.ask(TPE.init(SPACE, KEY))


@pytest.mark.parametrize(
    ("package", "sampler"), [("cmaes", optuna.samplers.CmaEsSampler), ("torch", optuna.samplers.GPSampler)]
)
def test_a_package_that_a_sampler_needs_is_named(monkeypatch, package, sampler):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    searcher = hg.trials.Optuna(lambda seed: sampler(seed=seed))
    with pytest.raises(ImportError, match=f"{sampler.__name__} needs {package}"):
        searcher.ask(searcher.init(SPACE, KEY))
