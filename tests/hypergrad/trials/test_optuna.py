"""Optuna's samplers: the study follows the search; shared studies lose and double nothing."""

import warnings
from dataclasses import replace

import jax
import numpy as np
import optuna
import pytest

import hypergrad as hg
from hypergrad.trials.optuna import memory

from tests.hypergrad.trials.examples import KEY, SPACE, cma_es, loss, tpe


def nsga(seed):
    return optuna.samplers.NSGAIISampler(seed=seed, population_size=4)


def qmc(seed):
    with warnings.catch_warnings(action="ignore"):
        return optuna.samplers.QMCSampler(seed=seed)


SAMPLERS = {
    "tpe": tpe,
    "cma-es": cma_es,
    "nsga": nsga,
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    "qmc": qmc,
}


def asked(searchers, number=14):
    """The trials that searchers ask for in turn, two at a time, with foreign, failed and moved ones among them."""
    state = searchers[0].init(SPACE, KEY)
    for k in range(number):
        searcher = searchers[k % len(searchers)]
        if k % 5 == 4:
            foreign = hg.trials.Trial(None, SPACE.decode([k / number] * 6))
            state = searcher.tell(state, foreign, hg.trials.Result(loss(foreign.params)))
        state, _ = searcher.ask(state, fixed={"act": "tanh"} if k % 3 == 1 else {})
        if k % 2:
            for trial in reversed(state.pending):
                value = np.nan if trial.number % 7 == 3 else loss(trial.params)
                tuned = {"lr": 0.01} if trial.number % 4 == 2 else {}
                state = searcher.tell(state, trial, hg.trials.Result(value, tuned=tuned))
    return state


@pytest.mark.parametrize("reseed", [True, False])
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_a_kept_study_is_the_one_made_anew(sampler, reseed):
    kept = asked([hg.trials.Optuna(sampler, reseed=reseed)])
    anew = asked([hg.trials.Optuna(sampler, reseed=reseed) for _ in range(14)])
    assert [str(one) for one in kept.history] == [str(one) for one in anew.history]
    other = hg.trials.Optuna(sampler, reseed=reseed)
    searchers = [other, hg.trials.Random(), other, other]  # some asks are another searcher's
    again = [hg.trials.Optuna(sampler, reseed=reseed) if k % 4 != 1 else hg.trials.Random() for k in range(14)]
    assert str(asked(searchers)) == str(asked(again))


def test_a_study_is_made_once(monkeypatch):
    made = []
    create = memory.translation.package().create_study
    monkeypatch.setattr(optuna, "create_study", lambda **options: made.append(1) or create(**options))
    searcher = hg.trials.Optuna(tpe)
    state = hg.trials.search_trials(searcher, SPACE, lambda trial, key: loss(trial.params), key=KEY, num_trials=12)
    assert len(made) == 1
    early = hg.trials.SearcherState(SPACE, state.seed, 3, (), state.history[:3])
    assert searcher.ask(early)[1] == state.history[3].trial and len(made) == 2  # a state that it had left behind


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_a_sampler_with_its_own_stream_draws_as_in_optuna_alone(tmp_path, sampler):
    space = hg.trials.Space({"x": hg.trials.Float(1e-3, 1.0, log=True), "n": hg.trials.Int(1, 5)})
    value = lambda params: (np.log(params["x"]) + 3) ** 2 + params["n"]
    study = optuna.create_study(sampler=sampler(7))
    for _ in range(12):
        trial = study.ask()
        study.tell(
            trial, value({"x": trial.suggest_float("x", 1e-3, 1.0, log=True), "n": trial.suggest_int("n", 1, 5)})
        )
    options = {"key": KEY, "journal": tmp_path / "search.jsonl"}
    for number in (5, 12):  # stopped, and resumed with a new sampler
        searcher = hg.trials.Optuna(lambda seed: sampler(7), reseed=False)
        state = hg.trials.search_trials(
            searcher, space, lambda trial, key: value(trial.params), num_trials=number, **options
        )
    assert [one.trial.params for one in state.history] == [trial.params for trial in study.trials]


STORAGES = {
    "journal file": lambda folder: folder / "study.log",
    "url": lambda folder: f"sqlite:///{folder}/study.db",
    "object": lambda folder: optuna.storages.InMemoryStorage(),
}


@pytest.mark.parametrize("storage", STORAGES.values(), ids=STORAGES)
def test_any_storage_holds_what_results_say(tmp_path, storage):
    searcher = hg.trials.Optuna(tpe, storage=storage(tmp_path))

    def train(trial, key):
        if trial.number == 3:
            raise RuntimeError("diverged")
        metrics = {"accuracy": 0.5, "curve": [1.0, np.nan]}
        return hg.trials.Result(loss(trial.params), size=trial.number, gradients=7, metrics=metrics)

    state = hg.trials.search_trials(searcher, SPACE, train, key=KEY, num_trials=5)
    study = searcher.kept.shared.study
    trials = study.trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 3 + ["FAIL", "COMPLETE"]
    assert trials[2].user_attrs["size"] == 2.0 and trials[2].user_attrs["gradients"] == 7
    assert trials[2].user_attrs["metrics"] == {"accuracy": 0.5, "curve": [1.0, "nan"]}
    assert trials[3].user_attrs["error"] == "RuntimeError: diverged"
    best = searcher.best_of_study(state)
    assert (best.trial.params, best.result.value) == (state.best.trial.params, state.best.result.value)
    other = hg.trials.Optuna(tpe, storage=searcher.kept.shared.storage)
    alone = hg.trials.search_trials(
        other, SPACE, lambda trial, key: loss(trial.params) - 10, key=jax.random.key(9), num_trials=1
    )
    assert searcher.best_of_study(state).trial.params == alone.best.trial.params != state.best.trial.params


@pytest.mark.parametrize("storage", [None, "study.log"])
@pytest.mark.parametrize("kind", ["grid", "brute force"])
def test_a_grid_begins_again(tmp_path, kind, storage):
    grid = {"a": [0, 1, 2], "c": ["x", "y"]}
    make = {
        "grid": lambda seed: optuna.samplers.GridSampler(grid, seed=0),
        "brute force": lambda seed: optuna.samplers.BruteForceSampler(seed=0),
    }[kind]
    searcher = hg.trials.Optuna(make, storage=storage and tmp_path / storage)
    space = hg.trials.Space({"a": hg.trials.Int(0, 2), "c": hg.trials.Categorical(("x", "y"))})
    state = hg.trials.search_trials(searcher, space, lambda trial, key: trial.params["a"], key=KEY, num_trials=8)
    assert len({str(one.trial.params) for one in state.history[:6]}) == 6 and len(state.history) == 8


def course(trial, key):
    """Falls from 2 to the trial's own level in nine steps."""
    for step in range(1, 10):
        value = trial.params["x"] + 2.0 / step
        if trial.report(step, value):
            return hg.trials.Result(value, pruned=True, gradients=step)
    return hg.trials.Result(value, gradients=9)


PRUNERS = {
    "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=3),
    "halving": lambda: optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2),
    "hyperband": lambda: optuna.pruners.HyperbandPruner(min_resource=1, max_resource=9, reduction_factor=3),
}


@pytest.mark.parametrize("make", PRUNERS.values(), ids=PRUNERS)
def test_pruned_trials_are_those_of_optuna_alone(tmp_path, make):
    space = hg.trials.Space({"x": hg.trials.Float(0.0, 1.0)})
    study = optuna.create_study(sampler=tpe(5), pruner=make(), study_name="s")
    for number in range(16):
        trial = study.ask()
        plain = hg.trials.Trial(number, {"x": trial.suggest_float("x", 0.0, 1.0)})

        def report(step, value, trial=trial):
            trial.report(value, step)
            return trial.should_prune()

        result = course(replace(plain, report=report), None)
        state = optuna.trial.TrialState.PRUNED if result.pruned else None
        study.tell(trial, None if result.pruned else result.value, state=state)
    options = {"key": KEY, "journal": tmp_path / "search.jsonl"}
    for number in (7, 16):  # stopped, and resumed
        searcher, pruner = hg.trials.Optuna(lambda seed: tpe(5)), hg.trials.Pruner(make)
        found = hg.trials.search_trials(searcher, space, course, num_trials=number, pruner=pruner, **options)
    names = [trial.state.name for trial in study.trials]
    if make is not PRUNERS["hyperband"]:  # which depends on the name of the study
        assert [one.result.pruned for one in found.history] == [name == "PRUNED" for name in names]
        assert [one.trial.params for one in found.history] == [trial.params for trial in study.trials]
    pruned = [one for one in found.history if one.result.pruned]
    assert 2 < len(pruned) < 14 and all(len(one.result.reported) == one.result.gradients for one in found.history)
    assert not found.best.result.pruned and len(found.ranked) == 16 - len(pruned)


def test_a_trial_that_raises_as_optuna_prunes_is_pruned():
    def objective(trial, key):
        if trial.number == 1:
            raise optuna.TrialPruned
        value = trial.params["x"]
        if trial.report(3, value) or trial.number == 2:
            raise optuna.TrialPruned("too high")
        return value

    space = hg.trials.Space({"x": hg.trials.Float(0.0, 1.0)})
    options = {"key": KEY, "num_trials": 4, "on_failure": "raise"}
    state = hg.trials.search_trials(hg.trials.Optuna(lambda seed: tpe(5)), space, objective, **options)
    assert [one.result.pruned for one in state.history] == [False, True, True, False]
    assert state.num_failed == 0 and len(state.ranked) == 2
    assert state.history[2].result.value == state.history[2].trial.params["x"]
    assert hg.trials.SearcherState.from_json(state.to_json()) == state


def test_reports_are_kept_without_a_pruner():
    space = hg.trials.Space({"x": hg.trials.Float(0.0, 1.0)})
    state = hg.trials.search_trials(hg.trials.Random(), space, course, key=KEY, num_trials=2)
    assert [len(one.result.reported) for one in state.history] == [9, 9] and len(state.ranked) == 2
    again = hg.trials.SearcherState.from_json(state.to_json())
    assert again == state
