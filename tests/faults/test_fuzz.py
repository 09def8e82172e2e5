"""A part of the fuzz: wrong arguments of every public callable are refused by their name."""

import importlib
import random

import pytest

from tests.faults import fuzz, kinds

pytestmark = pytest.mark.filterwarnings("ignore")  # of iterators as leaves and the like
NUMBER = 600
SLOW = {"run", "diagnose", "fewest_knots", "spread"}  # their other arguments cost seconds to make


@pytest.mark.variants(quick=["library", "trials", "training"], slow=["ensemble", "methods"])
@pytest.mark.row(22, 23, 28)
@pytest.mark.parametrize("package", fuzz.PACKAGES)
def test_wrong_arguments_are_refused_by_name(package):
    calls = importlib.import_module(f"tests.faults.{package}").calls()
    wrong = [
        (name, argument, label)
        for name, (_, arguments) in calls.items()
        for argument, kind in arguments.items()
        for label in kinds.values()
        if name not in SLOW and kind.verdict(kinds.value(label)) is False
    ]
    assert len({name for name, *_ in wrong}) > 0.9 * len(calls)
    found = []
    for name, argument, label in random.Random(0).sample(wrong, NUMBER):
        function, arguments = calls[name]
        result, text = fuzz.outcome(function, arguments, {argument: kinds.value(label)})
        if result != "named":
            found.append((name, argument, label, result, text))
    assert not found


def test_outcomes_are_told_apart():
    def take(size):
        if size == 3:
            raise RuntimeError("size is odd")
        if size == 4:
            raise ValueError("wrong")
        if size == 5:
            raise ValueError("size must be another")

    arguments = {"size": kinds.Int(2, least=1, most=2)}
    outcomes = {value: fuzz.outcome(take, arguments, {"size": value})[0] for value in (2, 3, 4, 5, 6)}
    assert outcomes == {2: "taken", 3: "unnamed", 4: "unnamed", 5: "named", 6: "silent"}
