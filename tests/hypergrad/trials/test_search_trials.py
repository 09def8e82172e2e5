"""The loop of a black-box search with its journal and its workers."""

import jax
import numpy as np
import optuna
import pytest

import hypergrad as hg

from tests.hypergrad.trials.examples import KEY, NESTED, SPACE, loss, tpe


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


@pytest.mark.parametrize("batch", [1, 4])
def test_a_journal_of_a_longer_search_is_its_first_trials(tmp_path, batch):
    def stopped(trial, key):
        if trial.number == 9:
            raise KeyboardInterrupt
        return loss(trial.params)

    def search(objective, num_trials):
        options = {"key": KEY, "batch": batch, "journal": tmp_path / "search.jsonl"}
        return hg.trials.search_trials(hg.trials.Random(), SPACE, objective, num_trials=num_trials, **options)

    with pytest.raises(KeyboardInterrupt):
        search(stopped, 12)
    done = 9 // batch * batch
    assert len(search(stopped, 3).history) == done  # none is trained, and none is forgotten
    assert [one.trial.number for one in search(lambda trial, key: 0.0, 12).history] == list(range(12))


def test_an_objective_may_write_into_the_notes_of_its_trial(tmp_path):
    def untidy(trial, key):
        trial.meta["model"] = object()
        return loss(trial.params)

    options = {"key": KEY, "num_trials": 3, "journal": tmp_path / "search.jsonl"}
    state = hg.trials.search_trials(hg.trials.Random(), SPACE, untidy, **options)
    assert [one.trial.meta for one in state.history] == [{}] * 3 and state.num_failed == 0


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
    assert state.failures == [state.history[2]] and "lr must lie in [0.0001, 0.1]" in state.failures[0].result.error


def test_a_search_whose_trials_spend_nothing_any_more_ends():
    """A device that was lost, say: each trial fails at once, and the budget would last for ever."""

    def lost(trial, key):
        if trial.number:
            raise RuntimeError("no device")
        return hg.trials.Result(1.0, gradients=10)

    with pytest.raises(RuntimeError, match="100 trials in a row spent no gradients .* no device") as stop:
        hg.trials.search_trials(hg.trials.Random(), SPACE, lost, key=KEY, budget=hg.Budget(gradients=100))
    assert stop.value.state.best.trial.number == 0


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


def test_an_objective_may_take_its_values_out_of_the_trial():
    def taking(trial, key):
        return costly(hg.trials.Trial(trial.number, {name: trial.params.pop(name) for name in list(trial.params)}), key)

    options = {"key": KEY, "num_trials": 3}
    found = hg.trials.search_trials(hg.trials.Random(), SPACE, taking, **options)
    wanted = hg.trials.search_trials(hg.trials.Random(), SPACE, costly, **options)
    assert [one.trial for one in found.history] == [one.trial for one in wanted.history]
