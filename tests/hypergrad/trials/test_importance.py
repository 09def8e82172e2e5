"""Measures of how much each block matters."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

import hypergrad as hg

from tests.hypergrad.trials.examples import told


@pytest.mark.parametrize("importance", [hg.trials.PedAnova(), hg.trials.RidgeImportance()])
def test_importance_knows_no_order_of_choices(importance):
    value = {"good": 0.0, "bad": 1.0, "ok": 0.1}
    space = lambda choices: hg.trials.Space(
        {"c": hg.trials.Categorical(choices, block="a"), "x": hg.trials.Float(0.0, 1.0, block="b")}
    )
    drawn = told(hg.trials.Random(), space(("good", "bad", "ok")), 80, lambda p: value[p["c"]] + 0.2 * p["x"])
    weights = [
        importance(replace(drawn, space=space(choices))) for choices in itertools.permutations(("good", "bad", "ok"))
    ]
    for other in weights[1:]:
        assert other == pytest.approx(weights[0], rel=1e-9)
    assert weights[0]["a"] > 2 * weights[0]["b"] > 0


def test_a_leaf_whose_value_does_not_matter_has_no_importance():
    deeper = hg.trials.When("depth", at_least=2)
    space = hg.trials.Space(
        {
            "depth": hg.trials.Int(1, 2, block="a"),
            "units": hg.trials.Float(0.0, 1.0, block="b", when=deeper),
            "kind": hg.trials.Categorical(("x", "y"), block="c", when=deeper),
        }
    )
    state = told(hg.trials.Random(), space, 200, lambda params: float(params["depth"] == 2) + 1e-3 * len(params))
    for importance in (hg.trials.PedAnova(), hg.trials.RidgeImportance()):
        weights = importance(state)
        assert weights["a"] > 20 * max(weights["b"], weights["c"])


@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("importance", [hg.trials.PedAnova(permutations=0), hg.trials.RidgeImportance()])
def test_importance_knows_no_age_of_trials_of_equal_value(importance, levels):
    """A searcher that has moved one leaf over time would find it important."""
    space = hg.trials.Space({name: hg.trials.Float(0.0, 1.0, block=name) for name in ("moved", "random")})
    draws = np.random.default_rng(0).random(60)
    listed = hg.trials.FixedList([{"moved": i / 60, "random": float(draws[i])} for i in range(60)])
    state = told(listed, space, 60, lambda params: float(round(60 * params["random"])) % levels)
    weights = importance(state)
    assert importance(replace(state, history=state.history[::-1])) == pytest.approx(weights, rel=1e-9)
    assert levels > 1 or weights == {"moved": 0, "random": 0}
