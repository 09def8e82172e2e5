"""The code of the README and the guide works."""

import inspect
import re

import pytest

import hypergrad as hg

from tests.helpers import ROOT, as_users_run_it, run_blocks

PAGES = ("README.md", "docs/guide.md")  # the second continues the first


@pytest.mark.slow
def test_the_python_examples_run(capsys):
    names: dict = {}
    with as_users_run_it():
        for page in PAGES:
            run_blocks(page, names)
    for name in [name for name in names if name.startswith("test_")]:
        names[name]()
    first, last = map(float, re.search(r"loss (\S+) -> (\S+),", capsys.readouterr().out).groups())
    assert last < first / 2


def test_the_readme_counts_the_estimators():
    numbers = {"eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14}
    said = re.search(r"(\w+) estimators share one interface", (ROOT / "README.md").read_text())[1].lower()
    found = [one for one in vars(hg).values() if inspect.isclass(one) and issubclass(one, hg.AbstractEstimator)]
    assert numbers[said] == len(found) - 1  # the interface itself
