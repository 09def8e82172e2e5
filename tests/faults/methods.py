"""Methods of what the library returns, and callables next to the main ones, with an argument table each."""

import functools

import jax
import numpy as np
import optuna

import hypergrad as hg

from .kinds import Int, Key, Kind, Mapping, Only, Path, Real, Word, numeric
from .library import PARAMS, PROBLEM, SEARCH, linear_calls, state_of
from .searches import INNER, case
from .training import begun, training
from .trials import SPACE, SPACE_KIND, STATE, T, asked, searched, tpe, tuner

WRONG = Kind(lambda: {}, lambda value: None if isinstance(value, dict) else False)
SHAPE = jax.ShapeDtypeStruct  # stands for a number where nothing is computed
COUNT = Kind(lambda: 1, lambda v: None if isinstance(v, SHAPE) or numeric(v).dtype.kind in "iu" else False)
SOLVERS = hg.linear.SGD(3), hg.linear.LevenbergMarquardt(3), hg.linear.Identity(scale=0.5)


@functools.cache
def history():
    return hg.run(SEARCH, case().problem, state_of(SEARCH), key=jax.random.key(0), budget=9)[1]


@functools.cache
def diagnosis():
    one = case()
    return hg.diagnose(one.problem, hg.Greedy(INNER), one.params, one.hparams, key=jax.random.key(0))


@functools.cache
def shared():
    searcher = T.Optuna(tpe, storage=optuna.storages.InMemoryStorage())
    searcher.ask(searcher.init(SPACE, jax.random.key(0)))
    return searcher


def tell(searcher, trial, result):
    return searcher.tell(asked()[0], trial, result)


def told(searcher):
    return functools.partial(tell, searcher), {"trial": Only(lambda: asked()[1]), "result": Only(lambda: T.Result(1.0))}


CALLS = {
    "History.plot": (
        lambda **arguments: history().plot(**arguments),
        {"path": Path(), "unit": Word("iterations", "gradients", "epochs", "seconds")},
    ),
    "History.to_dict": (lambda **arguments: history().to_dict(**arguments), {"max_entries": Int(32, least=0)}),
    "Diagnosis.plot": (lambda path: diagnosis().plot(path), {"path": Path()}),
    "Grid.size": (T.Grid(2).size, {"space": SPACE_KIND}),
    "Grid.many": (lambda points: T.Grid(points).size(SPACE), {"points": Int(2, least=1, most=50)}),
    "Sobol.init": (T.Sobol().init, {"space": SPACE_KIND, "key": Key()}),
    "Optuna.ask": (lambda **arguments: T.Optuna(tpe).ask(**arguments), {"state": STATE, "fixed": Mapping({})}),
    "Optuna.best_of_study": (lambda state: shared().best_of_study(state), {"state": STATE}),
    "Optuna.tell": told(T.Optuna(tpe)),
    "Grid.tell": told(T.Grid(2)),
    "Pruner.begin": (
        lambda **arguments: T.Pruner(optuna.pruners.NopPruner).begin(**arguments),
        {"state": STATE, "trial": Only(lambda: asked()[1])},
    ),
    "Result.failure": (
        T.Result.failure,
        {"error": Kind(lambda: "no", lambda v: None if isinstance(v, str | Exception) else False)},
    ),
    "Result.from_json": (T.Result.from_json, {"found": Kind(lambda: {"value": 1.0}, WRONG.judge)}),
    "Space.from_json": (
        T.Space.from_json,
        {"leaves": Kind(SPACE.to_json, lambda v: None if isinstance(v, list) and v == [] else False)},
    ),
    "SearcherState.from_json": (
        T.SearcherState.from_json,
        {"found": Kind(lambda: searched().to_json(), lambda value: False)},
    ),
    "GradientTuner.scan": (
        lambda **arguments: tuner().scan(**arguments, steps=2),
        {
            "problem": PROBLEM,
            "model": PARAMS,
            "hparams": Kind(lambda: tuner().hparams({"log_l2": 0.5, "unused": 0.5}), WRONG.judge),
            "key": Key(),
        },
    ),
    "Training.solve": (lambda atol: training().solve(begun(), atol), {"atol": Real(0.0, least=0)}),
    "Training.advance": (
        lambda start: training().advance(begun(), start, 3),
        {"start": Kind(lambda: 0, lambda value: None if Int(0, least=0).judge(value) is not False else False)},
    ),
    "Counts": (hg.Counts, {"iterations": COUNT, "rows": COUNT}),
    "nested_subset.rows": (
        functools.partial(T.nested_subset, np.ones((4, 2)), key=jax.random.key(0)),
        {"fraction": Real(0.5, above=0, most=1)},
    ),
}


def calls():
    """`{name: (callable, {argument: Kind})}`."""
    found = dict(CALLS)
    for solver in SOLVERS:
        found |= linear_calls(solver)
    return found
