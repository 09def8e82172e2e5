"""The public callables of black-box search with an argument table each."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optuna

import hypergrad as hg
from hypergrad.testing.problems import ridge

from .kinds import Bool, Function, Int, Ints, Key, Kind, Listed, Mapping, Only, Path, Real, Some, Text, Word

T = hg.trials
SPACE = T.Space({"a": T.Int(1, 3, block="x"), "b": T.Float(0.1, 1.0, block="y"), "c": T.Categorical(("u", None))})
GOOD = {"a": 1, "b": 0.5, "c": None}
RANDOM = T.Random()
SEQUENCES = list | tuple | range | set | Iterator


def tpe(seed):
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=3)


def loss(trial, key):
    return trial.params["a"] + trial.params["b"]


@functools.cache
def asked():
    return RANDOM.ask(RANDOM.init(SPACE, jax.random.key(0)))


@functools.cache
def searched():
    state = RANDOM.init(SPACE, jax.random.key(0))
    for _ in range(4):
        state, trial = RANDOM.ask(state)
        state = RANDOM.tell(state, trial, T.Result(loss(trial, None), size=2.0))
    return state


@functools.cache
def case():
    return ridge(num_rows=4, num_features=2)


@functools.cache
def tuner():
    space = T.Space({"log_l2": T.Float(-3.0, 1.0), "unused": T.Float(-3.0, 1.0)})
    return T.GradientTuner(space, ["log_l2", "unused"], hg.Greedy(hg.OptaxSolver(optax.sgd(0.1), 2)), optax.sgd(0.1))


SPACE_KIND, STATE = Only(lambda: SPACE), Only(searched)
SEARCHER, TRIALS = Only(lambda: RANDOM), Listed(lambda: searched().history)
OBJECTIVE = Function(loss, own=True)
LEAF = {"block": Text("x", optional=True), "when": Only(lambda: None, optional=True), "log": Bool()}
MASKED = {
    "out_size": Int(1, least=1, most=10**5),
    "max_width": Int(3, least=2, most=10**3),
    "max_depth": Int(2, least=1, most=100),
    "widths": Ints(2, most=3),
    "depth": Int(1, 1, 2),
    "key": Key(),
    "activation": Kind(lambda: jnp.tanh, lambda value: None if callable(value) else False),
    "gain": Real(1.0),
}
CLASSES = {
    "Float": (T.Float, {"low": Real(0.5, most=1), "high": Real(1.0, least=0.5)} | LEAF),
    "Int": (T.Int, {"low": Int(1, most=4), "high": Int(4, least=1)} | LEAF),
    "Categorical": (
        T.Categorical,
        {
            "choices": Kind(
                lambda: ("a", "b"), lambda v: None if isinstance(v, list | tuple | range | set | Iterator) else False
            ),
            "block": LEAF["block"],
        },
    ),
    "When": (T.When, {"parent": Text("a"), "at_least": Real(1.0)}),
    "Space": (T.Space, {"leaves": Mapping(SPACE.leaves)}),
    "Trial": (
        T.Trial,
        {
            "number": Int(1, least=0, optional=True),
            "params": Mapping(GOOD),
            "fidelity": Real(1.0, above=0, most=1),
            "meta": Mapping({}),
            "report": Function(lambda step, value: False),
        },
    ),
    "Result": (
        T.Result,
        {
            "value": Kind(lambda: 1.0, lambda v: None if np.size(v) == 1 else False),
            "iterations": Real(1.0, least=0),
            "seconds": Real(1.0, least=0),
            "compilations": Int(1, least=0),
            "size": Real(1.0, least=0, optional=True),
            "hypergradient": Mapping({}),
            "metrics": Mapping({}),
            "pruned": Bool(),
            "error": Kind(lambda: "no", lambda v: None if isinstance(v, str | np.ndarray) else v is None),
        },
    ),
    "FinishedTrial": (T.FinishedTrial, {"trial": Only(lambda: asked()[1]), "result": Only(lambda: T.Result(1.0))}),
    "Grid": (T.Grid, {"points": Int(2, least=1)}),
    "FixedList": (
        T.FixedList,
        {
            "listed": Listed(lambda: [GOOD]),
            "origins": Some(lambda: None),
            "then": Only(lambda: RANDOM, optional=True),
        },
    ),
    "Descent": (
        T.Descent,
        {
            "base": SEARCHER,
            "optimiser": Only(lambda: optax.sgd(0.1)),
            "starts": Int(2, least=1),
            "rtol": Real(0.1, least=0),
        },
    ),
    "DivideAndConquer": (
        T.DivideAndConquer,
        {
            "base": SEARCHER,
            "top": Int(2, least=2),
            "probability": Real(0.5, least=0, most=1),
            "warmup": Int(2, least=1),
            "block_score": Function(lambda block, one: 0.0, optional=True),
            "start": Word("scratch", "donor"),
        },
    ),
    "SubnetworkAdaptive": (
        T.SubnetworkAdaptive,
        {
            "base": SEARCHER,
            "importance": Function(T.PedAnova()),
            "probability": Real(0.5, least=0, most=1),
            "warmup": Int(2, least=1),
            "uniform": Real(0.5, least=0, most=1),
        },
    ),
    "PedAnova": (T.PedAnova, {"quantile": Real(0.5, above=0, below=1), "permutations": Int(2, least=0)}),
    "RidgeImportance": (T.RidgeImportance, {"ridge": Real(0.5, above=0)}),
    "PerTrial": (T.PerTrial, {"function": OBJECTIVE}),
    "Vmapped": (
        T.Vmapped,
        {
            "train": Function(len),
            "prepare": Function(len),
            "data": Some(lambda: None),
            "size": Int(2, least=1),
        },
    ),
    "Processes": (
        T.Processes,
        {"function": OBJECTIVE, "workers": Int(2, least=1), "time_limit": Real(1.0, above=0, optional=True)},
    ),
    "Optuna": (
        T.Optuna,
        {
            "sampler": Function(tpe),
            "study": Text("s"),
            "reseed": Bool(),
            "heartbeat": Real(1.0, above=0),
            "warn": Bool(),
        },
    ),
    "Pruner": (T.Pruner, {"make": Function(optuna.pruners.MedianPruner)}),
    "MaskedMLP": (T.MaskedMLP, {"in_size": Int(2, least=1, most=10**5)} | MASKED),
    "MaskedCNN": (
        T.MaskedCNN,
        {"shape": Kind(lambda: (2, 2), lambda v: None if isinstance(v, list | tuple | range) else False)} | MASKED,
    ),
    "count_params": (
        T.count_params,
        {
            "in_size": Int(2, least=1),
            "out_size": Int(1, least=1),
            "widths": Some(lambda: [2, 3]),
            "depth": Some(lambda: 1),
        },
    ),
    "GradientTuner": (
        T.GradientTuner,
        {
            "space": SPACE_KIND,
            "names": Listed(lambda: ["b"]),
            "estimator": Only(lambda: hg.Greedy(hg.OptaxSolver(optax.sgd(0.1), 2))),
            "optimiser": Only(lambda: optax.sgd(0.1)),
        },
    ),
}
STEP = {"num_trials": Int(3, least=2), "objective": OBJECTIVE, "searcher": SEARCHER, "space": SPACE_KIND}
STEP |= {"key": Key(), "journal": Path()}
FUNCTIONS = {
    "search_trials": (
        T.search_trials,
        STEP
        | {
            "num_trials": Int(3, least=1),
            "batch": Int(1, least=1),
            "fidelity": Real(1.0, above=0, most=1),
            "known": Listed(lambda: []),
            "pruner": Only(lambda: None, optional=True),
            "on_failure": Word("record", "raise"),
            "progress": Bool(),
            "callback": Function(lambda state: True, optional=True, own=True),
        },
    ),
    "two_step": (
        functools.partial(T.two_step, callback=lambda state: True),
        STEP | {"fraction": Real(0.5, above=0, below=1), "top": Int(2, 1, 3)},
    ),
    "n_step": (
        functools.partial(T.n_step, callback=lambda state: True),
        STEP
        | {
            "fractions": Kind(lambda: (0.5, 1.0), lambda v: False),
            "keep": Kind(lambda: (2,), lambda v: None if np.shape(v) == (1,) else False),
        },
    ),
    "nested_subset": (
        T.nested_subset,
        {"data": Some(lambda: jnp.ones((4, 2))), "fraction": Real(0.5, above=0, most=1), "key": Key()},
    ),
    "pareto_front": (T.pareto_front, {"trials": TRIALS}),
    "smallest_within_tolerance": (
        T.smallest_within_tolerance,
        {"trials": TRIALS, "rtol": Real(0.1, least=0)},
    ),
    "Random.init": (RANDOM.init, {"space": SPACE_KIND, "key": Key()}),
    "Random.ask": (RANDOM.ask, {"state": STATE, "fixed": Mapping({})}),
    "Random.tell": (
        lambda state, trial, result: RANDOM.tell(state, trial, result),
        {"state": Only(lambda: asked()[0]), "trial": Only(lambda: asked()[1]), "result": Only(lambda: T.Result(1.0))},
    ),
    "Space.checked": (SPACE.checked, {"params": Mapping(GOOD)}),
    "Space.active": (SPACE.active, {"params": Mapping(GOOD)}),
    "Space.encode": (SPACE.encode, {"params": Mapping(GOOD)}),
    "Space.decode": (
        SPACE.decode,
        {
            "point": Kind(lambda: [0.5, 0.5, 0.5], lambda v: None if np.shape(v) == (3,) else False),
            "fixed": Mapping({}),
        },
    ),
    "Space.restrict": (
        SPACE.restrict,
        {"block": Kind(lambda: "x", lambda v: v is None or False), "at": Mapping(GOOD)},
    ),
    "PedAnova.call": (T.PedAnova(), {"state": STATE}),
    "RidgeImportance.call": (T.RidgeImportance(), {"state": STATE}),
    "HypergradientImportance.call": (T.HypergradientImportance(), {"state": STATE}),
    "GradientTuner.hparams": (
        lambda params: tuner().hparams(params),
        {"params": Mapping({"log_l2": 0.5, "unused": 0.5})},
    ),
    "GradientTuner.run": (
        lambda **arguments: tuner().run(**arguments, budget=2),
        {
            "problem": Only(lambda: case().problem),
            "model": Some(lambda: case().params),
            "params": Mapping({"log_l2": 0.5, "unused": 0.5}),
            "key": Key(),
        },
    ),
}


def calls():
    """`{name: (callable, {argument: Kind})}`."""
    return CLASSES | FUNCTIONS
