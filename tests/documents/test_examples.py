"""Examples in docstrings show what a session shows, and every public name has an example or is used on a page."""

import doctest
import importlib
import pkgutil
import re

import pytest

import ensembles
import hypergrad

from tests.documents.test_site import ENTRIES
from tests.helpers import ROOT, as_users_run_it, run_blocks

PAGE = "docs/api/examples.md"  # the lines that all examples share
HEAVY = re.compile(  # modules whose examples compile for seconds
    r"hypergrad\.(estimators|search|linear|tuning|data|run|diagnose|spread|curvature|inner|training|stats)\b"
    r"|hypergrad\.(problem|value_and_hypergrad|trials\.(masked|two_step|samplers|compilations))\b"
    r"|ensembles\.(?!selection|sharding)\w+\b"
)
# Results of other calls, and interfaces, with nothing of their own to show.
SEEN_ELSEWHERE = {
    "ensembles.BiasVariance",
    "ensembles.CrossValidation",
    "ensembles.Fold",
    "ensembles.PopulationGradient",
    "ensembles.Selection",
    "ensembles.StoppingState",
    "hypergrad.AbstractSearch",
    "hypergrad.Best",
    "hypergrad.CheckpointError",
    "hypergrad.Counts",
    "hypergrad.Diagnosis",
    "hypergrad.History",
    "hypergrad.InnerState",
    "hypergrad.Record",
    "hypergrad.SearchState",
    "hypergrad.linear.AbstractLinearSolver",
    "hypergrad.linear.LinearSolution",
    "hypergrad.projections.ShrinkToMean",
    "hypergrad.testing.Case",
    "hypergrad.trials.AbstractImportance",
    "hypergrad.trials.AbstractObjective",
    "hypergrad.trials.AbstractSearcher",
    "hypergrad.trials.FinishedTrial",
    "hypergrad.trials.SearcherState",
    "hypergrad.trials.TwoStepResult",
}


def modules():
    """Every module of both packages but the self-test, which would run."""
    for package in (hypergrad, ensembles):
        yield package.__name__
        found = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        yield from (one.name for one in found if not one.name.endswith("__main__"))


def examples(heavy):
    """The examples of the modules that are heavy, or of the others."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    for name in modules():
        if bool(HEAVY.match(name)) is heavy:
            yield from (one for one in finder.find(importlib.import_module(name)) if one.examples)


def check(found):
    """Runs examples, each after the shared lines; fails with what differs."""
    runner, complaints = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS), []
    with as_users_run_it():
        shared = run_blocks(PAGE, {})
        for one in found:
            one.globs = dict(shared)
            runner.run(one, out=complaints.append)
    assert not complaints, "".join(complaints)
    assert runner.tries > 20


def test_the_page_on_testing_defines_tests():
    names = run_blocks("docs/api/testing.md", {})
    assert sum(name.startswith("test_") for name in names) == 5


def test_light_examples_hold():
    check(examples(heavy=False))


@pytest.mark.slow
def test_heavy_examples_hold():
    check(examples(heavy=True))


def test_every_public_name_is_shown_in_use():
    """A name is in an example of a docstring, in code of a page, or called in a sentence of one."""
    texts = [page.read_text() for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"))]
    blocks = [block for text in texts for block in re.findall(r"```python.*?\n(.*?)```", text, re.S)]
    calls = [call for text in texts for call in re.findall(r"`([^`\n]+\([^`\n]*)`", text)]
    shown = [one.source for heavy in (True, False) for test in examples(heavy) for one in test.examples]
    used = set(re.findall(r"\w+", "\n".join(blocks + calls + shown)))
    assert sorted({entry for entry in ENTRIES if entry.rsplit(".", 1)[-1] not in used} ^ SEEN_ELSEWHERE) == []
