"""Searchers, pruners and states of searches can be copied and sent to other processes, also after use."""

import copy
from multiprocessing.reduction import ForkingPickler

import optuna
import pytest

import hypergrad as hg

from tests.hypergrad.trials.examples import KEY, SEARCHERS, SPACE, loss, told, tpe


def through_a_pipe(searcher):
    return ForkingPickler.loads(ForkingPickler.dumps(searcher))


def cloud(searcher):
    return ForkingPickler.loads(pytest.importorskip("cloudpickle").dumps(searcher))


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, through_a_pipe, cloud])
@pytest.mark.parametrize("searcher", SEARCHERS.values(), ids=SEARCHERS)
def test_a_copy_goes_on_as_the_original_does(searcher, copied):
    state = told(searcher, SPACE, 4)
    again = copied(state)
    assert again == state and again.best.trial == state.best.trial
    assert copied(searcher).ask(again)[1] == searcher.ask(state)[1]


@pytest.mark.parametrize("copied", [copy.deepcopy, through_a_pipe, cloud])
@pytest.mark.parametrize("storage", ["study.log", "sqlite:///{}/study.db"])
def test_a_copy_shares_the_study(tmp_path, copied, storage):
    address = storage.format(tmp_path) if "://" in storage else tmp_path / storage
    searcher = hg.trials.Optuna(tpe, storage=address)
    told(searcher, SPACE, 2)
    found = copied(searcher).best_of_study(searcher.init(SPACE, KEY))
    assert found == searcher.best_of_study(searcher.init(SPACE, KEY))


@pytest.mark.parametrize("copied", [copy.deepcopy, through_a_pipe, cloud])
def test_a_pruner_in_use(copied):
    pruner = hg.trials.Pruner(optuna.pruners.MedianPruner)
    train = lambda trial, key: trial.report(0, 1.0) or loss(trial.params)
    options = {"key": KEY, "num_trials": 2, "pruner": pruner}
    state = hg.trials.search_trials(hg.trials.Random(), SPACE, train, **options)
    assert copied(pruner).kept.study is None and pruner.kept.study is not None
    assert copied(pruner).begin(state, hg.trials.Trial(2, state.best.trial.params))(0, 1.0) in (True, False)
