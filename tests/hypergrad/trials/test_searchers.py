"""Spaces, searchers and strategies."""

import json
from dataclasses import replace

import equinox as eqx
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hypergrad as hg
from hypergrad.trials.growing import Growing

from tests.hypergrad.trials.examples import KEY, SEARCHERS, SPACE, loss, told

every_searcher = pytest.mark.parametrize("searcher", SEARCHERS.values(), ids=SEARCHERS)


@given(st.lists(st.floats(0, 1), min_size=6, max_size=6))
def test_points_of_the_cube_are_params_and_back(point):
    params = SPACE.decode(point)
    assert SPACE.checked(params) == params
    again = SPACE.decode(SPACE.encode(params))
    assert {k: v for k, v in again.items() if k not in ("l2", "lr", "slope")} == {
        k: v for k, v in params.items() if k not in ("l2", "lr", "slope")
    }
    np.testing.assert_allclose(again["l2"], params["l2"], rtol=1e-9)
    assert ("units_3" in params) == (params["layers"] == 3) and ("slope" in params) == (params["act"] == "relu")
    held = SPACE.restrict("a", at=params)
    assert set(held) == set(params) - {"layers", "units_3"}
    assert hg.trials.Space.from_json(json.loads(json.dumps(SPACE.to_json()))) == SPACE


def test_integers_and_choices_are_equally_likely():
    places = (np.arange(3000) + 0.5) / 3000
    assert np.bincount([hg.trials.Int(2, 7).decode(u) for u in places])[2:].tolist() == [500] * 6
    drawn = [SPACE.leaves["act"].decode(u) for u in places]
    assert [drawn.count(choice) for choice in ("relu", "tanh", None)] == [1000] * 3


@every_searcher
def test_asks_keep_to_the_space_and_go_on_the_same_from_json(searcher):
    foreign = hg.trials.Trial(None, {"layers": 3, "units_3": 9, "act": None, "l2": 0.05, "lr": 0.01})
    state = searcher.tell(searcher.init(SPACE, KEY), foreign, hg.trials.Result(0.2))
    for number in range(8):
        fixed = {"layers": 3, "act": "tanh", "slope": 0.5} if number % 3 == 2 else {}
        state, trial = searcher.ask(state, fixed=fixed)
        assert SPACE.checked(trial.params) == trial.params
        if fixed:
            assert trial.params["layers"] == 3 and trial.params["act"] == "tanh" and "slope" not in trial.params
        value = np.nan if number == 2 else loss(trial.params)
        state = searcher.tell(state, trial, hg.trials.Result(value, metrics={"infinite": -np.inf}))
    assert [one.trial.number for one in state.failures] == [2] and len(state.history) == 9
    state, pending = searcher.ask(state)
    again = hg.trials.SearcherState.from_json(json.loads(json.dumps(state.to_json(), allow_nan=False)))
    for _ in range(2):
        state, here = searcher.ask(state)
        again, there = searcher.ask(again)
        assert here == there
    assert len(again.pending) == 3
    assert len(searcher.tell(again, pending, hg.trials.Result(1.0)).pending) == 2


def test_grid_visits_every_combination_once():
    state = told(hg.trials.Grid(2), SPACE, hg.trials.Grid(2).size(SPACE))
    points = {tuple(one.trial.params.items()) for one in state.history}
    # one or three layers, the second with two widths; relu with two slopes, tanh, None; two l2; two lr
    assert len(points) == hg.trials.Grid(2).size(SPACE) == 3 * 4 * 2 * 2


def test_a_grid_is_made_once_for_a_search(monkeypatch):
    made, combinations = [], hg.trials.Grid.combinations
    monkeypatch.setattr(hg.trials.Grid, "combinations", lambda *args: made.append(1) or combinations(*args))
    state = told(hg.trials.Grid(2), SPACE, 10)
    assert len(made) == 1 and len({tuple(one.trial.params.items()) for one in state.history}) == 10


def test_choices_may_be_numbers_of_numpy():
    choices = hg.trials.Categorical((*np.arange(2), np.float32(0.5))).choices
    assert choices == (0, 1, 0.5) and [type(choice) for choice in choices] == [int, int, float]


THREE = hg.trials.Space({f"{b}{i}": hg.trials.Float(0.0, 1.0, block=b) for b in "abc" for i in range(2)})


def uneven(params):
    return sum((params[f"{b}{i}"] - 0.3) ** 2 * w for b, w in {"a": 1.0, "b": 0.01, "c": 0.0}.items() for i in (0, 1))


def test_cma_es_learns_from_what_it_is_told():
    bowl = lambda params: sum((value - 0.3) ** 2 for value in params.values())
    best = lambda searcher: told(searcher, THREE, 100, bowl).best.result.value
    assert best(SEARCHERS["cma-es"]) < best(hg.trials.Random()) / 4


@pytest.mark.parametrize("importance", [hg.trials.PedAnova(), hg.trials.RidgeImportance()])
def test_trials_go_to_the_block_that_matters(importance):
    searcher = hg.trials.SubnetworkAdaptive(hg.trials.Random(), importance, warmup=30, probability=0.8)
    state = told(searcher, THREE, 130, uneven)
    weights = importance(state)
    assert max(weights, key=weights.get) == "a" and weights["a"] > 3 * max(weights["b"], weights["c"])
    moved = [one.trial.meta["block"] for one in state.history if "block" in one.trial.meta]
    assert 60 < len(moved) < 100 and moved.count("a") > 0.6 * len(moved)
    assert "block" not in str([one.trial.meta for one in state.history[:30]])
    last = next(one.trial for one in reversed(state.history) if one.trial.meta.get("block") == "b")
    before = searcher.init(THREE, KEY)
    before = replace(before, history=state.history[: last.number])
    assert THREE.restrict("b", at=last.params) == THREE.restrict("b", at=before.best.trial.params)


@pytest.mark.parametrize("score", [None, lambda block, one: one.result.block_scores[block]])
def test_children_combine_the_blocks_of_top_trials(score):
    searcher = hg.trials.DivideAndConquer(hg.trials.Random(), top=4, warmup=10, probability=1.0, block_score=score)
    state = searcher.init(THREE, KEY)
    scores = lambda params: {block: params[f"{block}0"] for block in "abc"}
    children = 0
    for number in range(25):
        ranking = state.ranked
        state, trial = searcher.ask(state)
        if number >= 10 and "donors" in trial.meta:
            children += 1
            for block, donor in trial.meta["donors"].items():
                ranked = ranking if score is None else sorted(ranking, key=lambda one: score(block, one))
                own = lambda params, names=THREE.blocks[block]: tuple(params[name] for name in names)
                top = list(dict.fromkeys(own(one.trial.params) for one in ranked))[:4]
                assert own(state.history[donor].trial.params) == own(trial.params) and own(trial.params) in top
            assert trial.params not in [one.trial.params for one in state.history]
        state = searcher.tell(state, trial, hg.trials.Result(uneven(trial.params), block_scores=scores(trial.params)))
    assert children > 10


def test_hypergradient_importance_is_the_mean_norm():
    state = hg.trials.Random().init(THREE, KEY)
    assert hg.trials.HypergradientImportance()(state) == dict.fromkeys("abc", 0.0)
    for norm in (1.0, 3.0):
        state, trial = hg.trials.Random().ask(state)
        state = hg.trials.Random().tell(state, trial, hg.trials.Result(0.0, block_norms={"b": norm}))
    assert hg.trials.HypergradientImportance()(state) == {"a": 0.0, "b": 2.0, "c": 0.0}


MIXED = hg.trials.Space(
    {
        "x": hg.trials.Float(-2.0, 6.0),
        "rate": hg.trials.Float(1e-4, 1.0, log=True),
        "units": hg.trials.Int(1, 9),
        "fixed": hg.trials.Float(3.0, 3.0),
    }
)


def bowl(trial):
    """A quadratic in x and in the logarithm of the rate, with its derivatives."""
    x, log = trial.params["x"] - 1.0, np.log(trial.params["rate"]) + 3.0
    slopes = {"x": 2 * x, "rate": 2 * log} if trial.needs_hypergradient else {}
    return hg.trials.Result(x**2 + log**2 + 0.1 * trial.params["units"], hypergradient=slopes, gradients=10)


def test_descent_follows_told_hypergradients():
    base, optimiser = hg.trials.Random(), optax.adam(0.1)
    searcher = hg.trials.Descent(base, optimiser, starts=4)
    state = hg.trials.search_trials(searcher, MIXED, lambda trial, key: bowl(trial), key=KEY, num_trials=60)
    alone = hg.trials.search_trials(base, MIXED, lambda trial, key: bowl(trial), key=KEY, num_trials=4)
    trials = [one.trial for one in state.history]
    assert [trial.params for trial in trials[:4]] == [one.trial.params for one in alone.history]
    assert trials[4].params == alone.best.trial.params and all(trial.needs_hypergradient for trial in trials[4:])
    assert {trial.params["units"] for trial in trials[4:]} == {alone.best.trial.params["units"]}
    # the second step is optax's own, in units of half a range
    half = {"x": 4.0, "rate": np.log(1e4) / 2}
    z = {
        "x": (trials[4].params["x"] - 2.0) / 4.0,
        "rate": (np.log(trials[4].params["rate"]) + half["rate"]) / half["rate"],
    }
    opt_state = optimiser.init(z)
    for one in state.history[4:6]:
        slopes = {name: half[name] * one.result.hypergradient[name] for name in half}
        updates, opt_state = optimiser.update(slopes, opt_state)
        z = optax.tree.clip(optax.apply_updates(z, updates), -1.0, 1.0)
    np.testing.assert_allclose(trials[6].params["x"], 2.0 + 4.0 * z["x"], rtol=1e-12)
    np.testing.assert_allclose(np.log(trials[6].params["rate"]), half["rate"] * (z["rate"] - 1), rtol=1e-12)
    found = state.best.trial.params
    assert abs(found["x"] - 1) < 0.2 and abs(np.log(found["rate"]) + 3) < 0.2


def test_descent_goes_back_from_a_bad_step():
    searcher = hg.trials.Descent(
        hg.trials.FixedList([{"x": 2.0, "rate": 0.1, "units": 3, "fixed": 3.0}]), optax.adam(0.1), starts=1
    )
    state = searcher.init(MIXED, KEY)
    seen = []

    def told(state, value, **slopes):
        state, trial = searcher.ask(state)
        seen.append(trial.params["x"])
        return searcher.tell(state, trial, hg.trials.Result(value, hypergradient=slopes))

    state = told(state, 2.0)
    state = told(state, 2.0, x=1.0)
    state = told(state, 5.0, x=1.0)  # worse: back, half the step
    state = told(state, np.nan)  # failed: back, a quarter
    state = told(state, 1.9, x=1.0)
    state = told(state, 1.8, x=1.0)
    state = told(state, 1.8, x=np.nan)  # no hypergradient: the best again, this one, still without
    state = told(state, 1.8, x=1.0)
    np.testing.assert_allclose(np.diff(seen[:6]) / 4.0, [0.0, -0.1, 0.05, 0.025, -0.025], atol=1e-6)
    assert seen[7] == seen[6]
    state, _ = searcher.ask(state)
    with pytest.raises(ValueError, match="only 1 trials are listed"):
        searcher.ask(state)  # one is pending: the base searcher is asked


def test_descent_without_a_direction_leaves_it_to_its_base():
    state = told(
        hg.trials.Descent(hg.trials.Random(), optax.adam(0.1), starts=2), MIXED, 12, lambda params: params["x"]
    )
    values = [one.trial.params["x"] for one in state.history]
    again = [value for number, value in enumerate(values) if value in values[:number]]
    assert len(again) <= 2 * len(set(np.minimum.accumulate(values))) and len(set(values)) > 4


def test_a_list_comes_first():
    first = {"x": 0.0, "rate": 0.1, "units": 3, "fixed": 3.0}
    listed = hg.trials.FixedList([first, first | {"x": 1.0}], origins=[7, None], then=hg.trials.Random())
    state = told(listed, MIXED, 4, lambda params: 1.0)
    assert [one.trial.params["x"] for one in state.history[:2]] == [0.0, 1.0]
    assert [one.trial.origin for one in state.history] == [7, 1, 2, 3]
    assert (
        state.history[3].trial.params == told(hg.trials.Random(), MIXED, 4, lambda params: 1.0).history[3].trial.params
    )


def test_a_history_grows_without_changing_those_before():
    first = Growing([1])
    second, other = first.grown(2), first.grown(3)
    third = second.grown(4)
    assert [list(one) for one in (first, second, other, third)] == [[1], [1, 2], [1, 3], [1, 2, 4]]
    assert third[-1] == 4 and third[1:] == (2, 4) and list(reversed(third)) == [4, 2, 1] and third == (1, 2, 4)
    assert second != third and not Growing() and repr(first) == "(1,)"
    with pytest.raises(IndexError):
        second[2]


def test_trials_results_and_leaves_print_what_is_not_as_by_default():
    T = hg.trials
    leaves = T.Float(0.1, 1.0), T.Int(1, 4, when=T.When("a", at_least=2)), T.Categorical(("a", "b"))
    assert all(eval(repr(leaf), vars(T)) == leaf for leaf in leaves)
    assert repr(T.Float(0.0, 1.0)) == "Float(low=0.0, high=1.0)"
    assert repr(T.Trial(3, {"x": 0.5}, meta={"origin": 1})) == "Trial(number=3, params={'x': 0.5}, meta={'origin': 1})"
    assert repr(T.Result(0.5, size=2.0)) == "Result(value=0.5, size=2.0)"


def test_asking_and_telling_make_no_module():
    """A bound method of a module is one, and takes longer to make than the trial."""
    searcher = hg.trials.Random()
    assert not isinstance(searcher.ask, eqx.Module) and not isinstance(searcher.tell, eqx.Module)
    assert "Returns the next trial" in hg.trials.Random.ask.__doc__
