"""Wrong values and settings of a black-box search are named."""

import enum

import numpy as np
import optax
import optuna
import pytest
import scipy.stats

import hypergrad as hg

from tests.hypergrad.trials.examples import KEY, SPACE, TPE, tpe

GOOD = {"layers": 1, "act": None, "l2": 0.1, "lr": 0.01}
LACKING = {name: value for name, value in GOOD.items() if name != "lr"}
HELD = {}
HELD["itself"] = HELD
BAD_PARAMS = [
    ({"layers": 4}, "layers must lie in"),
    ({"layers": 1.5}, "layers must be an integer"),
    ({"layers": True}, "layers must be an integer"),
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
    (ValueError, "high must be a finite number", lambda: hg.trials.Float(0.0, np.inf)),
    (ValueError, "too far apart", lambda: hg.trials.Float(-1e308, 1e308)),
    (ValueError, "low 2 above high 1", lambda: hg.trials.Int(2, 1)),
    (ValueError, "high must be an integer of at most 2147483647, got 10", lambda: hg.trials.Int(0, 10**12)),
    (ValueError, "iterations must be an integer of at most .* or None", lambda: hg.Budget(iterations=10**30)),
    (TypeError, "metrics of a Result must be plain", lambda: hg.trials.Result(1.0, metrics={"made": object()})),
    (TypeError, "metrics of a Result .* must be text, got 1", lambda: hg.trials.Result(1.0, metrics={1: 2.0})),
    (TypeError, "low must be an integer", lambda: hg.trials.Int(0.5, 2)),
    (ValueError, "positive low", lambda: hg.trials.Float(0.0, 1.0, log=True)),
    (ValueError, "choices must be .* that differ", lambda: hg.trials.Categorical(("a", "a"))),
    (ValueError, "choices must be .* finite", lambda: hg.trials.Categorical((1.0, np.inf))),
    (TypeError, "choices must be strings", lambda: hg.trials.Categorical((1.0, object()))),
    (ValueError, "one of at_least and one_of", lambda: hg.trials.When("a")),
    (ValueError, "no leaves", lambda: hg.trials.Space({})),
    (TypeError, r"leaves\['a'\] must be", lambda: hg.trials.Space({"a": 3})),
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
    (TypeError, "on_failure", lambda: hg.trials.search_trials(TPE, SPACE, print, key=KEY, num_trials=1, on_failure=1)),
    (ValueError, "origins must have", lambda: hg.trials.FixedList([GOOD], origins=[])),
    (ValueError, "starts must be", lambda: hg.trials.Descent(TPE, optax.adam(0.1), starts=0)),
    (TypeError, "base must be a searcher", lambda: hg.trials.Descent(tpe, optax.adam(0.1))),
    (ValueError, "fidelity", lambda: hg.trials.search_trials(TPE, SPACE, print, key=KEY, num_trials=1, fidelity=0)),
    (TypeError, "searcher must be", lambda: hg.trials.search_trials(tpe, SPACE, print, key=KEY, num_trials=1)),
    (TypeError, "objective must be a function", lambda: hg.trials.search_trials(TPE, SPACE, 1, key=KEY, num_trials=1)),
    (
        TypeError,
        "one Result for each",
        lambda: hg.trials.search_trials(TPE, SPACE, TwoResults(), key=KEY, num_trials=1),
    ),
    (ValueError, "size must be", lambda: hg.trials.Vmapped(print, print, size=0)),
    (ValueError, "fraction must be", lambda: hg.trials.nested_subset(np.arange(200.0), 0.0, KEY)),
    (ValueError, "top must be", lambda: hg.trials.two_step(TPE, SPACE, print, key=KEY, num_trials=3, top=4)),
    (
        ValueError,
        "fractions must rise",
        lambda: hg.trials.n_step(TPE, SPACE, print, key=KEY, num_trials=9, fractions=(1.0, 1.0), keep=(2,)),
    ),
    (
        ValueError,
        "keep must be",
        lambda: hg.trials.n_step(TPE, SPACE, print, key=KEY, num_trials=3, fractions=(0.5, 1.0), keep=(4,)),
    ),
    (
        ValueError,
        "fraction must be",
        lambda: hg.trials.two_step(TPE, SPACE, print, key=KEY, num_trials=9, fraction=1.0),
    ),
    (ValueError, r"listed\[0\]: 'layer' is not in", lambda: asked(hg.trials.FixedList([GOOD | {"layer": 2}]))),
    (ValueError, r"listed\[0\]: params lacks 'lr'", lambda: asked(hg.trials.FixedList([LACKING]))),
    (MemoryError, "points is too large: the grid", lambda: hg.trials.Grid(10**9).size(SPACE)),
    (ValueError, "value of a Result is too large", lambda: hg.trials.Result(10**400)),
    (TypeError, "value of a Result must be", lambda: hg.trials.Result(np.array(0.5, object))),
    (TypeError, "value of a Result must be", lambda: hg.trials.Result(np.ma.masked)),
    (TypeError, "metrics of a Result must be", lambda: hg.trials.Result(1.0, metrics=HELD)),
    (TypeError, "meta of a Trial must be", lambda: hg.trials.Trial(0, GOOD, meta={"made by": object()})),
    (TypeError, "hypergradient must be a dict.* of num", lambda: hg.trials.Result(1.0, hypergradient={"lr": [1, 2]})),
    (TypeError, "block_norms must be a dictionary of num", lambda: hg.trials.Result(1.0, block_norms={"a": "large"})),
    (ValueError, "hypergradient .* has 'rate', no Float", lambda: searched(hypergradient={"rate": 1.0})),
    (ValueError, "hypergradient .* has 'layers', no Float", lambda: searched(hypergradient={"layers": 1.0})),
    (ValueError, "block_norms .* has 'd', no block", lambda: searched(block_norms={"d": 1.0})),
    (ValueError, "l2 must lie in .* tuned", lambda: searched(tuned={"l2": 2.0})),
    (TypeError, "value must be a number", lambda: search(lambda trial, key: trial.report(1, [1.0, 2.0]))),
    (ValueError, "step must be a non-negative", lambda: search(lambda trial, key: trial.report(-1, 1.0))),
    (
        ValueError,
        "budget is in gradients, which no Result tells",
        lambda: hg.trials.search_trials(TPE, SPACE, lambda trial, key: 1.0, key=KEY, budget=hg.Budget(gradients=9)),
    ),
    (
        TypeError,
        "options has 'known'; each step takes batch",
        lambda: hg.trials.two_step(TPE, SPACE, print, key=KEY, num_trials=9, known=[]),
    ),
    (
        FloatingPointError,
        "no trial of step 1 is left",
        lambda: hg.trials.two_step(TPE, SPACE, pruned, key=KEY, num_trials=9),
    ),
    (ValueError, "leaf 'lr' does not fit the study", lambda: other_space()),
    (TypeError, "sampler must return an Optuna sampler", lambda: asked(hg.trials.Optuna(lambda seed: seed))),
    (
        TypeError,
        "make must return an Optuna pruner",
        lambda: search(lambda trial, key: trial.report(0, 1.0), pruner=hg.trials.Pruner(dict)),
    ),
    (ValueError, "found is not what Result.to_json", lambda: hg.trials.Result.from_json({"loss": 1.0})),
    (ValueError, "leaves is not what Space.to_json", lambda: hg.trials.Space.from_json([{"name": "a"}])),
    (ValueError, "found is not what SearcherState.to", lambda: hg.trials.SearcherState.from_json({"seed": [1]})),
]


@pytest.mark.parametrize(("error", "message", "call"), BAD, ids=[message for _, message, _ in BAD])
def test_bad_input_is_named(error, message, call):
    with pytest.raises(error, match=message):
        call()


def asked(searcher):
    return searcher.ask(searcher.init(SPACE, KEY))


def search(objective, **options):
    return hg.trials.search_trials(hg.trials.Random(), SPACE, objective, key=KEY, num_trials=5, **options)


def pruned(trial, key):
    return hg.trials.Result(1.0, pruned=True)


def other_space():
    """Asks a study for a leaf that it knows as another."""
    shared = hg.trials.Optuna(tpe, storage=optuna.storages.InMemoryStorage())
    asked(shared)
    shared.ask(shared.init(hg.trials.Space({"lr": hg.trials.Categorical(("small", "large"))}), KEY))


def searched(**told):
    return search(lambda trial, key: hg.trials.Result(1.0, **told))


@pytest.mark.parametrize("value", [np.longdouble(0.5), np.float16(0.5), np.array([0.5], ">f8"), 2**60])
def test_numbers_of_any_type_are_results(value):
    assert hg.trials.Result(value).value == float(np.asarray(value).ravel()[0])


def test_notes_of_a_searcher_of_ones_own_are_plain():
    assert hg.trials.Trial(0, GOOD, meta={"rank": np.int64(3)}).to_json()["meta"] == {"rank": 3}


def test_choices_are_what_a_journal_gives_back(tmp_path):
    class Kernel(enum.StrEnum):
        FLAT, ROUND = "flat", "round"

    space = hg.trials.Space({"kernel": hg.trials.Categorical(tuple(Kernel)), "rate": hg.trials.Categorical((1, 2.5))})
    search = lambda: hg.trials.search_trials(
        hg.trials.Random(), space, lambda trial, key: 1.0, key=KEY, num_trials=2, journal=tmp_path / "journal"
    )
    kinds = [[type(value) for value in one.trial.params.values()] for one in (*search().history, *search().history)]
    assert kinds[:2] == kinds[2:] and {kind for kind, _ in kinds} == {str}


def test_spaces_too_large_for_a_sequence_are_named(monkeypatch):
    monkeypatch.setattr(scipy.stats.qmc.Sobol, "MAXDIM", 1)
    with pytest.raises(ValueError, match="space has .* leaves, and Sobol sequences have at most 1"):
        hg.trials.Sobol().ask(hg.trials.Sobol().init(SPACE, KEY))


def test_optuna_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(ImportError, match=r"hypergrad-jax\[optuna\]"):
        TPE.ask(TPE.init(SPACE, KEY))


@pytest.mark.parametrize(
    ("package", "extra", "sampler"),
    [("cmaes", "optuna", optuna.samplers.CmaEsSampler), ("torch", "gp", optuna.samplers.GPSampler)],
)
def test_a_package_that_a_sampler_needs_is_named(monkeypatch, package, extra, sampler):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    searcher = hg.trials.Optuna(lambda seed: sampler(seed=seed))
    with pytest.raises(ImportError, match=rf"{sampler.__name__} needs {package}.*hypergrad-jax\[{extra}\]"):
        searcher.ask(searcher.init(SPACE, KEY))
